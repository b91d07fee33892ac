"""What is recorded: the lives of a gateway and a client in this process, on real sockets and files.

    python -m tests.powerloss.stories NAME ROOT MARKS

Everything durable is below ROOT: the gateway's folder `gw`, the client's home folder `home`, and `backups`. What somebody
was told is written to MARKS, a JSON object a line, at once: so it has its place in the recording. The marks are read by
`tests.powerloss.facts`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from client.agent import IceClient
from client.credentials import EnrolmentSecret
from client.enrolment import Enroller
from client.events import Event
from client.identity import StateFolder
from gateway.core.roles import Role
from gateway.runtime.logs import configure
from gateway.store import key_file
from tests.support.harness import Harness, command, harness, settings_for
from tests.support.ice import Ice
from tests.support.machine import CI_CD, new_key
from tests.upgrade.conftest import unpack

NAME = "lab-1"
"""The ICE that the client is."""
STATE = Path("home/.local/state/ice-client")
"""The client's state folder below the root; a first start makes four folders."""
TOKENS = Path("home/fleet/tokens")
"""Where an admin has the tokens of a fleet written; a folder on the way is new, too."""
SWEPT = 1.2
"""Seconds after which a gateway has copied the write-ahead log into its database."""


class Story:
    """A story's folders, and the pen for what somebody was told."""

    def __init__(self, root: Path, marks: Path) -> None:
        self.root = root
        self.gateway = root / "gw"
        self.state = root / STATE
        self.database = f"sqlite:///{self.gateway}/ice.db"
        self._marks = os.open(marks, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def mark(self, what: str, **facts: Any) -> None:
        """Somebody was told this now."""
        os.write(self._marks, json.dumps({"what": what, **facts}).encode() + b"\n")

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Harness]:
        """The gateway, which makes its database itself."""
        async with harness(self.gateway, database__url=self.database) as running:
            await self.told(running)
            yield running

    async def told(self, running: Harness) -> None:
        """Whatever the log holds now was acknowledged."""
        head = await running.gateway.services.audit.head()
        self.mark("head", head=str(head))

    async def provision(self, running: Harness, name: str) -> Ice:
        """Provision a CI machine; its token is shown."""
        ice = await running.provision(name, "ci-cd")
        self.mark("token", ice=name, token=ice.token)
        await self.told(running)
        return ice

    async def act(self, running: Harness, name: str, action: str) -> str | None:
        """An admin's action; the token that it shows."""
        done = await running.act(name, action)
        token = done.get("token")
        if token:
            self.mark("token", ice=name, token=token)
        await self.told(running)
        return token

    async def register(self, running: Harness, ice: Ice) -> None:
        """An ICE that is no recorded client."""
        await (await ice.connect()).leave()
        await self.told(running)

    @contextlib.asynccontextmanager
    async def client(self, running: Harness, token: str | None = None) -> AsyncIterator[IceClient]:
        """The client, connected, with a handler."""

        async def execute(operation: Any, report: Any) -> object:
            self.mark("started", operation=operation.id)
            if operation.params.get("hang"):
                await asyncio.Event().wait()
            return {"exit": 0}

        def observe(event: Event) -> None:
            if event.kind == "connecting":  # from here on the gateway may know the key
                self.ready()

        ice = IceClient(
            running.url,
            state_dir=self.state,
            token=token,
            handlers={"remote-execute": execute},
            observe=observe,
        )
        async with ice:
            await ice.connected()
            await self.told(running)
            yield ice

    def ready(self) -> None:
        """The client sends a proof: its key and its token must survive."""
        folder = StateFolder(self.state)
        key, token = folder.key(), folder.token()
        assert key is not None
        assert token is not None
        self.mark("ready", key=key.thumbprint(), token=token.reveal())

    async def operate(
        self, running: Harness, ice: str = NAME, *, wait: int = 30, **params: Any
    ) -> str:
        """An operation for the client; with `wait` its result is told."""
        body = {"kind": "remote-execute", "params": params}
        answer = await running.admin.post(f"/ices/{ice}/operations?wait={wait}", body)
        assert answer.status in (200, 202), answer
        self.mark("operation", id=answer.json["id"], state=answer.json["state"])
        return str(answer.json["id"])

    async def command(self, *args: str) -> str:
        """Run `ice-gateway` on the database; its stdout."""
        done = await command(*args, "--database", self.database)
        return str(done.stdout)


async def first(story: Story) -> None:
    """The first life of a gateway and its ICEs, with two checkpoints, and a second start."""
    async with story.serving() as running:
        ice = await story.provision(running, NAME)
        async with story.client(running, ice.token):
            await story.operate(running)
            await story.operate(running)
            other = await story.provision(running, "lab-2")
            await story.register(running, other)
            await story.act(running, "lab-2", "deregister")
            await asyncio.sleep(SWEPT)
            again = await story.act(running, "lab-2", "reregister")
            assert again is not None
            await story.register(running, running.ice(again))
            await story.provision(running, "lab-3")
            await story.act(running, "lab-3", "reprovision")
            await story.operate(running, wait=0, hang=True)
            await asyncio.sleep(SWEPT)
            await running.add_user("carol")
            await running.api("dora", Role.AUDITOR)
            await story.told(running)
    async with story.serving() as running:
        await story.provision(running, "lab-4")
        async with story.client(running):
            await story.operate(running)
            await story.act(running, "lab-3", "reprovision")


async def keys(story: Story) -> None:
    """A token key is added, promoted and retired, while a gateway runs."""
    async with story.serving() as running:
        ice = await story.provision(running, NAME)
        [old] = _kids(story)
        async with story.client(running, ice.token):
            story.mark("key", kid=old, does="seal")
            story.mark("key", kid=None, does="change")
            new = (await story.command("keys", "rotate")).strip()
            story.mark("key", kid=new, does="open")
            await story.told(running)
            story.mark("key", kid=None, does="change")
            await story.command("keys", "promote", new)
            story.mark("key", kid=new, does="seal")
            await story.provision(running, "lab-2")
            story.mark("key", kid=None, does="change")
            await story.command("keys", "retire", old)
            story.mark("key", kid=old, does="nothing")
            await story.told(running)
            await story.provision(running, "lab-3")
            await story.operate(running)


def _kids(story: Story) -> list[str]:
    ring = key_file.read(settings_for(story.gateway).key_file)
    assert ring is not None
    return [key.kid for key in ring.keys]


async def restore(story: Story) -> None:
    """A backup, changes after it, and the backup put back; then another one, over the restored table."""
    async with story.serving() as running:
        ice = await story.provision(running, NAME)
        async with story.client(running, ice.token):
            await story.provision(running, "lab-2")
            await _backup(story, "one")
            await story.told(running)
            await story.act(running, "lab-2", "reprovision")
            await story.provision(running, "lab-3")
    await _restore(story, "one")
    async with story.serving() as running:
        await story.provision(running, "lab-5")
        await _backup(story, "two")
        await story.told(running)
    await _restore(story, "two")
    async with story.serving() as running:
        await story.provision(running, "lab-6")


async def _backup(story: Story, name: str) -> None:
    folder = f"backups/{name}"
    story.mark("backup", folder=folder, done=False)
    shown = await story.command("backup", str(story.root / folder))
    # Its last line ends with the head of the log.
    story.mark("backup", folder=folder, done=True, head=shown.split()[-1])


async def _restore(story: Story, name: str) -> None:
    folder = f"backups/{name}"
    story.mark("restore", folder=folder, done=False)
    await story.command("restore", str(story.root / folder))
    story.mark("restore", folder=folder, done=True)
    story.mark("confirm", done=False)
    await story.command("restore", "--confirm", "--yes")
    story.mark("confirm", done=True)


async def migrate(story: Story) -> None:
    """A database of the release before is migrated."""
    story.mark("migration", **json.loads((story.root / "before.json").read_text()))
    async with story.serving() as running:
        story.mark("migrated")
        await story.provision(running, "lab-9")


def _prepare_migration(root: Path) -> None:
    """Have the release before write a database with a user, and an ICE that waits for its registration."""
    at = f"sqlite:///{root}/gw/ice.db"
    keys = {"ICE_GATEWAY_TOKENS__KEY_FILE": str(settings_for(root / "gw").key_file)}
    with tempfile.TemporaryDirectory() as folder:
        old = unpack(Path(folder))

        def run(*args: str) -> str:
            return old.run(*args, "--database", at, **keys)

        for name, role in (("root", "admin"), ("alice", "member")):
            run("users", "add", name, "--role", role, "--no-password")
        token = run("ices", "provision", NAME, "--type", "ci-cd")
        head = run("audit", "head").split()[0]
    facts = {"ice": NAME, "token": token, "head": head}
    (root / "before.json").write_text(json.dumps(facts))


async def enrol(story: Story) -> None:
    """A machine enrols, registers and works."""
    async with story.serving() as running:
        _, secret = await new_key(running, CI_CD)
        await story.told(running)
        story.mark("secret", secret=secret)
        url, given = running.url, EnrolmentSecret(secret)
        await Enroller(url, given, name="ci-1", state_dir=story.state).run()
        await story.told(running)
        async with story.client(running):
            await story.operate(running, "ci-1")
            await asyncio.sleep(SWEPT)
            await story.operate(running, "ci-1")


async def fleet(story: Story) -> None:
    """An admin provisions ICEs from a file, and their tokens are written into a new folder."""
    table = story.root / "home" / "fleet.csv"
    async with story.serving() as running:
        table.write_text("ice_name,ice_type,user\nlab-1,ci-cd,\nlab-2,normal,alice\n")
        folder = story.root / TOKENS
        given = ("--from", str(table), "--tokens", str(folder))
        await story.command("ices", "provision", *given)
        for path in sorted(folder.iterdir()):
            story.mark("token", ice=path.stem, token=path.read_text().strip())
            story.mark("file", path=f"{TOKENS}/{path.name}", text=path.read_text())
        await story.told(running)


Tell = Callable[[Story], Awaitable[None]]
STORIES: dict[str, Tell] = {
    "first": first,
    "keys": keys,
    "restore": restore,
    "migrate": migrate,
    "enrol": enrol,
    "fleet": fleet,
}
FOLDERS = ("gw", "home", "backups")


def prepare(name: str, root: Path) -> None:
    """What is there, safely, before the story begins. Raises `LookupError` if it cannot be made here."""
    for folder in FOLDERS:
        (root / folder).mkdir()
    if name == "migrate":
        _prepare_migration(root)


def main() -> None:
    """Live through a story."""
    name, root, marks = sys.argv[1:]
    configure("text", "error")
    asyncio.run(STORIES[name](Story(Path(root), Path(marks))))


if __name__ == "__main__":
    main()
