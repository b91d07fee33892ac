"""`ices provision --from`: a fleet from a file, its tokens in a folder, and what happens when that is cut short."""

from __future__ import annotations

import os
import stat

import pytest

from gateway.cli.admin_port import AnswerLost
from gateway.cli.common import CommandContext
from gateway.cli.database_admin import DatabaseAdmin
from gateway.cli.fleet import Fleet
from gateway.cli.token_folder import TokenFolder

HEADER = "user,ice_name,ice_type,labels\n"


@pytest.fixture
def fleet(tmp_path, admin):
    """Runs the command on a file with this text, after a header."""

    async def run(text, *options, status=0):
        (tmp_path / "fleet.csv").write_text(HEADER + text, encoding="utf-8-sig")
        files = ("--from", str(tmp_path / "fleet.csv"), "--tokens", str(tmp_path / "tokens"))
        return await admin("ices", "provision", *files, *options, status=status)

    return run


async def test_a_fleet_gets_tokens_and_can_be_repeated(running, tmp_path, fleet):
    tokens = tmp_path / "tokens"
    rows = "ALICE,lab-1,normal,os=windows;team=qa\n,ci-1,ci-cd,\n"
    done = await fleet(rows)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "ice-gateway: 2 of 2 ICEs",
        f"ice-gateway: 2 of 2 ICEs got a token, in {tokens}",
    ]
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o700
    files = {file.name: file for file in tokens.iterdir()}
    assert set(files) == {"lab-1.token", "ci-1.token"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files.values()} == {0o600}
    shown = (await running.admin.get("/ices/lab-1")).json
    assert shown["provisionedto"] == "alice"
    assert shown["labels"] == {"os": "windows", "team": "qa"}
    await running.ice(files["ci-1.token"].read_text().strip()).connect()

    files["lab-1.token"].write_text("half")  # as after a power cut
    again = await fleet(rows, status=1)
    assert "1 ICE left out, registered already: ci-1" in again.stderr
    assert "1 ICE provisioned already, without a token file: lab-1" in again.stderr
    renewed = await fleet(rows, "--reprovision-unused")
    assert renewed.stderr.endswith(f"ice-gateway: 1 of 2 ICEs got a token, in {tokens}\n")
    await running.ice(files["lab-1.token"].read_text().strip()).connect()

    (tokens / "lab-2.token").write_text("whole\n")
    for text, faults in (
        ("bob,lab-3,normal,\n,LAB-3,normal,\n", ["line 3: ice_name: is on line 2 already"]),
        (
            "bob,lab-3,normal,\nalice,LAB-1,normal,\n,ci-1,ci-cd,\nalice,ci-1x,normal,\nroot,lab-1x,normal,\n",
            ["line 2: user: there is no user bob", "line 3: ice_name: there is an ICE lab-1"],
        ),
        (
            "alice,ci-1,normal,\n",
            ["line 2: ice_type: there is an ICE ci-1 already, which is ci-cd"],
        ),
        ("root,lab-1,normal,\n", ["line 2: user: there is an ICE lab-1 already, of alice"]),
        ("alice,lab-2,normal,\n", ["lab-2.token is there, but no such ICE"]),
    ):
        refused = await fleet(text, status=1)
        for fault in faults:
            assert fault in refused.stderr
        assert refused.stderr.endswith("nothing was done\n")
    assert (
        "a new user needs" in (await fleet("a/b,lab-4,normal,\n", "--add-users", status=1)).stderr
    )
    assert (await running.admin.get("/ice-counts")).json["total"] == 2
    added = await fleet("Bob,lab-4,normal,\nbob,lab-5,normal,\n", "--add-users")
    assert added.stderr.startswith("ice-gateway: adding 1 user\n")
    bob = (await running.admin.get("/users/bob")).json
    assert (bob["name"], bob["role"], bob["ices"], bob["has_password"]) == (
        "Bob",
        "member",
        2,
        False,
    )


class Losing(DatabaseAdmin):
    """Loses the answer to what it has done."""

    async def bulk(self, wanted):
        answer = await super().bulk(wanted)
        if wanted.get("dry_run"):
            return answer
        raise AnswerLost("the line is cut")


async def test_a_lost_answer_is_named_and_its_tokens_are_made_anew(running, tmp_path, capsys):
    (tmp_path / "fleet.csv").write_text("ice_name,ice_type,user\nlab-1,normal,Bob\nci-1,ci-cd,\n")
    folder = TokenFolder(tmp_path / "tokens")
    context = CommandContext.of(running.gateway.settings, running.gateway.engine)
    options = {"add_users": True, "reprovision_unused": False}
    with pytest.raises(SystemExit, match="1"):
        await Fleet(Losing(context), folder, **options).provision(tmp_path / "fleet.csv")
    said = capsys.readouterr().err
    assert "the line is cut; lines 2 to 3: it is not known" in said
    assert "(2 ICEs: lab-1, ci-1); run this again with --reprovision-unused" in said
    assert list(folder.path.iterdir()) == []
    bob = await context.services.accounts.user("bob")
    assert (bob.role, bob.password_hash) == ("member", None)

    (folder.path / "ci-1.token").mkdir()
    options["reprovision_unused"] = True
    admin = DatabaseAdmin(context)
    with pytest.raises(SystemExit, match="78"):
        await Fleet(admin, folder, **options).provision(tmp_path / "fleet.csv")
    (folder.path / "ci-1.token").rmdir()
    capsys.readouterr()
    for place in (os.mkfifo, lambda path: path.symlink_to(tmp_path / "fleet.csv")):
        place(folder.path / "ci-1.token")
        with pytest.raises(SystemExit, match="78"):
            await Fleet(admin, folder, **options).provision(tmp_path / "fleet.csv")
        assert "ci-1.token is no regular file" in capsys.readouterr().err
        (folder.path / "ci-1.token").unlink()
    await Fleet(admin, folder, **options).provision(tmp_path / "fleet.csv")
    for file in folder.path.iterdir():
        await running.ice(file.read_text().strip()).connect()


async def test_what_does_not_go_together_is_usage(tmp_path, admin):
    (tmp_path / "x.csv").touch()
    file = ("--from", str(tmp_path / "x.csv"))
    for args, status, says in (
        (("lab-1", *file), 2, "either NAME or --from"),
        (("lab-1", "--type", "ci-cd", "--add-users"), 2, "need --from"),
        (file, 2, "--from needs --tokens"),
        ((*file, "--tokens", str(tmp_path), "--user", "x"), 2, "from the file"),
        (("--from", "/no/such", "--tokens", str(tmp_path)), 78, "cannot be read: No such file"),
        ((*file, "--tokens", str(tmp_path)), 1, "needs a header"),
    ):
        assert says in (await admin("ices", "provision", *args, status=status)).stderr
