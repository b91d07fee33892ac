"""`--log-file`: what is written, how it is rotated, and that no fault of it stops the client."""

import os
import re
import stat
import sys
from pathlib import Path

import click
import pytest

from client.log_file import KEPT, MAX_SIZE, RotatingFile, copied_to
from tests.client.scripted_gateway import admit, refuse

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ "


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ice-client.log"


@pytest.fixture
def complaints():
    return []


@pytest.fixture
def file(path, complaints):
    with RotatingFile(path, complaints.append, max_size=100, kept=2) as opened:
        yield opened


def names(path):
    return sorted(one.name for one in path.parent.iterdir())


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


# --- the file ----------------------------------------------------------------------------------


def test_a_new_file_is_private_and_an_existing_one_is_kept(path, file):
    file.write(b"one\n")
    assert mode(path) == 0o600
    path.chmod(0o640)
    file.write(b"two\n")
    assert (path.read_text(), mode(path)) == ("one\ntwo\n", 0o640)


def test_it_is_rotated_before_it_is_too_large_and_the_oldest_goes(path, file, complaints):
    for number in range(10):
        file.write(b"%d" % number * 59 + b"\n")
    assert names(path) == ["ice-client.log", "ice-client.log.1", "ice-client.log.2"]
    assert [path.with_name(name).read_text()[0] for name in names(path)] == ["9", "8", "7"]
    assert all(mode(path.with_name(name)) == 0o600 for name in names(path))
    assert not complaints


def test_a_file_that_was_large_before_is_rotated(path, file):
    path.write_bytes(b"x" * 200)
    file.write(b"new\n")
    assert path.read_bytes() == b"new\n"
    assert path.with_name("ice-client.log.1").stat().st_size == 200


@pytest.mark.parametrize("away", ["moved", "deleted", "truncated"])
def test_what_others_do_to_the_file_is_followed(path, file, away):
    """As logrotate does."""
    file.write(b"before\n")
    if away == "moved":
        path.rename(path.with_name("old"))
    elif away == "deleted":
        path.unlink()
    else:
        os.truncate(path, 0)
    file.write(b"after\n")
    assert path.read_bytes() == b"after\n"


def test_a_missing_folder_is_complained_of_once_and_found_when_it_is_there(path, complaints):
    path = path.parent / "logs" / path.name
    with RotatingFile(path, complaints.append) as file:
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                file.write(b"lost\n")
        assert complaints == [f"the log file {path} cannot be written: No such file or directory"]
        path.parent.mkdir()
        file.write(b"there\n")
        assert path.read_bytes() == b"there\n"
        path.parent.rename(path.parent.with_name("gone"))
        with pytest.raises(FileNotFoundError):
            file.write(b"lost\n")
        assert len(complaints) == 2, "a new fault is a new complaint"


def test_a_full_disk_is_an_error_that_passes(complaints):
    with (
        RotatingFile(Path("/dev/full"), complaints.append) as file,
        pytest.raises(OSError, match="No space left"),
    ):
        file.write(b"lost\n")
    assert complaints == ["the log file /dev/full cannot be written: No space left on device"]


def test_a_file_that_cannot_be_renamed_grows_to_twice_the_size(path, file, complaints):
    path.with_name("ice-client.log.1").mkdir()
    path.with_name("ice-client.log.1").joinpath("x").touch()
    path.with_name("ice-client.log.2").write_text("")
    for _ in range(3):
        file.write(b"x" * 59 + b"\n")
    with pytest.raises(OSError, match="directory"):
        file.write(b"x" * 59 + b"\n")
    assert path.stat().st_size == 180
    assert len(complaints) == 1


def test_the_sizes_are_those_of_the_documents():
    text = (Path(__file__).parents[2] / "docs/client.md").read_text("utf-8")
    assert f"{MAX_SIZE // 1024**2} MiB" in text
    assert f"`.{KEPT}`" in text


# --- what is written ---------------------------------------------------------------------------


def test_every_line_has_a_time_and_goes_to_the_stream_as_it_was(path, capsys):
    with copied_to(path):
        sys.stdout.write("2026-11-22T10:02:40Z of the client\n")
        sys.stdout.write("of a handler\nin two lines\n")
        sys.stdout.write("in ")
        sys.stderr.write("pieces, on stderr between\n")
        sys.stdout.write("pieces\n")
        sys.stdout.write("without an end")
    lines = path.read_text().splitlines()
    assert lines[0] == "2026-11-22T10:02:40Z of the client"
    assert all(re.match(TIME, line) for line in lines)
    assert [line.partition(" ")[2] for line in lines[1:]] == [
        "of a handler",
        "in two lines",
        "pieces, on stderr between",
        "in pieces",
        "without an end",
    ]
    out, err = capsys.readouterr()
    assert out.startswith("2026-11-22T10:02:40Z of the client\nof a handler\nin two lines\n")
    assert err == "pieces, on stderr between\n"


def test_a_line_without_an_end_does_not_grow_for_ever(path, capsys):
    with copied_to(path):
        for _ in range(5):
            sys.stdout.write("x" * 30_000)
    assert max(map(len, path.read_text().splitlines())) < 100_000


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (click.UsageError("Missing option '--gateway'"), "ice-client: Missing option '--gateway'"),
        (RuntimeError("a fault"), "RuntimeError: a fault"),
    ],
)
def test_why_it_failed_is_written_although_it_is_printed_later(error, says, path, capsys):
    with pytest.raises(type(error)), copied_to(path):
        raise error
    assert path.read_text().splitlines()[-1].partition(" ")[2] == says
    assert capsys.readouterr() == ("", "")


# --- the command -------------------------------------------------------------------------------

HANDLERS = """
def register(ice, settings):
    print("a handler prints")
"""


async def test_a_client_writes_what_it_prints(gateway, fork, folder, token, path):
    path.with_name("mine.py").write_text(HANDLERS)
    path.with_name("ice-client.toml").write_text(
        'log_file = "ice-client.log"\nhandlers = "mine.py"'
    )
    gateway.script.extend([admit(), refuse("deregistered")])
    command = ("run", "--gateway", gateway.url, "--state-dir", folder, "--token-file", "-")
    config = ("--config", path.with_name("ice-client.toml"))
    ended = await fork.run(*command, *config, stdin=token, until_admitted=True)
    assert ended.status == 0
    told = [line.partition("Z ")[2] for line in path.read_text().splitlines()]
    assert told[0] == "a handler prints"
    assert told[-1] == "stopped on request"
    assert any(line.startswith("admitted as lab-1") for line in told)

    ended = await fork.run(*command, "--log-file", path)
    assert ended.status == 3
    last = path.read_text().splitlines()[-1]
    assert re.fullmatch(f"{TIME}ice-client: deregistered: .*", last)
    assert token not in path.read_text()


async def test_a_log_file_that_cannot_be_written_stops_nothing(gateway, fork, folder, token):
    ended = await fork.run(
        *("run", "--gateway", gateway.url, "--state-dir", folder, "--token-file", "-"),
        *("--log-file", folder.with_name("missing") / "ice-client.log"),
        stdin=token,
        until_admitted=True,
    )
    assert ended.status == 0
    assert ended.err.count("missing/ice-client.log cannot be written: No such file") == 1
