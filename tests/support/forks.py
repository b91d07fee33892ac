"""Processes of `ice-client` or `ice-gateway` without the half second that each takes to import.

They are forked off one that has done so.

Each is a process of its own, which can be killed, or send itself a signal at the n-th of its calls into
the system. Run as a program, this file is the process that all are forked off.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
PATIENCE = 60
"""Seconds after which a forked process ends itself."""

# --- for tests ---------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    """Ours, without any setting of the gateway but `more`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ICE_GATEWAY_")}
    return {**kept, **more}


@dataclass(frozen=True)
class Ended:
    """How a process ended; a negative status is a signal. `steps` are filled in unless it was killed."""

    status: int
    out: str
    err: str
    steps: list[str]


class Forks:
    """Starts processes of one command; see `forks`."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._lock = threading.Lock()
        self._started = 0

    async def start(self, *arguments: Any, stdin: str = "", **how: Any) -> int:
        """Start the command and return its process id; see `_child` for `how`."""
        return await asyncio.to_thread(self._start, arguments, stdin, how)

    def _start(self, arguments: tuple[Any, ...], stdin: str, how: dict[str, Any]) -> int:
        self._started += 1
        files = self._folder / str(self._started)
        files.with_suffix(".in").write_text(stdin, "utf-8")
        for name in ("out", "err", "steps"):
            files.with_suffix(f".{name}").touch()
        job = {"arguments": [str(item) for item in arguments], "files": str(files)} | how
        return int(self._ask(job)["pid"])

    async def end(self, pid: int) -> Ended:
        """Wait until a process ends; until then no other can be started."""
        return await asyncio.to_thread(self._end, pid)

    async def run(self, *arguments: Any, **how: Any) -> Ended:
        return await self.end(await self.start(*arguments, **how))

    def run_blocking(self, *arguments: Any, **how: Any) -> Ended:
        """The same, for a test without an event loop."""
        return self._end(self._start(arguments, how.pop("stdin", ""), how))

    def _end(self, pid: int) -> Ended:
        told = self._ask({"wait": pid})
        out, err, steps = (
            Path(f"{told['files']}.{name}").read_text("utf-8") for name in ("out", "err", "steps")
        )
        return Ended(told["status"], out, err, steps.split())

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


@contextlib.contextmanager
def forks(folder: Path, program: str = "client", prepare: str = "") -> Iterator[Forks]:
    """Fork processes of `program` that write into `folder`; `prepare` names a module to import before it.

    They get the environment of this process, without settings of the gateway.
    """
    command = [sys.executable, "-m", __name__, program, prepare]
    pipe = subprocess.PIPE
    # At the end of its input it kills what it has forked and ends.
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdin=pipe, stdout=pipe) as process:
        yield Forks(process, folder)


# --- the process that all are forked off -------------------------------------------------------

# Calls of which nothing outlives the process: they look, or concern its own handles alone.
_UNSEEN = {
    *("access", "fileno", "fspath", "fstat", "getcwd", "gethostname", "getpeername", "getpid"),
    *("getsockname", "getsockopt", "inet_pton", "isatty", "kill", "listdir", "lstat", "open_code"),
    *("scandir", "stat", "urandom"),
    *("close", "detach", "setblocking", "setsockopt", "socketpair"),
}
_SYSTEM = {"posix", "fcntl", "_io", "_socket", "socket"}
_fork, _kill, _alarm = os.fork, os.kill, signal.alarm  # some of which `prepare` takes away


class _Steps:
    """Notes the calls into the system, and sends this process a signal before one of them."""

    def __init__(self, at: int | None, number: int) -> None:
        self.names: list[str] = []
        self._at = at
        self._number = number

    def begin(self) -> None:
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def end(self) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _profile(self, frame: Any, event: str, called: Any) -> None:
        # What the client says it writes in a thread of its own, sooner or later.
        if event != "c_call" or frame.f_globals["__name__"] == "client.standard_streams":
            return
        module = called.__module__ or type(called.__self__).__module__
        if module not in _SYSTEM or called.__name__ in _UNSEEN:
            return
        if called.__qualname__.startswith(("BufferedReader", "TextIOWrapper")):
            return
        if len(self.names) == self._at:
            _kill(os.getpid(), self._number)
        self.names.append(called.__qualname__)


def _child(program: str, job: dict[str, Any]) -> NoReturn:
    """Be `program`, in a process of its own.

    `streams`: paths to have in place of the files for `out` or `err`. `environ`: set besides.
    `until_admitted`: end then, as on SIGTERM. `steps`: note the calls into the system until the admission,
    and send itself `signal` before the one with the number `at`.
    """
    import click  # noqa: PLC0415 - after what `prepare` has done

    _alarm(PATIENCE)
    for descriptor, name in enumerate(("in", "out", "err")):
        path = job.get("streams", {}).get(name, f"{job['files']}.{name}")
        os.dup2(os.open(path, os.O_RDWR), descriptor)
    os.environ.update(job.get("environ", {}))
    sys.argv = [f"ice-{program}", *job["arguments"]]
    steps = _Steps(job.get("at"), job.get("signal", signal.SIGTERM))
    echo = click.echo

    def observe(message: Any, **how: Any) -> None:
        echo(message, **how)
        if " admitted as " in str(message) and job.get("until_admitted"):
            steps.end()
            _kill(os.getpid(), signal.SIGTERM)

    click.echo = observe
    status = 70
    try:
        if job.get("steps"):
            steps.begin()
        importlib.import_module(f"{program}.__main__").main()
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 0
    except BaseException:  # noqa: BLE001 - it would be Python's to print it
        sys.excepthook(*sys.exc_info())
    finally:
        steps.end()
        Path(f"{job['files']}.steps").write_text("\n".join(steps.names), "utf-8")
        os._exit(status if _finalized() else 120)


def _finalized() -> bool:
    """Do what Python does at its end, but for freeing the memory; whether all was written."""
    threading._shutdown()
    atexit._run_exitfuncs()
    done = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            done = False
    return done


def _serve(program: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    files: dict[int, str] = {}
    for line in sys.stdin.buffer:
        job = json.loads(line)
        if "wait" in job:
            status = os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1])
            answer = {"status": status, "files": files.pop(job["wait"])}
        else:
            if not (pid := _fork()):
                _child(program, job)
            files[pid] = job["files"]
            answer = {"pid": pid}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    for pid in files:
        _kill(pid, 9)


if __name__ == "__main__":
    program, prepare = sys.argv[1:]
    # The codec is else imported when it is first needed, as a step.
    for module in ("encodings.idna", prepare or "json", f"{program}.cli", f"{program}.__main__"):
        importlib.import_module(module)
    gc.disable()  # it would copy what the processes share
    _serve(program)
