"""The model of the disk, from recordings written by hand; some power cuts of a real recording, and forgotten flushes."""

from __future__ import annotations

import shutil
from itertools import islice

import pytest

from tests.powerloss.disk import Disk
from tests.powerloss.recording import Recording, plan
from tests.powerloss.states import POLICIES, by_chance
from tests.powerloss.torture import MUTATIONS, torture, workers
from tests.powerloss.trace import Untraceable, moments

ROOT = "/r"


def hexed(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def at(path: str, number: int = 3) -> str:
    return f"{number}<{hexed(path)}>"


def made(path: str) -> str:
    return f'7 openat(AT_FDCWD<{hexed("/")}>, "{hexed(path)}", O_WRONLY|O_CREAT|O_EXCL, 0600) = {at(path)}'


def write(path: str, text: str, offset: int = 0) -> str:
    return f'7 pwrite64({at(path)}, "{hexed(text)}", {len(text)}, {offset}) = {len(text)}'


def flush(path: str) -> str:
    return f"7 fsync({at(path)}) = 0"


def rename(old: str, new: str) -> str:
    return f'7 rename("{hexed(old)}", "{hexed(new)}") = 0'


def disk_after(*lines: str, start=()) -> Disk:
    disk = Disk(ROOT)
    for path, content in start:
        disk.put(path, content)
    for moment in moments(lines):
        disk.follow(moment)
    return disk


def all_states(disk: Disk) -> list[dict]:
    states = [make(disk) for make in POLICIES.values()]
    states += [by_chance(disk, f"{seed}") for seed in range(300)]
    return [state for number, state in enumerate(states) if state not in states[:number]]


def test_a_new_file_is_sure_once_its_bytes_and_its_name_are():
    lines = [made("/r/a"), write("/r/a", "hello")]
    assert {} in all_states(disk_after(*lines))
    assert {"a": b"hello"} in all_states(disk_after(*lines))
    assert {"a": b""} in all_states(disk_after(*lines))
    assert {"a": bytes(5)} in all_states(disk_after(*lines)), "its length alone"
    assert all_states(disk_after(*lines, flush("/r/a"))) == [{}, {"a": b"hello"}]
    assert all_states(disk_after(*lines, flush("/r/a"), flush("/r"))) == [{"a": b"hello"}]


def test_a_rename_may_be_there_before_the_bytes_and_is_never_half():
    lines = [made("/r/a.new"), write("/r/a.new", "new"), rename("/r/a.new", "/r/a")]
    found = all_states(disk_after(*lines, start=[("a", b"old")]))
    assert {"a": b""} in found
    assert all("a" in state for state in found)
    synced = [*lines[:2], flush("/r/a.new"), lines[2]]
    found = all_states(disk_after(*synced, start=[("a", b"old")]))
    assert {"a": b""} not in found
    assert {"a": b"old"} in found
    assert all_states(disk_after(*synced, flush("/r"), start=[("a", b"old")])) == [{"a": b"new"}]


def test_a_rename_between_folders_never_loses_the_file():
    start = [("x", None), ("y", None), ("x/a", b"a")]
    moved = [rename("/r/x/a", "/r/y/a")]
    for lines in (moved, [*moved, flush("/r/x")]):
        found = all_states(disk_after(*lines, start=start))
        assert all("x/a" in state or "y/a" in state for state in found)
        assert any("x/a" in state and "y/a" in state for state in found)
        assert any("y/a" not in state for state in found)
    assert all("y/a" in s for s in all_states(disk_after(*moved, flush("/r/y"), start=start)))


def test_writes_are_torn_at_sectors_in_any_order():
    start = [("a", b"-" * 1536)]
    lines = [write("/r/a", "1" * 1024), write("/r/a", "2" * 512, 1024)]
    found = {state["a"] for state in all_states(disk_after(*lines, start=start))}
    sectors = {(a[0:1], a[512:513], a[1024:1025]) for a in found}
    assert sectors == {(a, b, c) for a in (b"-", b"1") for b in (b"-", b"1") for c in (b"-", b"2")}
    assert all(len(set(a[i : i + 512])) == 1 for a in found for i in (0, 512, 1024))


def test_a_flush_says_nothing_about_what_began_after_it():
    lines = [
        write("/r/a", "one"),
        f"8 fsync({at('/r/a')} <unfinished ...>",
        write("/r/a", "two"),
        "8 <... fsync resumed>) = 0",
    ]
    found = all_states(disk_after(*lines, start=[("a", b"old")]))
    assert {state["a"] for state in found} >= {b"one", b"two"}
    assert b"old" not in {state["a"] for state in found}


def test_a_link_a_removal_and_a_truncation():
    start = [("a", b"abc")]
    linked = disk_after(f'7 link("{hexed("/r/a")}", "{hexed("/r/b")}") = 0', start=start)
    assert all_states(linked) == [{"a": b"abc"}, {"a": b"abc", "b": b"abc"}]
    gone = disk_after(f'7 unlink("{hexed("/r/a")}") = 0', start=start)
    assert all_states(gone) == [{"a": b"abc"}, {}]
    cut = disk_after(f"7 ftruncate({at('/r/a')}, 1) = 0", start=start)
    assert {state["a"] for state in all_states(cut)} == {b"abc", b"a"}


@pytest.mark.parametrize(
    "line",
    [
        "7 io_uring_enter(9<anon_inode:[io_uring]>, 1, 1, 0, NULL, 8) = 1",
        f"7 mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, {at('/r/a')}, 0) = 0x7f0000000000",
        f'7 pwrite64({at("/r/a")}, "{hexed("cut")}"..., 70000, 0) = 70000',
        "what strace never writes",
    ],
)
def test_what_the_model_does_not_have_is_refused(line):
    with pytest.raises(Untraceable):
        disk_after(line, start=[("a", b"")])


def test_the_index_of_a_log_may_be_mapped():
    mapped = (
        f"mmap(NULL, 9, PROT_READ|PROT_WRITE, MAP_SHARED, {at('/r/a-shm')}, 0) = 0x7f0000000000"
    )
    assert all_states(disk_after(f"7 {mapped}")) == [{}]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize(
    ("story", "forgotten"), [("fleet", "tokens-of-fleet"), ("first", "token-of-client")]
)
def test_power_cuts_lose_nothing_and_a_forgotten_flush_is_found(tmp_path, story, forgotten):
    recording = Recording(story, tmp_path / story)
    chosen = plan(recording.points(), "1", 60)
    with workers() as pool:
        done = torture(pool, recording, recording.cuts(chosen))
        assert done.states > 30
        assert not done.faults
        ignored = MUTATIONS[forgotten].leaves_out
        done = torture(
            pool, recording, islice(recording.cuts(chosen, ignored), 500), until_found=True
        )
        assert done.faults, f"without {forgotten} nothing was found"
