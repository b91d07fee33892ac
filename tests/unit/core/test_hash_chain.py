"""The proof that a log is what was written: whatever is changed in it is found, at its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.audit_event import GENESIS, digest_of
from gateway.core.hash_chain import Head, Verifier


def a_log(length, first=1, previous=GENESIS):
    rows = []
    for seq in range(first, first + length):
        rows.append((seq, "2026-11-22T09:30:00.000000Z", "root", f"act-{seq}", None, previous))
        previous = digest_of(rows[-1])
    return rows


def verdict(rows, pruned=(), kept=None):
    verifier = Verifier(pruned, kept)
    verifier.feed(rows)
    return verifier.verdict()


def head_of(rows):
    return Head(rows[-1][0], digest_of(rows[-1]))


def altered(row, column=2):
    return (*row[:column], "somebody", *row[column + 1 :])


LOG = a_log(9)
HEAD = head_of(LOG)


def test_an_untouched_log_is_proven():
    found = verdict(LOG)
    assert found.fault is None
    assert found.head == HEAD
    assert "events 1 to 9" in found.proven
    assert "removed from the end" in found.unproven
    assert "rewritten" in found.unproven


def compared(rows, *ices, first=1):
    verifier = Verifier([Head(first - 1, GENESIS)] if first > 1 else [])
    verifier.feed(rows)
    verifier.compare(ices)
    return verifier.verdict()


def test_ices_that_are_as_the_log_says_are_no_fault():
    assert compared(LOG, ("lab-1", 1, 1), ("lab-2", 7, 7)).fault is None
    pruned = compared(a_log(3, first=5), ("lab-1", 2, None), ("lab-2", 7, 7), first=5)
    assert pruned.fault is None, "its events may all have been pruned"


@pytest.mark.parametrize(
    ("rows", "ice", "says"),
    [
        ([], ("lab-1", 1, None), "the log is empty although there are ICEs"),
        (LOG, ("lab-1", 1, None), "the log has no event of lab-1"),
        (LOG, ("lab-1", 3, 2), "lab-1 has generation 3, and the log ends at its generation 2"),
        (LOG, ("lab-1", 2, 3), "lab-1 has generation 2, and the log ends at its generation 3"),
    ],
)
def test_an_ice_that_the_log_does_not_know_so_is_a_fault(rows, ice, says):
    found = compared(rows, ("lab-0", 1, 1), ice, ("lab-9", 1, 1)) if rows else compared(rows, ice)
    assert found.fault.startswith(says)
    assert (found.proven, found.head) == ("", None)


def test_a_fault_in_the_chain_comes_first():
    found = compared([LOG[0], altered(LOG[1]), *LOG[2:]], ("lab-1", 1, None))
    assert found.fault == "event 2 was altered"


def test_a_kept_head_proves_all_before_it():
    found = verdict(LOG, kept=head_of(LOG[:6]))
    assert found.fault is None
    assert "up to event 6 they are those of the kept head" in found.proven
    assert found.unproven == "that no event was removed from the end after event 6"


@given(st.integers(0, 8), st.sampled_from([1, 2, 3, 5]))
def test_an_altered_event_is_named(place, column):
    log = list(LOG)
    log[place] = altered(log[place], column)
    expected = f"event {place + 1} was altered"
    assert verdict(log, kept=HEAD).fault.startswith(expected)
    without = verdict(log).fault
    if column == 5 and place == 8:
        assert without == "event 8 was altered, or event 9 was", "the end has no witness"
    elif place == 8:
        assert without is None, "nothing can tell that the last one is another"
    else:
        assert without.startswith(expected)


@given(st.integers(0, 8), st.integers(1, 9))
def test_what_was_taken_out_is_named(place, count):
    rest = LOG[:place] + LOG[place + count :]
    last = min(place + count, 9)
    expected = {
        True: f"event {last} was removed",
        False: f"events {place + 1} to {last} were removed",
    }[place + 1 == last]
    assert verdict(rest, kept=HEAD).fault == expected
    if last < 9:
        assert verdict(rest).fault == expected
    else:
        assert verdict(rest).fault is None, "the end has no witness but a kept head"


@given(st.sets(st.integers(0, 8), min_size=1), st.sampled_from([1, 2, 3]))
def test_the_first_of_many_altered_is_named(places, column):
    log = [altered(row, column) if place in places else row for place, row in enumerate(LOG)]
    fault = verdict(log, kept=HEAD).fault
    assert fault.startswith(f"event {min(places) + 1} was altered"), f"{places} gave {fault}"


@given(st.permutations(range(9)).filter(lambda order: order != list(range(9))), st.booleans())
def test_events_in_another_order_are_named_at_the_first(order, chained):
    """Their numbers stay in order, or the table would sort them; `chained` moves `previous`, too."""
    log = [
        (LOG[place][0], *LOG[other][1:5], LOG[other if chained else place][5])
        for place, other in enumerate(order)
    ]
    first = next(place for place, other in enumerate(order) if place != other)
    fault = verdict(log, kept=HEAD).fault
    assert f"event {first + 1} was" in fault, f"{order} gave {fault}"


def test_an_event_that_is_no_text_is_named():
    verifier = Verifier()
    verifier.feed(LOG[:4])
    verifier.unreadable(5)
    verifier.feed(LOG[5:])
    assert verifier.verdict().fault == "event 5 was altered"


@given(st.integers(0, 7))
def test_a_chain_written_anew_is_found_by_a_kept_head_alone(place):
    changed = altered(LOG[place])
    log = [*LOG[:place], changed, *a_log(8 - place, place + 2, digest_of(changed))]
    assert verdict(log).fault is None
    assert "the kept head says otherwise" in verdict(log, kept=HEAD).fault
    assert verdict(log, kept=head_of(LOG[: place + 1])).fault.startswith(
        f"event {place + 1} was altered, or one before"
    )


# --- behind a checkpoint -----------------------------------------------------------------------------


def test_a_pruned_log_is_proven_from_its_checkpoint_on():
    found = verdict(LOG[4:], [head_of(LOG[:4])], HEAD)
    assert found.fault is None
    assert "events 5 to 9 follow from each other; 4 before them were pruned" in found.proven


@pytest.mark.parametrize("left", range(5))
def test_a_pruning_that_was_broken_off_is_proven(left):
    assert verdict(LOG[left:], [head_of(LOG[:4])], HEAD).fault is None


def test_what_was_altered_before_a_pruning_that_was_broken_off_is_named():
    log = [*LOG[:2], altered(LOG[2], 5), *LOG[3:]]
    assert verdict(log[2:], [head_of(LOG[:4])]).fault == "event 3 was altered"
    changed = [altered(LOG[2]), *LOG[3:]]
    assert verdict(changed, [head_of(LOG[:4])]).fault == "event 3 was altered"


def test_more_than_the_checkpoint_says_is_taken_out():
    assert verdict(LOG[5:], [head_of(LOG[:4])]).fault == "events 1 to 5 were removed"
    assert verdict(LOG[4:]).fault == "events 1 to 4 were removed"


def test_the_first_behind_a_checkpoint_must_follow_from_it():
    assert verdict(LOG[4:], [Head(4, "0" * 64)]).fault == (
        "event 5 was altered, or the checkpoint that names event 4 was"
    )


def test_a_head_of_the_last_event_that_a_broken_off_pruning_deleted():
    pruned, head = [head_of(LOG[:6])], head_of(LOG[:3])
    assert verdict(LOG[3:], pruned, head).fault is None
    assert "event 3 was altered" in verdict(LOG[3:], pruned, Head(3, "0" * 64)).fault


def test_a_head_from_before_the_checkpoint():
    pruned = [head_of(LOG[:4])]
    assert verdict(LOG[4:], pruned, head_of(LOG[:4])).fault is None
    assert "event 3 was pruned" in verdict(LOG[4:], pruned, head_of(LOG[:3])).fault
    assert "event 4 was altered before" in verdict(LOG[4:], pruned, Head(4, "0" * 64)).fault


def test_an_empty_log():
    assert verdict([]).proven == "there is no event yet"
    assert verdict([], kept=HEAD).fault == "events 1 to 9 were removed"


def test_a_head_is_read_as_it_was_written():
    assert Head.parse(str(HEAD)) == HEAD
    for text in ("", "9", "0:" + "0" * 64, "9:" + "0" * 63, "9:" + "G" * 64, "٣:" + "0" * 64):
        with pytest.raises(ValueError, match=r"^$"):
            Head.parse(text)
