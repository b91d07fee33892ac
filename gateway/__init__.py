"""The ICE gateway. This docstring becomes the map."""

__version__ = "0.1.0"
