"""Three real nodes over a bad network: a few rounds here, 200 by `make torture`, which tries the mutations as well.

It needs root and Linux with namespaces and TUN devices; elsewhere it is skipped and says what is missing.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.network import missing

_PATIENCE = 300


def torture(*options: str) -> subprocess.CompletedProcess[str]:
    """Run it as a process of its own, since it moves to another namespace."""
    lacks = missing()
    if lacks is not None:
        pytest.skip(lacks)
    return subprocess.run(
        [sys.executable, "-m", "tests.torture.network", *options],
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )


@pytest.mark.long
def test_a_bad_network_breaks_no_promise():
    done = torture("--rounds", "3")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("mutation", "kind", "line", "said"),
    [
        ("without-leases", "cut", "database", "acted on the old session"),
        ("confirming-what-it-has-not-done", "nothing", "all", "acted on the old session"),
        ("let-older-sessions-be", "nothing", "all", "two sessions were in use"),
        ("name-nobody", "mute", "database", "is not named"),
        ("forget-keys", "mute", "callers", "was requested by nobody"),
    ],
)
def test_what_is_broken_on_purpose_is_found_out(mutation, kind, line, said):
    """Or else the torture would prove nothing. On a busy machine four rounds may do nothing of the kind."""
    how = ("--kind", kind, "--line", line, "--seconds", "6", "--mutate", mutation)
    for seed in range(5):
        done = torture("--rounds", "4", "--seed", str(seed), *how)
        if done.returncode:
            break
    assert done.returncode == 1, f"{mutation} was to be found out: {done.stdout + done.stderr}"
    assert said in done.stdout, f"{mutation} was to be seen as {said!r}: {done.stdout}"
