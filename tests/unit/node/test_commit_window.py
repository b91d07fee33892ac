"""Rows that are committed in another order than they are numbered: none is passed over, and few are looked at twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.node.commit_window import CommitWindow
from gateway.store.nodes import Snapshot


def test_what_was_looked_at_twice_is_not_looked_at_again():
    window = CommitWindow()
    window.looked(Snapshot(newest=7, next=100, oldest=100))
    assert window.after == 0
    window.looked(Snapshot(newest=9, next=105, oldest=105))
    assert window.after == 7
    window.looked(Snapshot(newest=9, next=105, oldest=105))
    assert window.after == 9


def test_a_transaction_that_has_not_ended_holds_the_window_open():
    window = CommitWindow()
    window.looked(Snapshot(newest=7, next=100, oldest=98))
    window.looked(Snapshot(newest=50, next=150, oldest=99))
    assert window.after == 0
    window.looked(Snapshot(newest=60, next=170, oldest=100))
    assert window.after == 7


def test_the_window_never_goes_back():
    window = CommitWindow()
    for newest, number in ((9, 1), (9, 2), (3, 3), (3, 4)):
        window.looked(Snapshot(newest=newest, next=number, oldest=number))
    assert window.after == 9  # the newest rows were deleted


@given(st.lists(st.sampled_from(["begin", "commit", "look"]), max_size=60), st.randoms())
def test_no_row_is_passed_over(steps, random):
    """A story of transactions that number a row each and end in any order."""
    window = CommitWindow()
    begun = 0
    running: list[int] = []  # a transaction's number is that of its row
    committed: set[int] = set()
    seen: set[int] = set()
    for step in [*steps, *(["commit"] * len(steps)), "look", "look"]:
        if step == "begin":
            begun += 1
            running.append(begun)
        elif step == "commit" and running:
            committed.add(running.pop(random.randrange(len(running))))
        elif step == "look":
            snapshot = Snapshot(
                max(committed, default=0), begun + 1, min(running, default=begun + 1)
            )
            seen |= {row for row in committed if row > window.after}
            window.looked(snapshot)
            assert all(row in seen for row in range(1, window.after + 1))
    assert seen == committed
    assert window.after == max(committed, default=0)
