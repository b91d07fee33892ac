"""The commands that start the client of an ICE on its machine, to paste. Pure. Source: docs/client.md.

None contains a secret: `--token-file` and `--enrolment-key-file` name the file that the admin handed over.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from gateway.core.addresses import is_loopback

KEY_FILE: Final = "enrolment-key.txt"
"""The file with the secret of an enrolment key."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~:/\[\]-]+")


@dataclass(frozen=True, slots=True)
class StartCommand:
    """A command for one system; `id` names its element."""

    id: str
    system: str
    text: str


def run_commands(gateway_url: str, ice_name: str, *, with_token: bool) -> list[StartCommand]:
    """How a person starts this ICE; `with_token` if it has to register, since later it needs no token file."""
    file = ("--token-file", f"{ice_name}.token") if with_token else None
    shell, powershell = _commands("run", gateway_url, file)
    return [
        StartCommand("shell", "Linux and macOS", shell),
        StartCommand("powershell", "Windows (PowerShell)", powershell),
    ]


def enrol_commands(gateway_url: str, *, names_user: bool) -> list[StartCommand]:
    """How a person starts the client of a machine that enrols; `names_user` if it has to name the ICE's user."""
    file = ("--enrolment-key-file", KEY_FILE)
    # `run` cannot name the user. It needs no key file once the machine has enrolled.
    shell, powershell = _commands(
        "enrol" if names_user else "run", gateway_url, file, names_user=names_user
    )
    if names_user:
        then, then_powershell = _commands("run", gateway_url, None)
        shell, powershell = f"{shell}\n{then}", f"{powershell}\n{then_powershell}"
    return [
        StartCommand("shell", "Linux and macOS", shell),
        StartCommand("powershell", "Windows (PowerShell)", powershell),
    ]


def silent_enrol_commands(gateway_url: str, *, names_user: bool) -> list[StartCommand]:
    """One line for a management tool, which distributes the key file: enrol without output, then delete the file.

    Each line ends with the client's exit status.
    """
    file = ("--enrolment-key-file", KEY_FILE)
    shell, powershell = _commands("enrol", gateway_url, file, names_user=names_user)
    return [
        StartCommand(
            "silent-shell",
            "Linux and macOS, by a management tool",
            f"{shell} >/dev/null 2>&1 && rm -f {KEY_FILE}",
        ),
        StartCommand(
            "silent-powershell",
            "Windows, by a management tool",
            f"{powershell} *> $null; if ($LASTEXITCODE -eq 0) {{ Remove-Item -ErrorAction Ignore .\\{KEY_FILE} }};"
            " exit $LASTEXITCODE",
        ),
    ]


def _commands(
    command: str, gateway_url: str, file: tuple[str, str] | None, *, names_user: bool = False
) -> tuple[str, str]:
    """A command of the client for a POSIX shell and for PowerShell; `file` is an option and its file."""
    options = " --user USER" if names_user else ""
    options += " --insecure" if _is_plain_http(gateway_url) else ""
    shell = f"ice/bin/ice-client {command} --gateway {shlex.quote(gateway_url)}"
    powershell = f"ice\\Scripts\\ice-client.exe {command} --gateway {_powershell(gateway_url)}"
    if file is not None:
        option, name = file
        shell += f" {option} {name}"
        powershell += f" {option} .\\{name}"
    return shell + options, powershell + options


def start_commands(gateway_url: str, ice_name: str, *, with_token: bool) -> list[StartCommand]:
    """The commands of `run_commands`, and those that make this ICE a service."""
    settings = [f"ICE_GATEWAY={gateway_url}"]
    if _is_plain_http(gateway_url):
        settings.append("ICE_OPTIONS=--insecure")
    written = " ".join(map(shlex.quote, settings))
    service = [
        f"printf '%s\\n' {written} > /etc/ice-client/environment",
        "systemctl daemon-reload",
        "systemctl enable --now ice-client",
    ]
    if with_token:
        service = [
            "python3 -m venv /opt/ice-client",
            "/opt/ice-client/bin/pip install ./ice-gateway",
            "useradd --system --user-group --shell /usr/sbin/nologin ice-client",
            "install -d -m 0750 -g ice-client /etc/ice-client",
            service[0],
            f"install -m 0600 -o ice-client {ice_name}.token /etc/ice-client/token",
            "cp ice-gateway/config/ice-client.service /etc/systemd/system/",
            *service[1:],
        ]
    return [
        *run_commands(gateway_url, ice_name, with_token=with_token),
        StartCommand("service", "As a Linux service (root)", "\n".join(service)),
    ]


def _is_plain_http(url: str) -> bool:
    """Whether the client refuses the URL without `--insecure`."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def _powershell(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    doubled = text.replace("'", "''")
    return f"'{doubled}'"
