"""`ices provision --from`: provisions the ICEs of a CSV file, and writes a token file for each.

It can be repeated: what is there already is named and left out. A token is shown once, so when an answer is lost
its tokens are; such ICEs are `provisioned` without a token file, and `--reprovision-unused` makes their tokens anew.

Tested in tests/gateway/cli/test_fleet.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.cli.admin_port import Admin, AnswerLost, Refused
from gateway.cli.from_file import at_once, read_file, refuse_faults
from gateway.cli.many_ices import count, some
from gateway.cli.output import print_notice, refuse
from gateway.cli.token_folder import TokenFolder
from gateway.core.accounts import USER_NAME_RULE, can_be_new_user, fold_user
from gateway.core.csv_table import CsvFault
from gateway.core.fleet_csv import FleetRow, read_fleet
from gateway.core.ice import Status
from gateway.core.problems import problem, quoted
from gateway.core.roles import Role
from gateway.services.schemas import BulkItem, IceDocument
from gateway.store.engine import StoreUnavailable

_PORTION: Final = 500
"""ICEs in one request at most."""
_PORTION_BYTES: Final = 900_000
"""Bytes of one request; the API reads a MiB."""


@dataclass(slots=True)
class _Plan:
    """What is to be done with the rows of a file."""

    new: list[FleetRow] = field(default_factory=list)
    users: dict[str, str] = field(default_factory=dict)
    """The users to add, by folded name."""
    unused: list[tuple[FleetRow, int]] = field(default_factory=list)
    """ICEs that are provisioned and have no token file, and their generations."""
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """The names of ICEs that are left out, by the reason."""
    faults: list[CsvFault] = field(default_factory=list)


class Fleet:
    """One run of the command.

    Args:
        admin: provisions the ICEs.
        tokens: gets their tokens.
        add_users: adds users that are missing, as members without a password.
        reprovision_unused: makes new tokens for ICEs that are provisioned and have no token file.
    """

    def __init__(
        self, admin: Admin, tokens: TokenFolder, *, add_users: bool, reprovision_unused: bool
    ) -> None:
        self._admin = admin
        self._tokens = tokens
        self._add_users = add_users
        self._reprovision_unused = reprovision_unused
        self._failures: list[str] = []
        self._written = 0

    async def provision(self, file: Path) -> None:
        """Provision the ICEs of a CSV file; the command ends with status 1 if anything was refused."""
        fleet = read_fleet(read_file(file))
        refuse_faults(fleet.faults)
        rows = fleet.rows
        try:
            plan = await self._plan(rows)
            refuse_faults(plan.faults)
            self._tokens.make()
        except OSError as error:
            refuse(f"{self._tokens.path} cannot be used: {error.strerror}", os.EX_CONFIG)
        for reason, names in plan.skipped.items():
            print_notice(f"{count(len(names))} left out, {reason}: {some(names)}")
        if plan.unused and not self._reprovision_unused:
            self._failures.append(
                f"{count(len(plan.unused))} provisioned already, without a token file:"
                f" {some([row.ice_name for row, _ in plan.unused])};"
                " --reprovision-unused makes their tokens anew"
            )
            plan.unused.clear()
        await self._carry_out(plan)
        for failure in self._failures:
            print_notice(failure)
        summary = f"{self._written:,} of {count(len(rows))} got a token, in {self._tokens.path}"
        if self._failures:
            refuse(summary)
        print_notice(summary)

    # --- what is to be done ---------------------------------------------------------------------

    async def _plan(self, rows: Sequence[FleetRow]) -> _Plan:
        plan = _Plan()
        there: list[FleetRow] = []
        doubtful: list[FleetRow] = []
        for portion in _portions(rows):
            answer = await self._admin.bulk(_provision(portion) | {"dry_run": True})
            for row, item in zip(portion, answer.items, strict=True):
                if item.code is None:
                    self._add_new(plan, row)
                elif item.code == "ice-exists":
                    there.append(row)
                else:
                    doubtful.append(row)
        for row, ice in zip(
            there, await at_once(self._admin.ice, [row.ice_name for row in there]), strict=True
        ):
            self._sort_existing(plan, row, ice)
        if doubtful:
            await self._check_users(plan, doubtful)
        plan.new.sort(key=lambda row: row.line)
        plan.faults.sort(key=lambda fault: fault.line)
        return plan

    def _add_new(self, plan: _Plan, row: FleetRow) -> None:
        if self._tokens.holds(row.ice_name):
            file = self._tokens.file(row.ice_name)
            reason = f"{file} is there, but no such ICE: the token is of another one"
            plan.faults.append(CsvFault(row.line, None, reason))
        else:
            plan.new.append(row)

    def _sort_existing(self, plan: _Plan, row: FleetRow, ice: IceDocument) -> None:
        fault = _difference(row, ice)
        if fault is not None:
            plan.faults.append(fault)
        elif ice.status is not Status.PROVISIONED:
            plan.skipped.setdefault(f"{ice.status} already", []).append(ice.ice_name)
        elif self._tokens.holds(ice.ice_name):
            plan.skipped.setdefault("provisioned already", []).append(ice.ice_name)
        else:
            plan.unused.append((row, ice.generation))

    async def _check_users(self, plan: _Plan, rows: Sequence[FleetRow]) -> None:
        """Sort the rows whose user is missing or disabled; the gateway refuses both alike."""
        disabled: dict[str, bool] = {}
        async for page in self._admin.users():
            disabled |= {fold_user(user.name): user.disabledon is not None for user in page}
        for row in rows:
            name = row.user or ""
            known = disabled.get(fold_user(name))
            if known is None and self._add_users and can_be_new_user(name):
                plan.users.setdefault(fold_user(name), name)
                self._add_new(plan, row)
                continue
            if known is None and self._add_users:
                reason = f"a new user needs {USER_NAME_RULE}"
            elif known is None:
                reason = f"there is no user {quoted(name)}; --add-users adds who is missing"
            else:
                reason = f"{name} is disabled" if known else "is not accepted; try again"
            plan.faults.append(CsvFault(row.line, "user", reason))

    # --- doing it -------------------------------------------------------------------------------

    async def _carry_out(self, plan: _Plan) -> None:
        writing: asyncio.Task[None] | None = None
        try:
            await self._add(list(plan.users.values()))
            with _progress(len(plan.new) + len(plan.unused)) as advance:
                for portion, body in self._requests(plan):
                    answer = await self._sent(portion, body)
                    if answer is None:
                        return  # a later portion would not fare better
                    if writing is not None:
                        await writing
                    writing = asyncio.create_task(self._write(portion, answer))
                    advance(len(portion))
        finally:
            if writing is not None:
                await asyncio.shield(writing)

    async def _add(self, users: Sequence[str]) -> None:
        async def add(name: str) -> None:
            try:
                await self._admin.add_user({"name": name, "role": Role.MEMBER})
            except Refused as error:
                if error.code != "user-exists":  # somebody else may have added them
                    raise

        if users:
            print_notice(f"adding {len(users):,} user{'' if len(users) == 1 else 's'}")
            await at_once(add, users)

    @staticmethod
    def _requests(plan: _Plan) -> Iterator[tuple[list[FleetRow], dict[str, Any]]]:
        for portion in _portions(plan.new):
            yield portion, _provision(portion)
        generations = {row.ice_name: generation for row, generation in plan.unused}
        for portion in _portions([row for row, _ in plan.unused]):
            names = [row.ice_name for row in portion]
            yield (
                portion,
                {
                    "action": "reprovision",
                    "ice_names": names,
                    "generations": [generations[name] for name in names],
                },
            )

    async def _sent(
        self, portion: Sequence[FleetRow], body: dict[str, Any]
    ) -> list[BulkItem] | None:
        """The answer for a portion; None if there is none, and why is among the failures."""
        place = f"lines {portion[0].line} to {portion[-1].line}"
        names = f"{count(len(portion))}: {some([row.ice_name for row in portion])}"
        lost = f"{place}: it is not known whether they were done ({names}); run this again with --reprovision-unused"
        try:
            return (await self._admin.bulk(body)).items
        except (AnswerLost, StoreUnavailable) as error:
            self._failures.append(f"{error}; {lost}")
        except Refused as error:
            self._failures.append(f"{place} and what follows were not done: {error}")
        except asyncio.CancelledError:
            print_notice(f"interrupted; {lost}")
            raise
        return None

    async def _write(self, portion: Sequence[FleetRow], items: Sequence[BulkItem]) -> None:
        tokens = []
        for row, item in zip(portion, items, strict=True):
            if item.token is not None:
                tokens.append((row.ice_name, item.token))
            else:
                reason = problem(item.code or "internal").detail
                self._failures.append(str(CsvFault(row.line, row.ice_name, reason)))
        try:
            failed = await asyncio.to_thread(self._tokens.write, tokens)
        except OSError as error:
            failed = {name: error.strerror or str(error) for name, _ in tokens}
        self._written += len(tokens) - len(failed)
        self._failures += [
            f"{name} is provisioned, but its token could not be written: {reason};"
            " --reprovision-unused makes another"
            for name, reason in failed.items()
        ]


def _difference(row: FleetRow, ice: IceDocument) -> CsvFault | None:
    """How an existing ICE differs from its row."""
    there = f"there is an ICE {ice.ice_name}"
    if row.ice_name != ice.ice_name:
        return CsvFault(row.line, "ice_name", f"{there} already, in other letters")
    if row.ice_type != ice.ice_type:
        return CsvFault(row.line, "ice_type", f"{there} already, which is {ice.ice_type}")
    if fold_user(row.user or "") != fold_user(ice.provisionedto or ""):
        return CsvFault(row.line, "user", f"{there} already, of {ice.provisionedto}")
    return None


def _provision(rows: Sequence[FleetRow]) -> dict[str, Any]:
    return {"action": "provision", "ices": [_new(row) for row in rows]}


def _new(row: FleetRow) -> dict[str, Any]:
    new: dict[str, Any] = {"ice_name": row.ice_name, "ice_type": row.ice_type}
    if row.user is not None:
        new["provisionedto"] = row.user
    return new | ({"labels": row.labels} if row.labels else {})


def _portions(rows: Iterable[FleetRow]) -> Iterator[list[FleetRow]]:
    """The rows in portions that a request may have."""
    portion: list[FleetRow] = []
    size = 0
    for row in rows:
        length = len(msgspec.json.encode(_new(row))) + 1
        if portion and (len(portion) == _PORTION or size + length > _PORTION_BYTES):
            yield portion
            portion, size = [], 0
        portion.append(row)
        size += length
    if portion:
        yield portion


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A function that shows how many more are done: a bar on a terminal, otherwise lines."""
    if not total:
        yield lambda _: None
        return
    if not sys.stderr.isatty():
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            print_notice(f"{done:,} of {count(total)}")

        yield advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda more: bar.advance(task, more)
