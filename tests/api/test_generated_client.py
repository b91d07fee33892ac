"""A client that `openapi-python-client` generates from the served document works with the gateway."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys

import pytest

from tests.support import work

_PACKAGE = "ice_api"
_SETTINGS = "post_hooks: []\n"
"""The code is used as it is generated; formatting it would take longer than all else."""


@pytest.fixture
async def generated(running, tmp_path, monkeypatch):
    """Imports modules of a client that was generated without a warning."""
    (tmp_path / "settings.yaml").write_text(_SETTINGS)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from openapi_python_client.cli import app; app()"),
        *("generate", "--url", f"{running.url}/admin/api/v1/openapi.json"),
        *("--output-path", _PACKAGE, "--meta", "none"),
        *("--config", "settings.yaml", "--fail-on-warning"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda module: importlib.import_module(f"{_PACKAGE}.{module}")


async def test_generated_client_provisions_operates_and_deregisters(running, generated):
    models = generated("models")
    entered = generated("client").AuthenticatedClient(
        base_url=f"{running.url}/admin/api/v1", token=running.admin.token
    )
    async with entered as client:
        provision = generated("api.ices.provision_ice").asyncio
        new = models.NewNormalIce(ice_name="lab-1", ice_type="normal", provisionedto="alice")
        provisioned = await provision(client=client, body=new)
        connection = await work.greeted(running.ice(provisioned.token))
        machine = models.NewCiCdIce(ice_name="build-1", ice_type="ci-cd")
        assert (await provision(client=client, body=machine)).ice.provisionedto is None
        page = await generated("api.ices.list_ices").asyncio(client=client, q="lab")
        assert [ice.ice_name for ice in page.items] == ["lab-1"]

        kind = models.NewImmediateOperationKind.EXECUTE
        wanted = models.NewImmediateOperation(kind=kind, params={"suite": "smoke"})
        requested = await generated("api.operations.request_operation").asyncio(
            "lab-1", client=client, body=wanted
        )
        assert await work.take(connection) == requested.id
        await work.finish(connection, requested.id, result={"passed": 3})
        http = client.get_async_httpx_client()
        streamed = (await http.get(f"/operations/{requested.id}/stream")).text
        lines = streamed.split("event: result")[1].splitlines()
        last = {"event": "result"} | dict(line.split(": ", 1) for line in lines if ": " in line)
        event = models.OperationResultEvent.from_dict(last)
        result = models.OperationDocument.from_dict(json.loads(event.data))
        assert (result.state, result.result) == ("succeeded", {"passed": 3})

        ended = await generated("api.ices.deregister_ice").asyncio("lab-1", client=client)
        assert ended.ice.status == "deregistered"
        assert len(ended.dropped) == 1
        await connection.expect_dropped(4101)
