"""A private PostgreSQL: a server of an ordinary user in a folder of its own, reached through a socket in it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg

from tests.testkit.services import lacks
from tests.testkit.waiting import comes_true

USER = "test"
PASSWORD = "pass word/of:the@tests"  # every character that a URL must escape
START_SECONDS = 30


def server_programs() -> Path | None:
    """Where the newest installed server is: Debian keeps it outside PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("postgres")
    found = found or ([Path(on_path).resolve()] if on_path else [])
    return found[-1].parent if found else None


@contextmanager
def postgres_server(*, durable: bool = False) -> Iterator[PostgresServer]:
    """A new server, stopped and removed at the end; it ends with this process in any case.

    A ``durable`` one waits for the disk at each commit, as a real one does.
    """
    programs = server_programs()
    if programs is None:
        lacks("there is no PostgreSQL server; install Debian's package postgresql")
    folder = Path(tempfile.mkdtemp(prefix="green-pg-"))  # short: the path of a socket has at most 107 characters
    server = PostgresServer(folder, programs, durable=durable)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


class PostgresServer:
    """``url`` is that of the server's administrator; a test works in a database of its own, ``new_database()``."""

    def __init__(self, folder: Path, programs: Path, *, durable: bool) -> None:
        self.folder = folder
        self._programs = programs
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str, user: str = USER, password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{quote(password, safe='')}@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        self._count += 1
        name = f"test{self._count}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url_of(name)

    def as_role(self, url: str, role: str) -> str:
        """The same database for another role, which is made where there is none; it may do everything."""
        if role == USER:
            return url
        if not self.execute(f"SELECT 1 FROM pg_roles WHERE rolname = '{role}'"):
            self.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'pass'")
        return self.url_of(urlsplit(url).path[1:], role, "pass")

    def drop_database(self, url: str) -> None:
        """Free its 8 MB, for a test that makes many; whoever is connected is thrown out."""
        self.execute(f"DROP DATABASE {urlsplit(url).path[1:]} WITH (FORCE)")

    def execute(self, *statements: str, url: str | None = None) -> list[tuple[object, ...]]:
        """Run statements as the administrator; the rows of the last one."""
        with psycopg.connect(url or self.url, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def create(self) -> None:
        """Make the data folder; PostgreSQL refuses to run as root, so for root it belongs to an ordinary user."""
        password = self.folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            for path in (self.folder, password):
                os.chown(path, account.pw_uid, account.pw_gid)
        initdb = [self._programs / "initdb", "--pgdata", self.folder / "data", "--username", USER]
        initdb += ["--pwfile", password, "--auth", "scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        made = subprocess.run([*_as_ordinary_user(), *initdb], cwd=self.folder, capture_output=True, check=False)
        assert made.returncode == 0, made.stderr.decode()

    def start(self) -> None:
        """Start it, also after a crash; returns when it takes connections."""
        options = {"listen_addresses": "", "unix_socket_directories": str(self.folder), "shared_buffers": "16MB"}
        if not self._durable:
            options |= {"fsync": "off", "full_page_writes": "off"}
        settings = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_ordinary_user(), self._programs / "postgres", "-D", self.folder / "data", *settings],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        assert comes_true(self._answers, START_SECONDS), (self.folder / "log").read_text()

    def crash(self) -> None:
        """End it at once, as ``pg_ctl -m immediate`` does: nothing is written back, it recovers when it starts."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        """End it without waiting for its clients."""
        self._end(signal.SIGINT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=START_SECONDS)
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()
        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False
        return True


def _as_ordinary_user() -> list[str]:
    """The server stops with whoever started it, even after kill -9."""
    user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    return ["setpriv", "--pdeathsig=INT", *user, "--"]
