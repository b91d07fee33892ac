from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

from tests.support.harness import Harness, harness, marked
from tests.support.postgres import Postgres, postgres

structlog.configure(
    # Not `sys.stdout` of the moment, which may be the captured one of a command that a test runs meanwhile.
    logger_factory=structlog.PrintLoggerFactory(sys.__stderr__),
    # To draw one traceback takes as long as to start a gateway.
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ],
)

LONG = os.environ.get("ICE_TEST_LONG") == "1"
"""Whether the tests that take long are made, too (`make torture`)."""

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("ice-gateway", deadline=None, max_examples=200 if LONG else 50)
hypothesis.settings.load_profile("ice-gateway")

MEMORY = Path("/dev/shm")  # noqa: S108 - each test makes a folder of its own there
"""A file system in memory: most tests make a database, and would mostly wait for the disk."""
ROOM = 4 * 2**30
"""Bytes that must be free there."""


def _fast_folders() -> None:
    """Put temporary files into memory where that is possible, and TMPDIR does not say otherwise."""
    if "TMPDIR" in os.environ or not MEMORY.is_dir():
        return
    found = os.statvfs(MEMORY)
    if found.f_bavail * found.f_frsize >= ROOM and not found.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None  # it may have been asked for already


_fast_folders()

# As in the gateway's process; the collector would otherwise take a tenth of the time of most tests.
gc.set_threshold(50_000, 50, 100)

# Children compile what they import once, not each of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Loading the public authorities takes 25 ms for each context and each child, and no test needs them.
os.environ.setdefault("SSL_CERT_FILE", os.devnull)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores it for what runs in the background, and our children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ON_POSTGRESQL = os.environ.get("ICE_TEST_ENGINE") == "postgresql"
"""Whether the tests of a running gateway are made on the other engine (`make torture`)."""


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "long: takes long; made by `make torture` alone")
    config.addinivalue_line("markers", "gateway: what `harness` gets for the fixture `running`")


def pytest_collection_modifyitems(config, items) -> None:
    """Leave out what is about SQLite's file, where there is none, and what takes long."""
    left_out = {
        item
        for item in items
        if (ON_POSTGRESQL and item.get_closest_marker("sqlite"))
        or (not LONG and item.get_closest_marker("long"))
    }
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish(session) -> None:
    """Spare the garbage collector what was collected here: it would look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
async def running(tmp_path, request, monkeypatch) -> Harness:
    """A gateway with an admin `root` and a member `alice`; a test marked `gateway` has it made otherwise."""
    options = {}
    if ON_POSTGRESQL:
        key_file = str(tmp_path / "ice.keys.json")
        monkeypatch.setenv("ICE_GATEWAY_TOKENS__KEY_FILE", key_file)  # for commands
        url = request.getfixturevalue("tables_url")
        options = {"database__url": url, "tokens__key_file": key_file}
    async with harness(tmp_path, **options, **marked(request)) as started:
        yield started


@pytest.fixture
def said():
    """The lines that the gateway logs in this process, from now on."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL for all tests of this process."""
    with postgres() as server:
        yield server


@pytest.fixture
def database_url(postgres_server) -> Iterator[str]:
    """A new, empty database on PostgreSQL."""
    url = postgres_server.database()
    yield url
    postgres_server.drop(url)


@pytest.fixture
def tables_url(postgres_server) -> Iterator[str]:
    """A database on PostgreSQL in which the gateway has nothing; it may have its tables."""
    url = postgres_server.database(tables=True)
    yield url
    postgres_server.drop(url)
