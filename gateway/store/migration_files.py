"""Reads the migrations of an engine: numbered SQL files, applied in order and never changed once released.

Tested in tests/contract/test_sqlite.py and tests/contract/test_schemas.py.
"""

from importlib import resources
from types import ModuleType

Step = tuple[int, str]
"""The number and the SQL of a migration."""


def in_order(package: ModuleType) -> list[Step]:
    """The migrations in a package, in order."""
    files = [file for file in resources.files(package).iterdir() if file.name.endswith(".sql")]
    return sorted((int(file.name.split("_")[0]), file.read_text("utf-8")) for file in files)
