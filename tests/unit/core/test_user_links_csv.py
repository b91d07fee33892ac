"""A CSV file of users and their subjects: what it says, and on which line it is wrong."""

from __future__ import annotations

from gateway.core.user_links_csv import UserLink, read_user_links

HEADER = "user,subject\n"


def faults(text, **limits):
    return [str(fault) for fault in read_user_links(text, **limits)[1]]


def test_a_file_names_users_and_subjects():
    links, wrong = read_user_links('\ufeffSubject , USER\r\n24-8,"Müller, Jo"\r\n\r\nA b|c,zoë\r\n')
    assert links == [UserLink(2, "Müller, Jo", "24-8"), UserLink(4, "zoë", "A b|c")]
    assert not wrong


def test_a_user_and_a_subject_stand_once():
    text = HEADER + "zoë,z\nZoe\u0308,y\nbob,z\nann,Z\n"
    assert faults(text) == [
        "line 3: user: is on line 2 already",
        "line 4: subject: is on line 2 already",
    ], "case counts in subjects alone"
    assert [link.user for link in read_user_links(text)[0]] == ["zoë", "ann"]


def test_each_fault_names_its_line():
    said = faults(HEADER + f"alice,\n,a\n{'x' * 129},b\nbob,zoë\nbob,{'x' * 256}\na,b,c\n")
    assert [fault.rpartition(": ")[0] for fault in said] == [
        "line 2: subject",
        "line 3: user",
        "line 4: user",
        "line 5: subject",
        "line 6: user",
        "line 6: subject",
        "line 7: has 3 cells, the header 2",
    ]


def test_what_is_no_such_file():
    assert faults("") == ["line 1: needs a header: user,subject"]
    assert faults("alice\n") == ["line 1: needs a header with commas: user,subject"]
    assert faults(HEADER) == ["line 1: no user follows the header"]
    assert faults(HEADER + "a,1\nb,2\n", at_most=1) == ["line 3: at most 1 users in one file"]
    assert "is not CSV" in faults(HEADER + 'a,"1\n')[0]
