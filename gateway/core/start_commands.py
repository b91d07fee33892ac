"""The commands that start the client of an ICE on its machine, to paste. Pure. Source: docs/client.md.

None contains the token: `--token-file` names the file that the admin handed over.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from gateway.core.addresses import is_loopback

_PLAIN: Final = re.compile(r"[A-Za-z0-9._~:/\[\]-]+")


@dataclass(frozen=True, slots=True)
class StartCommand:
    """A command for one system; `id` names its element."""

    id: str
    system: str
    text: str


def run_commands(gateway_url: str, ice_name: str, *, with_token: bool) -> list[StartCommand]:
    """How a person starts this ICE; `with_token` if it has to register, since later it needs no token file."""
    options = " --insecure" if _is_plain_http(gateway_url) else ""
    shell = f"run --gateway {shlex.quote(gateway_url)}"
    powershell = f"run --gateway {_powershell(gateway_url)}"
    if with_token:
        shell += f" --token-file {ice_name}.token"
        powershell += f" --token-file .\\{ice_name}.token"
    return [
        StartCommand("shell", "Linux and macOS", f"ice/bin/ice-client {shell}{options}"),
        StartCommand(
            "powershell",
            "Windows (PowerShell)",
            f"ice\\Scripts\\ice-client.exe {powershell}{options}",
        ),
    ]


def start_commands(gateway_url: str, ice_name: str, *, with_token: bool) -> list[StartCommand]:
    """The commands of `run_commands`, and those that make this ICE a service."""
    settings = [f"ICE_GATEWAY={gateway_url}"]
    if _is_plain_http(gateway_url):
        settings.append("ICE_OPTIONS=--insecure")
    written = " ".join(map(shlex.quote, settings))
    service = [
        f"printf '%s\\n' {written} > /etc/ice-client/environment",
        "systemctl daemon-reload && systemctl enable --now ice-client",
    ]
    if with_token:
        service = [
            "python3 -m venv /opt/ice-client && /opt/ice-client/bin/pip install ./ice-gateway",
            "useradd --system --shell /usr/sbin/nologin ice-client",
            "install -d -m 0750 -g ice-client /etc/ice-client",
            service[0],
            f"install -m 0600 -o ice-client {ice_name}.token /etc/ice-client/token",
            "cp ice-gateway/config/ice-client.service /etc/systemd/system/",
            service[1],
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
