"""Measurements. Nothing here is a test: a figure is printed, not judged."""
