from __future__ import annotations

from gateway.core.search import own_text, session_text, words_of


def test_words_are_folded_and_each_counts_once():
    assert words_of("  Lab lab GRÜSSE\tGrüße ") == ("lab", "grüsse")
    assert words_of(" ") == ()


def test_what_an_admin_says_is_searched_folded():
    text = own_text("Lab-1", "Grüße", {"os": "Windows", "site": "Paris"}, "The Loan\nmachine")
    for word in words_of("LAB-1 grüsse os=windows PARIS loan MACHINE"):
        assert word in text
    assert own_text("ci-1", None, {}, "") == "ci-1"


def test_what_a_session_said_is_searched_folded():
    assert session_text("192.0.2.1", "DESK-7") == "192.0.2.1\ndesk-7"
    assert session_text("192.0.2.1", None) == "192.0.2.1"
