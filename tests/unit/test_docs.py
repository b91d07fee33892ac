"""What the documents claim is there."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import yaml

import gateway
from client.protocol import MAX_DEPTH, MAX_DIGITS, MAX_LOG_BYTES, MAX_VALUE
from gateway.admin import openapi
from gateway.admin.context import MAX_EXPORTS, MAX_EXPORTS_OF_ALL
from gateway.admin.event_streams import DEFAULT_LIMITS
from gateway.admin.pages.base import MAX_FIELDS
from gateway.admin.pages.bulk import MAX_BULK_FIELDS
from gateway.admin.pages.login import MAX_FORM
from gateway.admin.pages.operations import MAX_FORM as MAX_OPERATION_FORM
from gateway.cli import main
from gateway.core.jwks import MAX_TOKEN
from gateway.core.login_state import LIFETIME
from gateway.core.oidc import LEEWAY, LOGOUT_LIFETIME
from gateway.core.operation import MAX_KEPT
from gateway.core.webhook import ANSWER_TIME, MAX_WEBHOOKS
from gateway.node import operation_logs, progress
from gateway.node.operation_reports import MAX_PENDING_FINISHES
from gateway.runtime import http_client, logs, standard_streams
from gateway.runtime.setting_types import MAX_HOSTS
from gateway.services import sso
from gateway.services.issuer import AT_ONCE, DOWN
from gateway.services.login_failures import MAX_A_MINUTE, FailureReason
from gateway.services.operation_requests import MAX_UNFINISHED
from gateway.services.passwords import MAX_BYTES, MIN_LENGTH
from gateway.store import notices, webhooks
from gateway.store.postgres import connection as postgres
from gateway.web import connection, responses, websocket
from gateway.web.connection import DEFAULT_TIMEOUTS

ROOT = Path(__file__).parents[2]
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_every_measure_names_tests_that_exist():
    named = re.findall(r"`(test_\w+)::(test_\w+)`", (ROOT / "SECURITY.md").read_text("utf-8"))
    assert len(named) > 30
    defined = {
        (path.stem, test)
        for path in (ROOT / "tests").rglob("test_*.py")
        for test in re.findall(r"\bdef (test_\w+)\(", path.read_text("utf-8"))
    }
    missing = [f"{file}::{test}" for file, test in named if (file, test) not in defined]
    assert not missing, f"SECURITY.md names tests that are not there: {missing}"


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{document.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings]
            assert anchor in anchors, f"{document.name} links to {target}"


def test_a_document_says_first_whom_it_is_for():
    for document in [*ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]:
        opening = document.read_text("utf-8").split("\n\n")[1]
        assert opening.startswith("For "), document.name
        assert "After\nreading" in opening or "After reading" in opening, document.name


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


def test_files_of_config_name_sections_that_exist():
    named = []
    for file in sorted(path for path in (ROOT / "config").rglob("*") if path.is_file()):
        text = re.sub(r"\n#? ?", " ", file.read_text("utf-8"))
        for document, section in re.findall(
            r"(docs/\w+\.md)(?:,? [(\"']+([A-Z][\w ]+?)[\"'])?", text
        ):
            named.append(document)
            content = (ROOT / document).read_text("utf-8")
            assert not section or f"\n## {section}\n" in content, (
                f"{file.name}: {document} {section}"
            )
    assert len(named) > 5


def test_files_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = re.findall(r"`([\w./-]+(?:\.(?:py|html|toml|lock)|/))`", text)
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(named) > 20
    assert not [
        name for name in named if not (ROOT / name).exists() and name not in tests | {"dist/"}
    ]


def test_the_table_of_calls_is_the_apis():
    text = (ROOT / "docs/api.md").read_text("utf-8")
    calls = re.findall(r"`(GET|POST) (/[^`?]*)`", text.split("## Calls")[1].split("\n## ")[0])
    there = {
        (method.upper(), path.replace("{ice_name}", "{name}"))
        for path, methods in openapi.document()["paths"].items()
        for method in methods
        if method in {"get", "post"}
    }
    assert set(calls) == there - {("GET", "/openapi.json")}


def test_the_changelog_is_dated():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    dated = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d", one) for one in headings]
    assert all(dated[1:])
    assert headings[0] == "[Unreleased]" or dated[0][1] == gateway.__version__


def test_the_forge_runs_what_a_developer_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    assert workflow["jobs"]["ci"]["steps"][-1] == {"run": "bash .ci/run"}


def test_jobs_for_other_forges_can_be_read():
    """Their YAML is YAML, and their scripts are of a shell."""
    text = (ROOT / "docs/ci.md").read_text("utf-8")
    github, gitlab = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    job = gitlab["smoke"]
    scripts = [step["run"] for step in github["jobs"]["smoke"]["steps"] if "run" in step]
    scripts += [*job["script"], *job["after_script"], *re.findall(r"'''(.*?)'''", text, re.DOTALL)]
    assert len(scripts) == 8
    for script in scripts:
        command = ["bash", "-n", "-c", script]
        done = subprocess.run(command, capture_output=True, check=False)
        assert not done.stderr, script


def test_lines_of_crontabs_work_in_any_folder_and_lose_no_status():
    """Every program has its path, `%` is escaped (crontab(5)), and there is no pipe."""
    lines = [
        line
        for document in DOCS
        for line in re.findall(
            r"^(?:[\d*/,-]+ ){5} *(.*)$", document.read_text("utf-8"), re.MULTILINE
        )
    ]
    assert len(lines) == 3
    for line in lines:
        assert "|" not in line
        assert not re.search(r"(?<!\\)%", line)
        for program in line.replace(r"$(date +\%F)", "DATE").split(" && "):
            path, *arguments = shlex.split(program.removeprefix("head=$(").removesuffix(")"))
            assert path.startswith("/")
            if path.endswith("/ice-gateway"):
                parse_command(main, arguments)


def parse_command(group: click.Group, arguments: list[str]) -> None:
    """Fail unless these arguments are right usage of a command; it is not run."""
    name, command, rest = group.resolve_command(click.Context(group), arguments)
    if isinstance(command, click.Group):
        parse_command(command, rest)
    else:
        assert "--config" in rest
        command.make_context(name, rest)


def test_limits_are_those_that_hold():
    text = (ROOT / "docs/operation.md").read_text("utf-8")
    [table] = re.findall(r"## Limits\n(.*?)\n## ", text, re.DOTALL)
    limits = {row[0].strip(): row[1].strip() for row in re.findall(r"\| (.*?) \| (.*?) \|", table)}
    kib = 1024
    assert (
        limits.items()
        >= {
            "a request's address, with its query": f"{connection.MAX_LINE // kib} KiB",
            "segments of a path": f"{responses.MAX_SEGMENTS}",
            "one header; all of them": (
                f"{connection.MAX_FIELD // kib} KiB; {connection.MAX_HEAD // kib} KiB and"
                f" {connection.MAX_FIELDS} lines"
            ),
            "arrival of the headers, from the start of the connection or from their first byte; a TLS handshake": (
                f"{DEFAULT_TIMEOUTS.head:g} s"
            ),
            "a body; its arrival": (
                f"{responses.MAX_BODY // kib**2} MiB, uncompressed; {DEFAULT_TIMEOUTS.body:g} s"
            ),
            "the form of the login page": f"{MAX_FORM // kib} KiB",
            "fields of a form; of one that names ICEs": f"{MAX_FIELDS}; {MAX_BULK_FIELDS:,}",
            "the form of a new operation": f"{MAX_OPERATION_FORM:,} bytes",
            "JSON in a body, and params": (
                f"{MAX_DEPTH} levels; numbers that are finite, of {MAX_DIGITS} digits"
            ),
            "params, and a result": f"{MAX_VALUE:,} bytes of JSON",
            "operations of an ICE that have not finished": f"{MAX_UNFINISHED:,}",
            "params, results, errors, progress and logs kept for an ICE or pool": (
                f"`operations.kept_bytes`, of {MAX_KEPT:,} operations"
            ),
            "an ICE's finishes that are not yet written": f"{MAX_PENDING_FINISHES}",
            "events of failed logins": f"1 a minute of a user, {MAX_A_MINUTE} of all users",
            "a password": f"{MIN_LENGTH} characters or more, at most {MAX_BYTES:,} bytes",
            "what is read of an ICE": (
                f"{websocket.DEFAULT_LIMITS.byte_rate / kib**2:g} MiB a second,"
                f" {websocket.DEFAULT_LIMITS.byte_burst / kib**2:g} MiB at once"
            ),
            "an ICE's log of an operation": (
                f"{MAX_LOG_BYTES:,} bytes a message; `operations.log_kept` in all"
            ),
            "logs that wait to be written": (
                f"`operations.log_kept` of an operation, {operation_logs.MAX_WAITING // kib**2} MiB of all;"
                f" {operation_logs.WRITE_BYTES // kib**2} MiB in {operation_logs.INTERVAL:g} s is written"
            ),
            "an ICE's progress": (
                f"a row in {progress.INTERVAL:g} s, {progress.MAX_MESSAGE:,} characters,"
                f" {progress.MAX_DATA:,} bytes of data"
            ),
            "webhooks; a receiver's answer": f"{MAX_WEBHOOKS}; {ANSWER_TIME:g} s",
            "deliveries, and messages that were set aside, of a webhook; notices that wait for it": (
                f"{webhooks.KEPT}; {notices.KEPT:,}"
            ),
            "event streams": (
                f"{DEFAULT_LIMITS.max_readers} of a user (all tabs of a browser share one);"
                " 30 s without reading"
            ),
            "exports of the audit log": f"{MAX_EXPORTS} of a user, {MAX_EXPORTS_OF_ALL} of all",
            "renewals of members' pages": f"{DEFAULT_LIMITS.polls_per_second:g} a second",
            "an answer of PostgreSQL; of the log's follower": (
                f"{postgres.PATIENCE:g} s; {postgres.NEWS_PATIENCE:g} s"
            ),
            "a gateway, or a PostgreSQL, that vanished silently": (f"{postgres.VANISHED} s"),
            "addresses to listen on": f"{MAX_HOSTS}",
            "lines of the log, each minute and of each kind": (
                f"{logs.LINES_A_MINUTE}; {logs.NAMED_A_MINUTE:,} that name an ICE, of which"
                f" {logs.ICE_LINES_A_MINUTE} name the same; {logs.TRACEBACKS_A_MINUTE} with a traceback"
            ),
            "lines of the log that wait for a reader; at the end of the process": (
                f"{standard_streams.MAX_WAITING // kib**2} MiB; {standard_streams.EXIT_TIMEOUT:g} s"
            ),
            "data that still arrives after an answer": f"{DEFAULT_TIMEOUTS.linger:g} s",
            "start of an answer": f"{DEFAULT_TIMEOUTS.request:g} s",
            "an answer that is not read": (
                f"{DEFAULT_TIMEOUTS.read:g} s for each {connection.READ_STEP // kib} KiB and for its rest"
            ),
        }.items()
    )


def test_the_document_of_single_sign_on_has_every_reason_and_limit():
    text = (ROOT / "docs" / "sso.md").read_text("utf-8")
    reasons = set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE))
    assert reasons == {
        why for why in FailureReason if why.name.startswith("SSO_") and why.name != "SSO_ONLY"
    } | {FailureReason.TOO_MANY_ATTEMPTS, FailureReason.LOGOUT_TOKEN}
    failures, window = sso.FAILURES
    for limit in (
        f"sealed for {LIFETIME / 60:g} minutes",
        f"`iat` ({LEEWAY:g} seconds)",
        f"within {http_client.TIMEOUT:g} seconds, the gateway does not ask it again for {DOWN:g} seconds",
        f"At most {AT_ONCE} requests",
        f"{http_client.MAX_BYTES // 1024} KiB",
        f"{MAX_TOKEN // 1024} KiB",
        f"{failures} logins of one address failed within {window / 60:g} minutes",
        f"for {LOGOUT_LIFETIME / 60:g} minutes",
    ):
        assert limit in " ".join(text.split()), limit
