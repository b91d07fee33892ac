"""The library: the public names, one base of all errors, and what is refused where it is registered."""

import functools
import importlib
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

import client
from client import IceClient, IceClientError, Operation, OperationFailed, Report, Welcome
from client.agent import IceStopped
from client.backoff import ClosedByUs
from client.protocol import OperationKind

ROOT = Path(__file__).parents[2]


def test_the_public_names_are_those_of_the_modules():
    for name in client.__all__:
        assert getattr(client, name).__name__ == name
    assert set(client.__all__) <= set(dir(client))
    assert {IceClient, IceClientError, Operation, OperationFailed, Report, Welcome} == {
        getattr(client, name) for name in client.__all__
    }
    with pytest.raises(AttributeError, match="module 'client' has no attribute 'Token'"):
        _ = client.Token


def test_importing_the_library_loads_no_more_than_the_gateway_needs():
    code = "import sys, client, client.protocol; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


INTERNAL = {
    # Never reaches a user: the client answers, reports or retries.
    *("BadProxy", "JsonTooComplex", "MessageTooComplex", "NotJsonRpc", "_RequestRefused"),
    # Raised by a user.
    "OperationFailed",
}


def test_every_error_for_users_has_one_base():
    found = {}
    for path in (ROOT / "client").glob("*.py"):
        if path.stem != "__main__":
            module = importlib.import_module(f"client.{path.stem}")
            found |= {
                name: value
                for name, value in vars(module).items()
                if isinstance(value, type) and issubclass(value, BaseException)
                if value.__module__ == module.__name__
            }
    others = {name for name, value in found.items() if not issubclass(value, IceClientError)}
    assert others == INTERNAL
    assert {"BadAddress", "PlainHttp", "FolderUnusable", "NotAToken", "BadHandlers"} <= set(found)


@pytest.mark.parametrize(
    ("also", "options"),
    [
        (ValueError, {"gateway_url": "http://gateway.example"}),
        (ValueError, {"gateway_url": "nonsense"}),
        (ValueError, {"gateway_url": "https://gateway.example", "ca_file": __file__}),
        (ValueError, {"accepts": ["dance"]}),
        (ValueError, {"handlers": {"dance": None}}),
        (TypeError, {"handlers": {"execute": print}}),
        (Exception, {"token": "hunter2"}),
    ],
)
def test_a_wrong_argument_is_an_error_of_the_client(make_ice, also, options):
    with pytest.raises(IceClientError) as caught:
        make_ice(**options)
    assert isinstance(caught.value, also)
    assert "\n" not in str(caught.value)


async def test_a_client_that_cannot_begin_or_go_on_raises_an_error_of_the_client(make_ice):
    with pytest.raises(IceClientError, match="no registration token yet"):
        await make_ice(token=None).__aenter__()
    with pytest.raises(IceClientError, match="enter the client"):
        await make_ice().wait()
    ice = make_ice()
    ice.stop()
    async with ice:
        with pytest.raises(IceClientError) as caught:
            await ice.connected()
    assert isinstance(caught.value, IceStopped)
    assert caught.value.outcome == ClosedByUs()


def test_a_machine_without_a_home_folder_is_an_error_of_the_client(monkeypatch):
    def unknown(user):
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(IceClientError, match="no home folder"):
        IceClient("https://gateway.example")


@pytest.mark.parametrize("kind", ["exceute", "", None, 5, ["execute"], print])
def test_a_kind_that_there_is_not_is_refused_where_it_is_registered(make_ice, kind):
    with pytest.raises(ValueError, match=r"unknown kinds: .*; there are scrape, debug") as caught:
        make_ice().operation(kind)
    assert isinstance(caught.value, IceClientError)


async def _handler(operation, report):
    """A coroutine function."""


async def _generator(operation, report):
    yield 1


class _Callable:
    async def __call__(self, operation, report):
        """Also called as a coroutine function."""

    async def method(self, operation, report):
        """Likewise."""

    def plain(self, operation, report):
        """Is none."""


@pytest.mark.parametrize(
    "handler",
    [lambda *_: None, _generator, _Callable().plain, _Callable, None, "execute", _handler(0, 0)],
)
def test_a_handler_that_is_no_coroutine_function_is_refused_where_it_is_registered(
    make_ice, handler
):
    with pytest.raises(TypeError, match="the handler for execute must be a coroutine") as caught:
        make_ice().operation("execute")(handler)
    assert isinstance(caught.value, IceClientError)
    if hasattr(handler, "close"):
        handler.close()


@pytest.mark.parametrize(
    "handler",
    [_handler, _Callable(), _Callable().method, functools.partial(_handler, report=None)],
)
def test_every_coroutine_function_is_a_handler(make_ice, handler):
    for kind in (*OperationKind, "execute"):
        assert make_ice().operation(kind)(handler) is handler


@pytest.mark.parametrize(
    ("also", "wrong"),
    [
        (ValueError, {"fraction": 2}),
        (ValueError, {"fraction": "half"}),
        (ValueError, {"data": float("nan")}),
        (TypeError, {"message": 5}),
        (TypeError, {"fraction": []}),
    ],
)
async def test_a_wrong_progress_report_is_an_error_of_the_client(make_ice, also, wrong):
    ice, operation = make_ice(), Operation(id="op-1", kind="execute")
    report = ice._operations._report(operation)
    with pytest.raises(IceClientError) as caught:
        await report(**wrong)
    assert isinstance(caught.value, also)
