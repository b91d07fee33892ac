"""nginx before a gateway, with the site of `config/nginx.conf`: the very file that operators take."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from tests.support.authority import Authority
from tests.support.ice import PROCESS_PATIENCE

SITE = Path(__file__).parents[2] / "config" / "nginx.conf"
# Debian's is not on everybody's path.
NGINX = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
ADDRESS = "127.0.0.2"
"""From where it speaks to the gateway: an address of its own, so that it is not taken for a client."""
# What /etc/nginx/nginx.conf has on a machine; here nginx writes into its folder, as who runs the tests.
_FRAME = f"""
{"user root;" if os.geteuid() == 0 else ""}
daemon off;
worker_processes 1;
pid nginx.pid;
events {{}}
http {{
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    access_log redirects.log;
    proxy_bind {ADDRESS};
    include site.conf;
}}
"""


class Nginx:
    """A running nginx; `gateway` is the host and port that it passes requests to."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.folder = folder
        self.authority = authority
        self.trust = authority.trust()
        # nginx takes over sockets that are named in its environment: they listen from now on, so
        # that nobody waits for it to start, and no port can be taken by somebody else meanwhile.
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        redirecting, serving = (listener.getsockname()[1] for listener in listeners)
        self.plain = f"http://127.0.0.1:{redirecting}"
        self.url = f"https://127.0.0.1:{serving}"
        # An address that nobody else uses: the port stays free between two gateways.
        with socket.create_server(("127.0.0.3", 0)) as free:
            self.gateway = free.getsockname()
        (folder / "site.conf").write_text(self._site(redirecting, serving))
        (folder / "nginx.conf").write_text(_FRAME)
        self.check = self._run("-t")
        inherited = [listener.fileno() for listener in listeners]
        self._process = subprocess.Popen(
            self._command(),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "NGINX": "".join(f"{number};" for number in inherited)},
            pass_fds=inherited,
        )
        for listener in listeners:
            listener.close()

    def _site(self, redirecting: int, serving: int) -> str:
        """The file as we ship it; only what differs on each machine is put in."""
        text = SITE.read_text("utf-8")
        certificate, key = self.authority.certificate("127.0.0.1", name="nginx")
        # Both ways are tried at once: the gateway answers with and without the prefix.
        text, found = re.subn(
            r"(?m)^    # (location /ice-gateway/ \{)\n    # (.+)\n    # \}", r"\1 \2 }", text
        )
        assert found == 1, "the location with a prefix is not where it was"
        for shipped, here in {
            "listen 80;": f"listen 127.0.0.1:{redirecting};",
            "listen 443 ssl http2;": f"listen 127.0.0.1:{serving} ssl http2;",
            "/etc/ssl/gateway.example/fullchain.pem": str(certificate),
            "/etc/ssl/gateway.example/privkey.pem": str(key),
            "/var/log/nginx/ice-gateway.log": str(self.folder / "access.log"),
            "127.0.0.1:8440": "{}:{}".format(*self.gateway),
        }.items():
            assert f" {shipped}" in text, f"the example has no {shipped}"
            text = text.replace(shipped, here)
        return text

    def _command(self, *options: str) -> list[str]:
        folder = str(self.folder)
        return [str(NGINX), "-p", folder, "-c", "nginx.conf", "-e", "error.log", *options]

    def _run(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(*options),
            capture_output=True,
            text=True,
            timeout=PROCESS_PATIENCE,
            check=False,
        )

    def logs(self) -> str:
        """All that it has logged."""
        return "".join((self.folder / f"{name}.log").read_text() for name in ("access", "error"))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PROCESS_PATIENCE)
