"""Dockerfile, compose and Kubernetes: each line is compared with what it names. No image is built here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from gateway.cli import main
from gateway.runtime.setting_sources import load
from gateway.runtime.settings import SETTINGS

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
KUBERNETES = list(yaml.safe_load_all((ROOT / "config" / "kubernetes.yaml").read_text("utf-8")))
DEFAULTS = load(None, {})


def instructions(word):
    """What follows this word in the Dockerfile, with continued lines in one."""
    joined = re.sub(r"\s*\\\n\s*", " ", DOCKERFILE)
    return re.findall(rf"(?m)^\s*{word} (.*)$", joined)


def image_settings():
    return dict(
        pair.split("=", 1)
        for line in instructions("ENV")
        for pair in shlex.split(line)
        if pair.startswith("ICE_GATEWAY_")
    )


def one(kind, name="ice-gateway"):
    [found] = [
        each for each in KUBERNETES if (each["kind"], each["metadata"]["name"]) == (kind, name)
    ]
    return found


def pod(workload):
    return workload["spec"]["template"]["spec"]


WORKLOADS = [one("Deployment"), one("Job", "ice-gateway-first-admin")]


# --- the image ---------------------------------------------------------------------------------


def test_what_is_copied_is_there_and_is_sent_to_the_builder():
    sent = re.findall(r"(?m)^!([^*\n/]+)", (ROOT / ".dockerignore").read_text("utf-8"))
    for line in instructions("COPY"):
        sources = [word for word in shlex.split(line)[:-1] if not word.startswith("--")]
        if "--from=build" not in line:
            assert all(list(ROOT.glob(source)) for source in sources), line
            assert all(source.split("/")[0] in sent for source in sources), line


def test_the_lock_has_the_hash_of_all_that_both_databases_need():
    text = (ROOT / "requirements-image.lock").read_text("utf-8")
    named = re.findall(r"(?m)^([a-z0-9-]+)==[^\n]*((?:\n    --hash=sha256:[0-9a-f]{64}.*)+)", text)
    assert {name for name, _ in named} >= {"aiohttp", "aiosqlite", "asyncpg", "setuptools"}
    assert len(named) == len(re.findall(r"(?m)^[a-z]", text))
    demo = (ROOT / "requirements-demo.lock").read_text("utf-8")
    pins = dict(re.findall(r"(?m)^([a-z0-9-]+)==(\S+)", demo))
    assert all(
        pins.get(name, pin) == pin for name, pin in re.findall(r"(?m)^([a-z0-9-]+)==(\S+)", text)
    )


def test_its_settings_and_its_probe_are_those_of_the_gateway():
    settings = load(None, image_settings())
    host, port = settings.metrics_listen
    assert (settings.server_host, host) == (("0.0.0.0",), "0.0.0.0")  # noqa: S104 - within a container
    assert instructions("EXPOSE") == [f"{settings.server_port} {port}"]
    [probe] = instructions("HEALTHCHECK")
    assert f"'http://127.0.0.1:{settings.server_port}/readyz'" in probe


def test_it_runs_as_a_number():
    [user] = instructions("USER")
    assert re.fullmatch(r"[1-9]\d{4,}:[1-9]\d{4,}", user)
    assert instructions("WORKDIR")[-1] == instructions("VOLUME")[0] == "/var/lib/ice-gateway"
    uid, gid = user.split(":")
    for workload in WORKLOADS:
        found = pod(workload)["securityContext"]
        assert (found["runAsUser"], found["runAsGroup"], found["fsGroup"]) == (
            int(uid),
            int(gid),
            int(gid),
        )


# --- kubernetes --------------------------------------------------------------------------------


def environment(workload):
    [container] = pod(workload)["containers"]
    given = {each["name"]: each.get("value", "secret") for each in container["env"]}
    return given | {"ICE_GATEWAY_NODE__NAME": "ice-gateway-7d4b9c"}


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda one: one["kind"])
def test_each_variable_is_a_setting_and_each_file_is_mounted(workload):
    environ = environment(workload)
    known = {setting.variable for setting in SETTINGS} | {"PGPASSWORD"}
    assert environ.keys() <= known
    settings = load(None, image_settings() | environ)
    if workload["kind"] == "Deployment":
        assert settings.check_exposure() == []
    [container] = pod(workload)["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each["secret"] for each in pod(workload)["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert str(settings.key_file.parent) == mounts["keys"]
    assert {each["defaultMode"] for each in volumes.values()} == {0o440}


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda one: one["kind"])
def test_its_root_is_read_only_and_it_has_no_rights(workload):
    [container] = pod(workload)["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(workload)["automountServiceAccountToken"] is False


def test_the_commands_are_those_of_the_gateway():
    [job] = pod(WORKLOADS[1])["containers"]
    assert parsed(job["args"])["password_file"] == Path("/secrets/admin/password")
    [container] = pod(WORKLOADS[0])["containers"]
    shell, option, line = container["lifecycle"]["preStop"]["exec"]["command"]
    program, *words = shlex.split(line.partition("&&")[0])
    assert (shell, option, program) == ("sh", "-c", "ice-gateway")
    assert parsed(words)["name"] == "$ICE_GATEWAY_NODE__NAME"


def parsed(words):
    """The parameters of a command line, parsed as the command does."""
    command, name = main, "ice-gateway"
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(click.Context(command), list(words))
    return command.make_context(name, list(words)).params


def test_probes_services_and_disruptions_meet_the_gateway():
    [container] = pod(WORKLOADS[0])["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    settings = load(None, image_settings())
    assert ports == {"http": settings.server_port, "metrics": settings.metrics_listen[1]}
    probes = {
        name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")
    }
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert {probe["port"] for probe in probes.values()} == {"http"}
    labels = WORKLOADS[0]["spec"]["template"]["metadata"]["labels"]
    assert one("Service")["spec"]["selector"] == labels
    assert one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    [rule] = one("Ingress")["spec"]["rules"]
    assert environment(WORKLOADS[0])["ICE_GATEWAY_SERVER__PUBLIC_URL"] == f"https://{rule['host']}"
    # A ping comes in time, and the drain, the gateway's own end (10 s) and the pause fit into the grace.
    idle = float(
        one("Ingress")["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-read-timeout"]
    )
    assert idle >= 3 * DEFAULTS.ice_heartbeat
    pause = int(
        re.search(r"sleep (\d+)", container["lifecycle"]["preStop"]["exec"]["command"][2])[1]
    )
    assert pod(WORKLOADS[0])["terminationGracePeriodSeconds"] >= pause + 10 + 20
