"""A real PostgreSQL of this machine: one folder, one port of loopback that was free, and nothing outside of them."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
from pathlib import Path

USER = "stormproof"
PROGRAM_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # where Debian has them, one folder a version


class PostgreSQL:
    """A server with one database, which asks for a password.

    Args:
        folder: for its data, its log and its socket; short, because a socket's path may have 107 signs.

    Attributes:
        password: of its user.
        url: of its database, with the password, for SQLAlchemy.
    """

    def __init__(self, folder: Path) -> None:
        if not PROGRAM_FOLDERS:
            raise RuntimeError("these tests need PostgreSQL: apt-get install --no-install-recommends postgresql")
        self._folder, self._data = folder, folder / "data"
        self.password = secrets.token_hex(16)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"postgresql+psycopg://{USER}:{self.password}@127.0.0.1:{self._port}/postgres"
        self._user_prefix: list[str] = []
        if os.geteuid() == 0:  # as which it refuses to run
            self._user_prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(folder, "postgres", pwd.getpwnam("postgres").pw_gid)
        password_file = folder / "password"
        password_file.write_text(self.password)
        authentication_options = ("--auth=scram-sha-256", f"--username={USER}", f"--pwfile={password_file}")
        self._run("initdb", "--no-sync", "--encoding=UTF8", "--locale=C", *authentication_options)

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        server_options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1"
        self._run("pg_ctl", "start", "--wait", f"--log={self._folder / 'log'}", f"--options={server_options}")

    def stop(self) -> None:
        """Stops it as when the power goes off: whoever is connected is cut off."""
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._user_prefix, str(PROGRAM_FOLDERS[-1] / program), f"--pgdata={self._data}", *arguments]
        # nothing is read: the server would keep a pipe open
        subprocess.run(
            command, cwd=self._folder, check=True, timeout=60, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
