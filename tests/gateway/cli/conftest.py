from __future__ import annotations

import pytest

from tests.support.harness import command


@pytest.fixture
def there(running, tmp_path):
    """Runs commands over the API of the running gateway, as its admin."""
    file = tmp_path / "api.token"
    file.write_text(f"{running.admin.token}\nnot this\n")
    file.chmod(0o600)

    async def run(*args, status=0, token_file=file):
        options = ("--url", running.url, "--token-file", str(token_file))
        return await command(*options, *args, status=status)

    return run


@pytest.fixture(params=["database", "url"])
def admin(running, there, request):
    """Runs commands on the database, and over the API."""
    return running.command if request.param == "database" else there
