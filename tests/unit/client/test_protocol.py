"""The words of the wire: contract sections 5 and 6, and JSON-RPC 2.0."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import protocol
from client.protocol import (
    CLOSINGS,
    REFUSALS,
    CloseCode,
    MessageTooComplex,
    NotJsonRpc,
    RefusalCode,
    RpcRefusal,
    Then,
    decode,
)

UNSET = msgspec.UNSET

# --- the catalogues are the contract's ---------------------------------------------------------


def test_the_refusals_of_section_5_in_its_order():
    assert [(code.status, code.value, code.retry) for code in RefusalCode] == [
        (400, "bad-handshake", False),
        (503, "draining", True),
        (503, "overloaded", True),
        (401, "token-missing", False),
        (401, "token-invalid", False),
        (429, "too-many-attempts", True),
        (401, "proof-invalid", False),
        (401, "use-dpop-nonce", True),
        (503, "store-unavailable", True),
        (403, "deregistered", False),
        (401, "token-replaced", False),
        (401, "token-expired", False),
        (403, "key-mismatch", False),
    ]
    assert list(REFUSALS.items()) == [(code.value, code) for code in RefusalCode]


def test_the_closings_of_section_6():
    assert {code.value: (code.reason, code.then) for code in CloseCode} == {
        4101: ("deregistered", Then.STOP),
        4102: ("token-replaced", Then.STOP),
        4103: ("superseded", Then.WAIT),
        4201: ("disconnected", Then.RECONNECT),
        4202: ("slow-consumer", Then.RECONNECT),
        4203: ("heartbeat-timeout", Then.RECONNECT),
        1002: ("protocol-error", Then.RECONNECT),
        1003: ("text-only", Then.RECONNECT),
        1007: ("invalid-utf-8", Then.RECONNECT),
        1008: ("not-json-rpc", Then.RECONNECT),
        1009: ("too-big", Then.RECONNECT),
        1012: ("restart", Then.AFTER),
    }
    assert list(CLOSINGS.items()) == [(code.value, code) for code in CloseCode]


def test_codes_are_written_as_they_are_sent():
    """Whether they go into JSON, a log line, a label or a sentence."""
    for code in (*RefusalCode, *CloseCode, *RpcRefusal):
        assert f"{code} {code!s}" == f"{code.value} {code.value}"
        assert msgspec.json.encode(code) == json.dumps(code).encode()
        assert json.loads(json.dumps(code)) == code.value


def test_reasons_fit_a_close_frame():
    """RFC 6455 section 5.5: a control frame has 125 bytes at most, two of them for the code."""
    reasons = [code.reason.encode() for code in CloseCode]
    reasons.append(msgspec.json.encode(protocol.RetryAfter(1234.567891)))
    assert max(map(len, reasons)) <= 123


def test_the_numbers_of_the_contract():
    assert protocol.PATH == "/ice/v1"
    assert protocol.SUBPROTOCOL == "ice.v1"
    assert protocol.MAX_MESSAGE == 1_048_576
    assert protocol.MAX_TOKEN == 1024
    assert protocol.PROOF_WINDOW == 60
    assert protocol.SUPERSEDED_WAIT == (60, 120)
    assert protocol.SUPERSEDED_LIMIT == (3, 15 * 60)
    assert protocol.SLOW_RETRY == (5 * 60, 10 * 60)
    assert sorted(protocol.RETRIED_ONCE_ADMITTED) == [
        "bad-handshake",
        "proof-invalid",
        "token-invalid",
    ]


# --- one message -------------------------------------------------------------------------------


def rpc(**members):
    return json.dumps({"jsonrpc": "2.0", **members})


@pytest.mark.parametrize(
    ("text", "members"),
    [
        (rpc(method="m"), {"method": "m"}),
        (rpc(method="m", params={"a": 1}), {"method": "m"}),
        (rpc(method="m", params=[1]), {"method": "m"}),
        ('{"jsonrpc":"2.0","method":"m","params":   {} }', {"method": "m"}),
        (rpc(method="", id=0), {"method": "", "id": 0}),
        (rpc(method="m", id="a"), {"method": "m", "id": "a"}),
        (rpc(method="m", id=-1), {"method": "m", "id": -1}),
        (rpc(method="m", id=None), {"method": "m", "id": None}),
        (rpc(method="m", more={"a": "b"}), {"method": "m"}),
        (rpc(id=1, result=None), {"id": 1}),
        (rpc(id=None, error={"code": -32700, "message": "x"}), {"id": None}),
        (b'\n{"method":"m","jsonrpc":"2.0"}\n', {"method": "m"}),
    ],
)
def test_one_message(text, members):
    message = decode(text)
    for name in ("method", "id"):
        assert getattr(message, name) == members.get(name, UNSET), name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "truncated"),
        ("{", "truncated"),
        ("null", "Expected `object`"),
        ("[]", "Expected `object`, got `array`"),
        (f"[{rpc(method='m')}]", "Expected `object`, got `array`"),
        (rpc(method="m") * 2, "trailing"),
        ('{"method":"m"}', "jsonrpc"),
        ('{"jsonrpc":2.0,"method":"m"}', "jsonrpc"),
        ('{"jsonrpc":"1.0","method":"m"}', "jsonrpc"),
        (rpc(), "neither a method nor an id"),
        (rpc(params={}), "neither a method nor an id"),
        (rpc(result=1), "neither a method nor an id"),
        (rpc(method=1), "method"),
        (rpc(method=None), "method"),
        *((rpc(method="m", params=bad), "params") for bad in (None, 1, "text", True)),
        *((rpc(method="m", id=bad), "id") for bad in (True, [], {})),
        (rpc(method="m", id=1, result=1), "either a call or a response"),
        (rpc(method="m", error={"code": 1, "message": ""}), "either a call or a response"),
        (rpc(id=1), "either a result or an error"),
        (rpc(id=1, result=1, error={"code": 1, "message": ""}), "either a result or an error"),
        *((rpc(id=1, error=bad), "error") for bad in (None, 1, {}, {"code": "1", "message": ""})),
        ('{"jsonrpc":"2.0","method":"m","params":{"a":NaN}}', "malformed"),
        ('{"jsonrpc":"2.0","method":"m","params":{"a":1,}}', "malformed"),
        ("\ufeff" + rpc(method="m"), "malformed"),
        ('{"jsonrpc":"2.0","method":"m","params":' + "[" * 100_000, "recursion"),
        ('{"jsonrpc":"2.0","method":"m","params":' + "[" * 5000 + "]" * 5000 + "x}", "malformed"),
    ],
    ids=lambda given: str(given)[:60],
)
def test_not_one_message(text, why):
    with pytest.raises(NotJsonRpc, match=f"(?i){why}"):
        decode(text)


def nested(levels):
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    "around",
    [
        '{"jsonrpc":"2.0","method":"operation.finish","params":{"id":"a","result":%s},"id":1}',
        '{"id":1,"params":{"error":%s,"id":"a"},"method":"operation.finish","jsonrpc":"2.0"}',
        '{"jsonrpc":"2.0","method":"operation.run","params":{"params":%s,"id":"a"},"id":1}',
        '{"jsonrpc":"2.0","method":"operation.progress","params":{"data":%s,"id":"a"}}',
        '{"jsonrpc":"2.0","id":1,"result":%s}',
        '{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"","data":%s}}',
        '{"jsonrpc":"2.0","method":"other","params":%s}',
    ],
)
def test_a_value_may_have_100_levels_wherever_it_stands(around):
    # An error's data stands in an object of its own, which counts.
    most = 99 if '"error":{' in around else 100
    read = decode(around % nested(most))
    for levels in (most + 1, 900, 5000, 100_000):
        with pytest.raises(MessageTooComplex, match="100 levels") as refused:
            decode(around % nested(levels))
        assert (refused.value.message.method, refused.value.message.id) == (read.method, read.id)
        if b'"id":"a"' in bytes(read.params or b""):
            assert protocol.params_of(refused.value.message, Named).id == "a"


class Named(msgspec.Struct):
    id: str


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" * 31])
def test_numbers_beyond_their_bounds_are_refused(number):
    with pytest.raises(MessageTooComplex, match="number"):
        decode(f'{{"jsonrpc":"2.0","method":"m","params":[{number}]}}')


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)
MESSAGES = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0")},
    optional={
        "method": st.just("m") | JSON,
        "params": JSON
        | st.dictionaries(st.sampled_from(["id", "kind", "version", "running"]), JSON),
        "id": st.integers() | JSON,
        "result": JSON,
        "error": st.just({"code": 1, "message": "m"}) | JSON,
    },
)
TEXTS = (
    st.text(max_size=30)
    | st.text('{}[]:,"\\u0d8e1.-+ntfx\n', max_size=30)
    | st.builds(
        lambda message, cut, ascii_only: json.dumps(message, ensure_ascii=ascii_only)[:cut],
        MESSAGES,
        st.none() | st.integers(0, 80),
        st.booleans(),
    )
)


@settings(max_examples=100)
@given(TEXTS, st.booleans())
def test_nothing_but_not_json_rpc_is_raised(text, as_bytes):
    try:
        message = decode(text.encode() if as_bytes else text)
    except NotJsonRpc:
        return
    is_call = message.method is not UNSET
    is_response = (message.result is UNSET) != (message.error is UNSET)
    assert is_call != is_response
    for shape in (protocol.Hello, protocol.Run, protocol.Progress, protocol.Finish):
        try:
            protocol.params_of(message, shape)
        except msgspec.ValidationError:
            continue


# --- what we say -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "document"),
    [
        (protocol.notification("m", {"a": 1}), {"method": "m", "params": {"a": 1}}),
        (protocol.request("m", [], "7"), {"method": "m", "params": [], "id": "7"}),
        (protocol.result(7, {}), {"result": {}, "id": 7}),
        (
            protocol.error(None, -32601, "x"),
            {"error": {"code": -32601, "message": "x"}, "id": None},
        ),
    ],
)
def test_what_we_say_is_json_rpc(said, document):
    assert json.loads(said) == {"jsonrpc": "2.0", **document}
    decode(said)


@pytest.mark.parametrize(
    ("message", "params"),
    [
        (protocol.Hello(version="1"), {"version": "1", "running": []}),
        (protocol.Hello(accepts=[]), {"running": [], "accepts": []}),
        (protocol.Accepts(), {}),
        (protocol.Accepts(accepts=[]), {"accepts": []}),
        (protocol.Log(id="a", text=""), {"id": "a", "text": ""}),
    ],
)
def test_members_that_are_sent(message, params):
    assert json.loads(protocol.notification("m", message))["params"] == params


@pytest.mark.parametrize(
    ("params", "hello"),
    [
        ({}, protocol.Hello()),
        ({"params": {}}, protocol.Hello()),
        (
            {"params": {"version": "1", "hostname": None, "running": ["a"], "more": 1}},
            protocol.Hello(version="1", running=["a"]),
        ),
        ({"params": {"accepts": []}}, protocol.Hello(accepts=[])),
        ({"params": {"accepts": ["debug", "?"]}}, protocol.Hello(accepts=["debug", "?"])),
    ],
)
def test_parameters_may_be_missing_or_more_than_are_known(params, hello):
    assert protocol.params_of(decode(rpc(method="ice.hello", **params)), protocol.Hello) == hello


@pytest.mark.parametrize(
    ("params", "shape"),
    [
        ({"version": 1}, protocol.Hello),
        ([], protocol.Hello),
        ({"running": "a"}, protocol.Hello),
        ({"accepts": "debug"}, protocol.Hello),
        ({"accepts": [1]}, protocol.Accepts),
        ({}, protocol.Run),
        ({"id": "a"}, protocol.Log),
        ({"id": "a", "text": None}, protocol.Log),
        ({"id": "a", "outcome": "perhaps"}, protocol.Finish),
    ],
)
def test_parameters_of_another_shape(params, shape):
    with pytest.raises(msgspec.ValidationError):
        protocol.params_of(decode(rpc(method="m", params=params)), shape)
