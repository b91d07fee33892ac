"""The rules of an ICE: contract sections 1 to 3, and the order of refusals of section 5."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from client.protocol import CLOSINGS
from gateway.core import ice as rules
from gateway.core.ice import Action, Ice, IceType, Status, WrongStatus

THEN = datetime(2026, 11, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
EXPIRY = NOW + timedelta(days=7)

PROVISIONED = Ice(
    "lab-1",
    IceType.NORMAL,
    "old-token",
    Status.PROVISIONED,
    "alice",
    3,
    None,
    provisionedon=THEN,
    expireson=NOW + timedelta(days=1),
    key_id="old",
)
REGISTERED = replace(
    PROVISIONED,
    status=Status.REGISTERED,
    key_thumbprint="old-key",
    registeredon=THEN,
    expireson=None,
)
DEREGISTERED = replace(
    REGISTERED, status=Status.DEREGISTERED, key_thumbprint=None, deregisteredon=THEN
)
ENTRIES = (PROVISIONED, REGISTERED, DEREGISTERED)


def by_status(entry):
    return str(entry.status)


# --- the table ---------------------------------------------------------------------------------

ACT = {
    Action.REPROVISION: lambda ice: ice.renew(
        Action.REPROVISION, "new-token", key_id="new", now=NOW, expires=EXPIRY
    ),
    Action.REGISTER: lambda ice: ice.register("new-key", now=NOW),
    Action.REREGISTER: lambda ice: ice.renew(
        Action.REREGISTER, "new-token", key_id="new", now=NOW, expires=EXPIRY
    ),
    Action.DEREGISTER: lambda ice: ice.deregister("new-token", now=NOW),
}
REPLACED = {"ice_token": "new-token", "generation": 4}
RENEWED = {
    **REPLACED,
    "key_id": "new",
    "status": Status.PROVISIONED,
    "key_thumbprint": None,
    "provisionedon": NOW,
    "registeredon": None,
    "deregisteredon": None,
    "expireson": EXPIRY,
}
CHANGES = {
    (Action.REPROVISION, Status.PROVISIONED): RENEWED,
    (Action.REGISTER, Status.PROVISIONED): {
        "status": Status.REGISTERED,
        "key_thumbprint": "new-key",
        "registeredon": NOW,
        "expireson": None,
    },
    (Action.REREGISTER, Status.REGISTERED): RENEWED,
    (Action.REREGISTER, Status.DEREGISTERED): RENEWED,
    (Action.DEREGISTER, Status.REGISTERED): {
        **REPLACED,
        "key_id": None,
        "status": Status.DEREGISTERED,
        "key_thumbprint": None,
        "deregisteredon": NOW,
    },
}


@pytest.mark.parametrize("entry", ENTRIES, ids=by_status)
@pytest.mark.parametrize("action", ACT)
def test_an_action_does_what_its_row_says_and_every_other_combination_is_refused(action, entry):
    changes = CHANGES.get((action, entry.status))
    if changes is None:
        expected = WrongStatus("lab-1", action, entry.status)
    else:
        expected = replace(entry, **changes)
    assert ACT[action](entry) == expected


def test_the_table_has_the_contracts_rows_and_no_other():
    rows = {
        (action, source): (row.target, row.renews, row.closes)
        for action, row in rules.RULES.items()
        for source in row.sources
    }
    assert rows == {
        (Action.PROVISION, None): (Status.PROVISIONED, True, None),
        (Action.REPROVISION, Status.PROVISIONED): (Status.PROVISIONED, True, None),
        (Action.REGISTER, Status.PROVISIONED): (Status.REGISTERED, False, None),
        (Action.REREGISTER, Status.REGISTERED): (Status.PROVISIONED, True, 4102),
        (Action.REREGISTER, Status.DEREGISTERED): (Status.PROVISIONED, True, 4102),
        (Action.DEREGISTER, Status.REGISTERED): (Status.DEREGISTERED, True, 4101),
    }
    assert CLOSINGS[4101].reason == "deregistered"
    assert CLOSINGS[4102].reason == "token-replaced"


@pytest.mark.parametrize(
    ("refused", "sentence"),
    [
        (
            WrongStatus("lab-1", Action.DEREGISTER, Status.PROVISIONED),
            "lab-1 is provisioned, so it cannot be deregistered; it can be reprovisioned",
        ),
        (
            WrongStatus("lab-1", Action.REPROVISION, Status.REGISTERED),
            "lab-1 is registered, so it cannot be reprovisioned; it can be reregistered or deregistered",
        ),
        (
            WrongStatus("lab-1", Action.DEREGISTER, Status.DEREGISTERED),
            "lab-1 is deregistered, so it cannot be deregistered; it can be reregistered",
        ),
    ],
)
def test_a_refusal_tells_the_admin_the_status_and_what_may_be_done(refused, sentence):
    assert refused.sentence == sentence


# --- provisioning ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "user"), [(IceType.NORMAL, "alice"), (IceType.CI_CD, None)])
def test_a_provisioned_ice_begins_with_generation_1(kind, user):
    made = Ice.provision("lab-1", kind, user, "hash", key_id="k1", now=NOW, expires=EXPIRY)
    assert made == Ice(
        "lab-1",
        kind,
        "hash",
        Status.PROVISIONED,
        user,
        1,
        None,
        provisionedon=NOW,
        expireson=EXPIRY,
        key_id="k1",
    )


@pytest.mark.parametrize(
    ("name", "kind", "user", "complaint"),
    [
        ("lab 1", IceType.NORMAL, "alice", "an ICE name has 1 to 64 characters"),
        ("lab-1", IceType.NORMAL, None, "a normal ICE has one user"),
        ("lab-1", IceType.CI_CD, "alice", "a ci-cd ICE has none"),
    ],
)
def test_a_bad_name_or_user_is_never_provisioned(name, kind, user, complaint):
    with pytest.raises(ValueError, match=complaint):
        Ice.provision(name, kind, user, "hash", key_id="k1", now=NOW, expires=None)


@pytest.mark.parametrize("name", ["a", "7", "Lab-1", "a.b_c-d", "0..--__", "x" * 64])
def test_good_names(name):
    assert rules.valid_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 65,
        ".lab",
        "_lab",
        "-lab",
        "lab 1",
        " lab",
        "lab/1",
        "lab@1",
        "lab\x00",
        "lab\n",
        "lab\n1",
        "\nlab",
        "l\u00e4b",
        "lab\u0661",  # a digit in Arabic
        "la\u212a",  # the Kelvin sign, which lower() turns into k
    ],
)
def test_bad_names(name):
    assert not rules.valid_name(name)


def test_names_are_the_same_with_case_folded():
    assert rules.fold("Lab-1") == rules.fold("LAB-1") == "lab-1"


@pytest.mark.parametrize(
    ("kind", "operations"),
    [
        (IceType.NORMAL, ["scrape", "debug", "execute", "remote-execute", "schedule"]),
        (IceType.CI_CD, ["remote-execute", "schedule"]),
    ],
)
def test_what_each_type_may_be_sent(kind, operations):
    assert list(rules.OPERATIONS[kind]) == operations


# --- judging an ICE that connects --------------------------------------------------------------

OLDER = {"generation": 2, "ice_token": "older-token"}


@pytest.mark.parametrize(
    ("entry", "brings", "code"),
    [
        (PROVISIONED, {}, None),
        (PROVISIONED, {"key_thumbprint": "any-key"}, None),
        (PROVISIONED, {"now": PROVISIONED.expireson - timedelta(microseconds=1)}, None),
        (replace(PROVISIONED, expireson=None), {"now": NOW + timedelta(days=9999)}, None),
        (REGISTERED, {}, None),
        (PROVISIONED, {"now": PROVISIONED.expireson}, "token-expired"),
        (PROVISIONED, OLDER, "token-replaced"),
        (REGISTERED, OLDER, "token-replaced"),
        (REGISTERED, {"key_thumbprint": "other-key"}, "key-mismatch"),
        (DEREGISTERED, {}, "deregistered"),
        (DEREGISTERED, OLDER, "deregistered"),
        *itertools.product(
            ENTRIES,
            [
                {"ice_type": "ci-cd"},
                {"generation": 4},
                {"ice_token": "forged"},
                # token-invalid comes before everything else that is wrong, too
                {**OLDER, "ice_type": "ci-cd"},
                {"ice_token": "forged", "key_thumbprint": "other-key", "now": EXPIRY},
            ],
            ["token-invalid"],
        ),
        (PROVISIONED, {**OLDER, "now": EXPIRY}, "token-replaced"),
        (REGISTERED, {**OLDER, "key_thumbprint": "other-key"}, "token-replaced"),
        (DEREGISTERED, {"key_thumbprint": "other-key", "now": EXPIRY}, "deregistered"),
    ],
)
def test_the_first_refusal_in_the_contracts_order_answers(entry, brings, code):
    good = {
        "ice_type": "normal",
        "generation": 3,
        "ice_token": "old-token",
        "key_thumbprint": "old-key",
        "now": NOW,
    }
    assert entry.judge(**{**good, **brings}) == code


# --- any number of admins and ICEs, in any order -----------------------------------------------

NAMES = st.sampled_from(["lab-1", "LAB-1", "ci-1"])
KEYS = st.sampled_from(["key-a", "key-b"])
TTL = timedelta(days=7)
TABLE = {
    (Status.PROVISIONED, Status.PROVISIONED, 1),
    (Status.PROVISIONED, Status.REGISTERED, 0),
    (Status.REGISTERED, Status.PROVISIONED, 1),
    (Status.REGISTERED, Status.DEREGISTERED, 1),
    (Status.DEREGISTERED, Status.PROVISIONED, 1),
}


@dataclass(frozen=True)
class Token:
    """A genuine token, as an ICE holds it."""

    ice_name: str
    ice_type: IceType
    generation: int
    digest: str


class Life(RuleBasedStateMachine):
    """Admins and ICEs act on copies of entries that may be outdated; the store compares and swaps."""

    copies = Bundle("copies")
    tokens = Bundle("tokens")

    def __init__(self):
        super().__init__()
        self.now = NOW
        self.table: dict[str, Ice] = {}
        self.made: list[Token] = []
        self.bound: dict[tuple[str, int], str] = {}

    def digest(self):
        return hashlib.sha256(str(len(self.made)).encode()).hexdigest()

    def issue(self, ice):
        """The token of this entry; also made when nobody is shown it."""
        token = Token(ice.ice_name, ice.ice_type, ice.generation, ice.ice_token)
        self.made.append(token)
        return token

    def swap(self, old, new):
        """The store's `replace`: guarded by token, type, status and generation."""
        held = self.table[rules.fold(old.ice_name)]
        same = ("ice_name", "ice_type", "ice_token", "status", "generation")
        if any(getattr(held, name) != getattr(old, name) for name in same):
            return False
        self.changed(held, new)
        self.table[rules.fold(old.ice_name)] = new
        return True

    def changed(self, old, new):
        step = (old.status, new.status, new.generation - old.generation)
        assert step in TABLE, f"{step} is not in the table of actions"
        for name in ("ice_name", "ice_type", "provisionedto"):
            assert getattr(old, name) == getattr(new, name), f"{name} never changes"

    def judge(self, token, key):
        held = self.table[rules.fold(token.ice_name)]
        return held.judge(token.ice_type, token.generation, token.digest, key, self.now)

    @rule(target=tokens, name=NAMES)
    def provision(self, name):
        kind = IceType.CI_CD if name.startswith("ci") else IceType.NORMAL
        user = None if kind is IceType.CI_CD else "alice"
        made = Ice.provision(
            name, kind, user, self.digest(), key_id="k1", now=self.now, expires=self.now + TTL
        )
        if rules.fold(name) in self.table:
            return multiple()
        self.table[rules.fold(name)] = made
        return self.issue(made)

    @precondition(lambda self: self.table)
    @rule(target=copies, data=st.data())
    def read(self, data):
        """Somebody reads an entry and keeps the copy, for however long."""
        return self.table[data.draw(st.sampled_from(sorted(self.table)))]

    @rule(
        target=tokens, copy=copies, action=st.sampled_from([Action.REPROVISION, Action.REREGISTER])
    )
    def renew(self, copy, action):
        new = copy.renew(action, self.digest(), key_id="k1", now=self.now, expires=self.now + TTL)
        if isinstance(new, WrongStatus) or not self.swap(copy, new):
            return multiple()
        return self.issue(new)

    @rule(copy=copies)
    def deregister(self, copy):
        new = copy.deregister(self.digest(), now=self.now)
        if not isinstance(new, WrongStatus) and self.swap(copy, new):
            self.issue(new)

    @rule(copy=copies, token=tokens, key=KEYS)
    def register_on_what_was_read_before(self, copy, token, key):
        """A handshake whose entry was read some time ago; only the compare-and-set can stop it."""
        if copy.ice_name == token.ice_name and copy.status is Status.PROVISIONED:
            self.arrive(copy, token, key)

    @rule(token=tokens, key=KEYS)
    def connect(self, token, key):
        self.arrive(self.table[rules.fold(token.ice_name)], token, key)

    @rule(token=consumes(tokens))
    def lose(self, token):
        """A token is lost: nobody holds it any more."""

    @rule(days=st.integers(1, 9))
    def wait(self, days):
        self.now += timedelta(days=days)

    def arrive(self, read, token, key):
        if read.judge(token.ice_type, token.generation, token.digest, key, self.now) is not None:
            return
        if read.status is Status.PROVISIONED:
            registered = read.register(key, now=self.now)
            if not self.swap(read, registered):
                return
        held = self.table[rules.fold(token.ice_name)]
        assert held.status is Status.REGISTERED, f"admitted while {held.status}"
        assert held.generation == token.generation, "an older generation was admitted"
        assert held.key_thumbprint == key, "admitted without the bound key"
        first = self.bound.setdefault((held.ice_name, held.generation), key)
        assert first == key, "a second key was bound to one token"

    @invariant()
    def only_the_newest_token_admits_and_none_while_deregistered(self):
        for token in self.made:
            held = self.table[rules.fold(token.ice_name)]
            admitted = [key for key in ("key-a", "key-b") if self.judge(token, key) is None]
            if admitted:
                assert token.digest == held.ice_token, f"{token} admits, {held} has another"
                assert held.status is not Status.DEREGISTERED, f"{token} admits a deregistered ICE"
                assert held.status is Status.PROVISIONED or len(admitted) == 1

    @invariant()
    def a_generation_has_one_token_and_never_goes_back(self):
        for ice in self.table.values():
            made = [token for token in self.made if token.ice_name == ice.ice_name]
            assert [token.generation for token in made] == list(range(1, ice.generation + 1))
            assert made[-1].digest == ice.ice_token

    @invariant()
    def entries_obey_the_tables_checks(self):
        for ice in self.table.values():
            assert (ice.key_thumbprint is not None) is (ice.status is Status.REGISTERED)
            assert (ice.provisionedto is None) is (ice.ice_type is IceType.CI_CD)
            assert (ice.deregisteredon is not None) is (ice.status is Status.DEREGISTERED)
            assert ice.expireson is None or ice.status is Status.PROVISIONED


Life.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestLife = Life.TestCase
