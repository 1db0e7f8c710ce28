"""The URL of a ledger: a SQLite file or a PostgreSQL database. Nothing here repeats a password."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from mlflow_green.errors import LedgerUnavailable, SettingsError
from mlflow_green.settings import secret

_ADVICE = (
    "write MLFLOW_GREEN_LEDGER=sqlite:////absolute/path/ledger.db, or postgresql://USER@HOST/DATABASE for a team's"
)
_PASSWORD = re.compile(r":[^:/@]*@")


def parsed_url(url: str) -> URL:
    """The URL in its parts.

    Raises:
        LedgerUnavailable: it is not the URL of a database.
    """
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        told = _PASSWORD.sub(":***@", url)
        raise LedgerUnavailable(f"{told!r} is not the URL of a ledger; {_ADVICE}") from None


def is_postgres(url: URL) -> bool:
    """Whether it names a PostgreSQL database, whatever driver it asks for."""
    return url.get_backend_name() in {"postgresql", "postgres"}


def ledger_path(url: str) -> Path:
    """The file of ``sqlite:///relative`` or ``sqlite:////absolute``.

    Raises:
        LedgerUnavailable: the URL names no SQLite file.
    """
    parsed = parsed_url(url)
    if parsed.get_backend_name() != "sqlite":
        raise LedgerUnavailable(f"a ledger in {parsed.get_backend_name()} is not supported; {_ADVICE}")
    if not parsed.database or parsed.database == ":memory:":
        raise LedgerUnavailable(f"{url!r} names no file, so nothing would survive; {_ADVICE}")
    return Path(parsed.database)


def place(url: URL) -> str:
    """The database as messages call it: without the password, and without the options that may hold one."""
    if not is_postgres(url):
        return str(url.database)
    host = url.host or url.query.get("host") or url.query.get("service") or ""
    known = url.set(password=None, query={}, drivername="postgresql")
    return known.set(host=host if isinstance(host, str) else host[0]).render_as_string()


def with_password(url: URL) -> URL:
    """With the password itself where the URL says ``env:NAME`` or ``file:PATH``.

    Raises:
        LedgerUnavailable: there is no such variable or file.
    """
    if url.password is None or not url.password.startswith(("env:", "file:")):
        return url
    try:
        return url.set(password=secret("the password in MLFLOW_GREEN_LEDGER", url.password, os.environ))
    except SettingsError as error:
        raise LedgerUnavailable(f"cannot open the ledger {place(url)}: {error}") from error
