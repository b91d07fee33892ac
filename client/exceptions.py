"""The base of every error that the client raises to its users, and those of wrong arguments.

Tested in tests/client/test_client_library.py.
"""


class IceClientError(Exception):
    """The client cannot do what its user asked for; the text is one line for a person."""


class InvalidValue(IceClientError, ValueError):
    """An argument has a value that the client cannot use."""


class InvalidType(IceClientError, TypeError):
    """An argument is of a type that the client cannot use."""


class NotEntered(IceClientError, RuntimeError):
    """The client was used before `async with`."""
