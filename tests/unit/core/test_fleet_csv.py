"""A CSV file of ICEs: what it says, and on which line it is wrong."""

from __future__ import annotations

import pytest

from gateway.core.fleet_csv import FleetRow, read_fleet
from gateway.core.ice import IceType

HEADER = "ice_name,ice_type,user,labels\n"


def faults(text):
    return [str(fault) for fault in read_fleet(text).faults]


def test_a_file_names_its_ices():
    text = (
        "\ufeffICE_NAME, ice_type ,user,labels\r\n"
        'lab-1,normal,"Müller, Jo",os=windows; room = 4.12 ;\r\n'
        "\r\n"
        ",,,\r\n"
        '"build-2",CI-CD\r\n'
    )
    assert read_fleet(text).rows == [
        FleetRow(2, "lab-1", IceType.NORMAL, "Müller, Jo", {"os": "windows", "room": "4.12"}),
        FleetRow(5, "build-2", IceType.CI_CD),
    ]
    assert faults(text) == []


def test_columns_come_in_any_order():
    fleet = read_fleet("user,ice_type,ice_name\nalice,normal,lab-1")
    assert fleet.rows == [FleetRow(2, "lab-1", IceType.NORMAL, "alice")]


def test_each_fault_names_its_line_and_column():
    text = HEADER + (
        "lab-1,normal,,\n"
        '"lab-2",normal,"al\nice",\n'
        "-x,virtual,,OS=1\n"
        "good,ci-cd,,a=1\n"
        "GOOD,ci-cd,bob,a\n"
        "many,ci-cd,,a=1;a=2\n"
        "wide,ci-cd,,a=1,b=2\n"
        "wide,ci-cd,,a=1,b=2\n"
        f"full,ci-cd,,{';'.join(f'k{number}=1' for number in range(33))}\n"
        "last,normal,bob\n"
    )
    assert [row.ice_name for row in read_fleet(text).rows] == ["good", "last"]
    said = faults(text)
    assert [fault.rpartition(": ")[0] for fault in said if "user: " in fault] == [
        "line 2: user",
        "line 3: user",
        "line 7: user",
    ]
    assert said[2].startswith("line 5: ice_name: needs 1 to 64 characters")
    assert said[3] == "line 5: ice_type: needs normal or ci-cd"
    assert said[4].startswith("line 5: labels: a label's key has")
    assert said[5] == "line 7: ice_name: is on line 6 already"
    assert said[7] == "line 7: labels: a is not key=value"
    assert said[8] == "line 8: labels: has the key a twice"
    assert said[9] == "line 9: has 5 cells, the header 4: put quotes around a comma"
    assert said[11] == "line 11: labels: an ICE has at most 32 labels"
    assert len(said) == 12


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "line 1: needs a header: ice_name,ice_type,user,labels"),
        ("\n \n", "line 1: needs a header: ice_name,ice_type,user,labels"),
        (HEADER, "line 1: no ICE follows the header"),
        ("lab-1,ci-cd\n", "line 1: lab-1: is not a column"),
        ("ice_name,user\n", "line 1: ice_type: is missing in the header"),
        ("ice_name,ice_type,ice_name\n", "line 1: ice_name: is twice in the header"),
        ("ice_name;ice_type\n", "line 1: needs a header with commas"),
        (HEADER + 'a,ci-cd\n"b,ci-cd\n', "line 3: is not CSV: "),
        (HEADER + 'a,ci-cd\n"b"x,ci-cd\n', "line 3: is not CSV: "),
    ],
)
def test_a_file_that_is_wrong_as_a_whole(text, fault):
    assert faults(text)[0].startswith(fault)


def test_a_file_is_bounded():
    fleet = read_fleet(HEADER + "a,ci-cd\n-b,ci-cd\nc,ci-cd\n", at_most=2)
    assert [row.ice_name for row in fleet.rows] == ["a"]
    assert str(fleet.faults[-1]) == "line 4: at most 2 ICEs in one file"
