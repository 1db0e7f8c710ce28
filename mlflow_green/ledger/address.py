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
_PASSWORD = re.compile(r"(?<=//)([^:/@]*):.*@")


def parsed_url(url: str) -> URL:
    """The URL in its parts.

    Raises:
        LedgerUnavailable: it is not the URL of a database.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise LedgerUnavailable(f"{_without_password(url)!r} is not the URL of a ledger; {_ADVICE}") from None
    if parsed.host is not None and "@" in parsed.host:  # the rest of a password would be taken for a host, and told
        raise LedgerUnavailable(
            f"{_without_password(url)!r} has more than one @; write one in a password as %40, or env:NAME for all of it"
        )
    return parsed


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


def shown(url: str) -> str:
    """The URL as people may see it."""
    try:
        parsed = parsed_url(url)
    except LedgerUnavailable:
        return _without_password(url)
    return place(parsed) if is_postgres(parsed) else _without_password(url)


def place(url: URL) -> str:
    """The database as messages call it: without the password, and without the options that may hold one."""
    if not is_postgres(url):
        return str(url.database)
    hosts = url.host or url.query.get("host") or url.query.get("service") or ""
    host = hosts if isinstance(hosts, str) else ",".join(hosts)
    known = URL.create("postgresql", username=url.username, host=host, port=url.port, database=url.database)
    return known.render_as_string()


def _without_password(url: str) -> str:
    """Even where it is no URL, and the password was not escaped."""
    return _PASSWORD.sub(r"\1:***@", url)


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
