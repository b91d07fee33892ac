"""Rows that are committed in another order than they are numbered: none is passed over, and few are looked at twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.node.commit_window import CommitWindow
from gateway.store.nodes import Snapshot


def at(newest: int, transaction: int, oldest: int | None = None, server: str = "one") -> Snapshot:
    """A moment; without `oldest` no other transaction runs."""
    return Snapshot(server, newest, transaction, transaction if oldest is None else oldest)


def test_what_was_looked_at_twice_is_not_looked_at_again():
    window = CommitWindow()
    window.looked(at(7, 100))
    assert window.after == 0
    window.looked(at(9, 105))
    assert window.after == 7
    window.looked(at(9, 106))
    assert window.after == 9


def test_a_transaction_that_has_not_ended_holds_the_window_open():
    window = CommitWindow()
    window.looked(at(7, 100, oldest=98))
    window.looked(at(50, 150, oldest=100))
    assert window.after == 0
    window.looked(at(60, 170, oldest=101))
    assert window.after == 7


def test_the_window_does_not_go_back_where_the_newest_rows_are_deleted():
    window = CommitWindow()
    for newest, number in ((9, 1), (9, 2), (3, 3), (3, 4)):
        assert not window.looked(at(newest, number))
    assert window.after == 9


def test_it_begins_anew_with_another_server():
    """As after a failover to a standby that lagged: it gives numbers again."""
    window = CommitWindow()
    window.looked(at(101, 900))
    window.looked(at(101, 901))
    assert window.after == 101
    assert window.looked(at(60, 700, server="two"))
    assert window.after == 0
    assert not window.looked(at(62, 701, server="two"))
    assert window.after == 60


STEPS = st.sampled_from(["begin", "number", "commit", "look"])


@given(st.lists(STEPS, max_size=60), st.randoms())
def test_no_row_is_passed_over(steps, random):
    """A story of transactions that begin, number a row each, and commit, each in an order of its own."""
    window = CommitWindow()
    begun = drawn = 0
    rows: dict[int, int | None] = {}  # of the transactions that run, the row
    committed: set[int] = set()
    seen: set[int] = set()
    for step in [*steps, *(["number", "commit"] * len(steps)), "look", "look"]:
        waiting = [one for one, row in rows.items() if row is None]
        numbered = [one for one, row in rows.items() if row is not None]
        if step == "begin":
            begun += 1
            rows[begun] = None
        elif step == "number" and waiting:
            drawn += 1
            rows[random.choice(waiting)] = drawn
        elif step == "commit" and numbered:
            committed.add(rows.pop(random.choice(numbered)) or 0)
        elif step == "look":
            begun += 1
            snapshot = at(max(committed, default=0), begun, min(rows, default=begun))
            seen |= {row for row in committed if row > window.after}
            window.looked(snapshot)
            assert all(row in seen for row in range(1, window.after + 1))
    assert seen == committed
    assert window.after == max(committed, default=0)
