"""Starts on a disk as a power cut left it, and says what does not agree with what was told.

The database, the key file, the backups and the client's folder are opened as the gateway, its commands and the client
open them. `admit` lets the client and a gateway meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from pathlib import Path

import msgspec

from client.agent import IceClient, IceStopped
from client.credentials import EnrolmentSecret, IdentityProblem
from client.enrolment import Enrolled, Enroller
from client.identity import FolderUnusable, StateFolder
from client.journal import Journal
from gateway.core.hash_chain import Head
from gateway.core.secret import Secret
from gateway.core.times import utc_now
from gateway.core.tokens import OpenedToken, RetiredToken
from gateway.services.audit import Audit
from gateway.services.backup import DATABASE, Backup, BackupRefused
from gateway.store import key_file
from gateway.store.engine import Engine, StoreRefused, StoreUnavailable
from gateway.store.key_file import KeyFileUnusable, KeyStore
from gateway.store.restore_mark import find_mark
from gateway.store.sqlite.engine import open_sqlite
from gateway.store.sqlite.migrate import released
from gateway.store.sqlite.snapshot import open_read_only
from gateway.store.tables import needs_keys
from tests.powerloss.disk import State
from tests.powerloss.facts import Facts
from tests.powerloss.stories import NAME, STATE
from tests.support.harness import harness, settings_for
from tests.torture.verdict import digest, read, rule_faults

_ORDER = ("queued", "sent", "running")
"""States of an operation that may have moved on; the other ones are final."""
_PATIENCE = 20.0


def put(state: State, root: Path) -> None:
    """Make the files, as their owner alone may read them."""
    for path, content in state.items():
        if content is None:
            (root / path).mkdir(mode=0o700)
        else:
            descriptor = os.open(root / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)


async def faults(root: Path, facts: Facts) -> list[str]:
    """Everything that is wrong with the disk below `root`; opening it may change it."""
    found = [
        f"{path} was written and is lost"
        for path, text in facts.files.items()
        if not (root / path).exists() or (root / path).read_text() != text
    ]
    found += await _backups(root, facts)
    found += await _gateway(root, facts)
    found += _client(root, facts)
    return found


# --- the gateway -------------------------------------------------------------------------------------


async def _gateway(root: Path, facts: Facts) -> list[str]:
    settings = settings_for(root / "gw")
    path = settings.database_path
    if not path.exists() and facts.heads:
        return ["the database is gone"]
    found = _kept_copy(path, facts)
    try:
        async with open_sqlite(path, serving=True, tell=lambda _: None) as engine:
            found += await _database(root, engine, facts)
            keys = KeyStore(settings.key_file)
            if not keys.load() and await needs_keys(engine.fetch):
                found.append("the key file is gone, and there are ICEs")
            found += _keys(settings.key_file, facts)
            found += await _tokens(engine, keys, facts)
    except (StoreRefused, StoreUnavailable, KeyFileUnusable) as error:
        return [*found, f"the gateway does not start: {error}"]
    whole = read(path)
    if whole.intact != ["ok"]:
        found.append(f"the file is not intact: {whole.intact}")
    if facts.before is None:
        found += rule_faults(whole)
    return found


def _kept_copy(path: Path, facts: Facts) -> list[str]:
    """The copy of an older database, once it was migrated."""
    if not facts.migrated:
        return []
    [copy] = path.parent.glob("*.before-schema-*")
    with open_read_only(copy) as made:
        damage = made.find_damage(thorough=True)
    return [] if damage is None else [f"the copy before the migration is damaged: {damage}"]


async def _database(root: Path, engine: Engine, facts: Facts) -> list[str]:
    found = []
    audit = Audit(engine=engine, clock=utc_now)
    verdicts = [await audit.verify(Head.parse(head)) for head in facts.heads]
    verdicts = verdicts or [await audit.verify()]
    if all(verdict.fault for verdict in verdicts) and (facts.heads or await audit.head()):
        found.append(f"what was acknowledged is lost: {verdicts[-1].fault}")
    mark = await find_mark(engine.fetch)
    if facts.restore is None and mark is not None:
        found.append("the confirmation of the restore is lost")
    begun = facts.restore
    if begun is not None and begun.done and not begun.confirming and mark is None:
        found.append("the restored table admits without a confirmation")
    if facts.restore is not None and mark is not None:
        found += await _aside(root, mark.aside, facts.restore.replaced)
    for operation, state in facts.operations.items():
        rows = await engine.fetch("SELECT state FROM ice_operations WHERE id = $1", operation)
        now = rows[0][0] if rows else None
        if now is None or (state not in _ORDER and now != state):
            found.append(f"the operation {operation} was told to be {state} and is {now}")
    return found


async def _aside(root: Path, names: tuple[str, ...], replaced: str) -> list[str]:
    """The databases that a restore has put aside are whole, and the newest one has everything."""
    audit_heads = []
    for name in names:
        # The recording had another root.
        path = root / "gw" / Path(name).name
        try:
            async with open_sqlite(path, create=False) as engine:
                verdict = await Audit(engine=engine, clock=utc_now).verify(Head.parse(replaced))
                audit_heads.append(verdict.fault)
        except (StoreRefused, StoreUnavailable) as error:
            return [f"the database that was put aside cannot be opened: {error}"]
    if None not in audit_heads:
        return [f"no database that was put aside has what was acknowledged: {audit_heads}"]
    return []


def _keys(path: Path, facts: Facts) -> list[str]:
    ring = key_file.read(path)
    if ring is None:
        return ["the key file is gone"] if facts.keys else []
    there = {key.kid for key in ring.keys}
    found = []
    for kid, does in facts.keys.items():
        if does != "nothing" and kid not in there and not facts.keys_change:
            found.append(f"the key {kid} is lost")
        if does == "nothing" and (kid in there or kid not in ring.retired):
            found.append(f"the key {kid} was retired and is back")
        if does == "seal" and ring.seals != kid and not facts.keys_change:
            found.append(f"the key {ring.seals} seals in place of {kid}")
    return found


async def _tokens(engine: Engine, keys: KeyStore, facts: Facts) -> list[str]:
    """Each token that was shown and is the newest admits its ICE."""
    found = []
    for name, token in facts.tokens.items():
        rows = await engine.fetch(
            "SELECT ice_token, status, generation FROM ice_tokens WHERE ice_name = $1", name
        )
        if not rows:
            found.append(f"{name} was provisioned and is gone")
            continue
        stored, status, generation = rows[0]
        opened = keys.open(Secret(token))
        if isinstance(opened, RetiredToken) and status == "registered":
            opened = None if stored != digest(token) else opened
        elif isinstance(opened, OpenedToken) and opened.generation < generation:
            continue  # replaced by an action that nobody was told of yet
        elif isinstance(opened, OpenedToken) and stored != digest(token):
            opened = None
        if opened is None:
            found.append(f"the token of {name} that was shown does not admit it")
    return found


# --- backups -----------------------------------------------------------------------------------------


async def _backups(root: Path, facts: Facts) -> list[str]:
    """A folder with a backup's name is a whole backup, and none that was told of is missing."""
    found = []
    for name, done in facts.backups.items():
        folder = root / name
        if not folder.exists():
            if done:
                found.append(f"the backup {name} is gone")
            continue
        try:
            await _checked(folder, root / "extracted.db")
        except BackupRefused as error:
            # A folder that nobody was told of may be refused; it must not be taken for a backup.
            if done:
                found.append(f"the backup {name} was made and is refused: {error}")
        for path in root.glob("extracted*"):  # noqa: ASYNC240 - nothing else runs
            path.unlink()
    return found


async def _checked(folder: Path, target: Path) -> None:
    backup = Backup.find(folder)
    backup.extract(DATABASE, target)
    with open_read_only(target) as taken:
        await backup.check(taken, released()[-1][0])
    backup.extract_keys(target.with_suffix(".keys"))


# --- the client --------------------------------------------------------------------------------------


def _client(root: Path, facts: Facts) -> list[str]:
    """Its key, its token and its journal are whole, and those that the gateway may know are there."""
    if not (root / STATE).exists():
        return ["the client's folder is gone"] if facts.key else []
    folder = StateFolder(root / STATE)
    found = []
    try:
        key, token = folder.key(), folder.token()
    except IdentityProblem as problem:
        return [f"the client's folder cannot be used: {problem}"]
    if facts.key is not None and (key is None or key.thumbprint() != facts.key):
        found.append("the key that the gateway may know is lost")
    if facts.token is not None and (token is None or token.reveal() != facts.token):
        found.append("the token that the client has sent is lost")
    try:
        journal = Journal(root / STATE / "operations.db", lambda: 0.0)
    except (IdentityProblem, FolderUnusable) as problem:
        return [*found, f"the journal cannot be used: {problem}"]
    found += [
        f"the client has begun {operation} and would begin it again"
        for operation in facts.started
        if journal.accept(operation)
    ]
    for operation in journal.unanswered():
        message = journal.finish_of(operation) or b""
        try:
            if msgspec.json.decode(message)["params"]["id"] != operation:
                found.append(f"the journal has another finish of {operation}")
        except (msgspec.DecodeError, KeyError, TypeError):
            found.append(f"the journal has half a finish of {operation}")
    journal.close()
    found += _finishes(root, journal_path=root / STATE / "operations.db")
    return found


def _finishes(root: Path, journal_path: Path) -> list[str]:
    """A finish that the client has forgotten is one that the gateway has."""
    database = root / "gw" / "ice.db"
    with (
        contextlib.closing(sqlite3.connect(journal_path)) as journal,
        contextlib.closing(sqlite3.connect(database)) as gateway,
    ):
        answered = journal.execute("SELECT id FROM operations WHERE answered").fetchall()
        return [
            f"the finish of {operation} was answered and is lost"
            for (operation,) in answered
            if gateway.execute(
                "SELECT 1 FROM ice_operations WHERE id = ? AND finished IS NULL", (operation,)
            ).fetchone()
        ]


# --- both together -----------------------------------------------------------------------------------


async def admit(root: Path, facts: Facts) -> list[str]:
    """Start a gateway and a client on what was left: the client is admitted, perhaps after a person did what it said."""
    if not facts.tokens.get(NAME) and facts.secret is None:
        return []
    if facts.restore is not None:
        return []  # nobody is admitted until the confirmation
    async with asyncio.timeout(_PATIENCE), harness(root / "gw") as running:
        try:
            await _connect(running.url, root)
        except IdentityProblem as problem:
            if "no registration token yet" not in str(problem):
                return [f"the client says: {problem}"]
        except IceStopped as stopped:
            return [f"the client is not admitted: {stopped.outcome}"]
        else:
            return []
        try:
            if facts.secret is not None:
                await _enrol(running.url, root, facts.secret)
            await _connect(running.url, root, facts.tokens.get(NAME))
        except (IdentityProblem, IceStopped) as problem:
            return [f"the client, given its token again, says: {problem}"]
    return []


async def _connect(url: str, root: Path, token: str | None = None) -> None:
    ice = IceClient(url, state_dir=root / STATE, token=token, observe=lambda _: None)
    async with ice:
        await ice.connected()


async def _enrol(url: str, root: Path, secret: str) -> None:
    enroller = Enroller(
        url, EnrolmentSecret(secret), name="ci-1", state_dir=root / STATE, observe=lambda _: None
    )
    outcome = await enroller.run()
    if not isinstance(outcome, Enrolled):
        raise IdentityProblem(f"it is not enrolled: {outcome}")
