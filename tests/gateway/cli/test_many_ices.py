"""Labels, notes, and actions on the ICEs that a filter finds, on a database and over the API."""

from __future__ import annotations

import json

from click.testing import CliRunner

from gateway.cli import main


async def test_labels_and_notes_are_set_and_removed(running, admin):
    await running.provision("lab-1")
    assert (await admin("ices", "label", "LAB-1", "os=windows", "team=a=b")).output == ""
    assert (await admin("ices", "note", "lab-1", "under the desk")).output == ""
    await admin("ices", "label", "lab-1", "os-", "site=")
    shown = json.loads((await admin("ices", "show", "lab-1", "--json")).stdout)
    assert (shown["labels"], shown["note"]) == ({"site": "", "team": "a=b"}, "under the desk")
    await admin("ices", "note", "lab-1", "under\nthe desk")
    lines = (await admin("ices", "show", "lab-1")).stdout.splitlines()
    members = dict(line.split(maxsplit=1) for line in lines)
    assert members["labels"] == '{"site":"","team":"a=b"}'
    assert (members["note"], members["attention"]) == ("under\\nthe desk", "-")
    for args, status, says in (
        (("label", "lab-1", "Os=x"), 1, "labels.Os: a label's key has"),
        (("label", "lab-1", *(f"k{number}=1" for number in range(32))), 1, "at most 32 labels"),
        (("label", "lab-1", "os"), 2, "KEY- removes one"),
        (("label", "lab-1"), 2, "Missing argument"),
        (("note", "lab-1", "x" * 1001), 1, "note: "),
        (("note", "lab-9", "x"), 1, "Not registered"),
    ):
        assert says in (await admin("ices", *args, status=status)).stderr


async def test_a_filter_finds_whom_to_deregister(running, admin):
    for name in ("lab-1", "lab-2", "lab-3"):
        await (await running.provision(name)).connect()
    await running.provision("lab-4")
    await running.provision("ci-1", "ci-cd")
    await running.label("lab-3", keep="yes")
    leaver = ("ices", "deregister", "--where", "provisionedto=ALICE")

    planned = await admin(*leaver, "--dry-run")
    assert planned.stdout == "lab-1\nlab-2\nlab-3\n"
    assert "deregister would be refused for 1 ICE (wrong-status: " in planned.stderr
    assert planned.stderr.endswith("ice-gateway: deregister 3 ICEs: lab-1, lab-2, lab-3\n")
    assert "use --yes" in (await admin(*leaver, status=2)).stderr
    assert await running.status("lab-1") == "registered"
    closed = await admin("ices", "disconnect", "--where", "label=keep=yes", "--yes")
    assert closed.stderr.splitlines()[-1] == "ice-gateway: disconnect was done for 1 ICE"

    done = await admin(*leaver, "--where", "q=lab-1", "--yes")
    assert done.stdout == ""
    assert done.stderr.endswith("ice-gateway: deregister was done for 1 ICE\n")
    states = [await running.status(name) for name in ("lab-1", "lab-2", "lab-4")]
    assert states == ["deregistered", "registered", "provisioned"]
    unseen = await admin("ices", "deregister", "--where", "inactive=true", "--dry-run")
    assert unseen.stderr == "ice-gateway: no ICE matches\n"
    none = await admin("ices", "deregister", "--where", "q=lab-4", "--yes", status=1)
    assert "possible for none of 1 ICE" in none.stderr
    assert "no ICE matches" in (await admin(*leaver, "--where", "q=nothing", "--yes")).stderr
    for args, status, says in (
        ((), 2, "either NAME or --where"),
        (("lab-1", "--where", "q=x"), 2, "either NAME or --where"),
        (("lab-1", "--yes"), 2, "need --where"),
        (("--where", "name=x"), 2, "FILTER=VALUE with one of status,"),
        (("--where", "connected=maybe"), 2, "connected=true"),
        (("--where", "inactive=maybe"), 2, "inactive=true"),
        (("--where", "status=gone", "--yes"), 2, "status"),
        (("--where", "version_below=x", "--yes"), 2, "as PEP 440 writes it"),
        (("--where", "lastseen_before=yesterday", "--yes"), 2, "lastseen_before"),
        (("--where", "pool=none", "--yes"), 1, "there is no pool none"),
    ):
        assert says in (await admin("ices", "deregister", *args, status=status)).stderr


async def test_ices_are_paused_and_resumed(running, admin):
    for name in ("lab-1", "lab-2"):
        await running.provision(name)
    until = "2126-11-22T19:00:00+01:00"
    quiet = await admin("ices", "pause", "LAB-1", "--until", until, "--note", "new\ndisk")
    assert (quiet.stdout, quiet.stderr) == ("", "")
    lines = (await admin("ices", "show", "lab-1")).stdout.splitlines()
    [shown] = [line.split(maxsplit=1)[1] for line in lines if line.startswith("paused")]
    assert shown.startswith("by ")
    assert shown.endswith(", until 2126-11-22T18:00:00.000000Z: new\\ndisk")
    assert "lab-2" not in (await admin("ices", "list", "--paused")).stdout
    assert "lab-1" not in (await admin("ices", "list", "--not-paused")).stdout
    many = await admin("ices", "pause", "--where", "paused=false", "--yes", "--note", "x")
    assert many.stderr.endswith("ice-gateway: pause was done for 1 ICE\n")
    assert (await running.admin.get("/ices/lab-2")).json["paused"]["note"] == "x"
    await admin("ices", "resume", "lab-1")
    assert "lab-1 was not paused" in (await admin("ices", "resume", "lab-1")).stderr
    await admin("ices", "resume", "--where", "paused=true", "--yes")
    assert (await running.admin.get("/ice-counts")).json["paused"] == 0
    for args, status, says in (
        (("pause",), 2, "either NAME or --where"),
        (("pause", "lab-1", "--until", "tomorrow"), 2, "RFC 3339"),
        (("pause", "lab-1", "--until", "2020-01-01T00:00:00Z"), 1, "until: "),
        (("pause", "lab-1", "--note", "x" * 1001), 1, "note"),
        (("pause", "lab-9"), 1, "Not registered"),
        (("resume", "lab-9"), 1, "Not registered"),
    ):
        assert says in (await admin("ices", *args, status=status)).stderr


def test_a_terminal_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    runner = CliRunner(catch_exceptions=False)
    runner.invoke(main, ["ices", "provision", "ci-1", "--type", "ci-cd"])
    for answer, status, says in (
        ("n\n", 1, "nothing was changed"),
        ("y\n", 0, "disconnect was done for 1 ICE"),
    ):
        done = runner.invoke(main, ["ices", "disconnect", "--where", "q=ci"], input=answer)
        assert done.exit_code == status
        assert "disconnect 1 ICE? [y/N]" in done.stderr
        assert says in done.stderr
