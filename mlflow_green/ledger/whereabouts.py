"""Where a ledger is kept and which other host has it, told without opening it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from mlflow_green.clock import boot_id
from mlflow_green.ledger.address import is_postgres, ledger_path, parsed_url
from mlflow_green.ledger.cache import cache_folders
from mlflow_green.ledger.filesystem import journal_folder, network_file_system, refuse_network_file_system
from mlflow_green.ledger.lease import LEASE_SECONDS, Holder, in_use_text, other_holder
from mlflow_green.ledger.sqlite import explained


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """Who else has a ledger: another host, user or container. ``text`` says it, and what to do."""

    holder: Holder
    silent_seconds: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Where a ledger is, or will be: a journal in a folder and its cache, or else a SQLite file.

    ``file_system`` is the type of the network file system, ``None`` on a local disk.
    """

    file_system: str | None = None
    journal: Path | None = None
    cache: Path | None = None
    elsewhere: Elsewhere | None = None


def whereabouts(url: str, mountinfo_path: Path) -> Whereabouts:
    """Look up the ledger of ``url`` as this host would open it. Opens and makes nothing, and takes it from nobody.

    Raises:
        LedgerUnavailable: no ledger can be there, or its lease cannot be read.
    """
    if is_postgres(parsed_url(url)):
        return Whereabouts()
    path = ledger_path(url)
    with explained(path, "find"):
        refuse_network_file_system(path, mountinfo_path)
        journal = journal_folder(path, mountinfo_path)
        if journal is None:
            return Whereabouts()
        possible = cache_folders(journal, mountinfo_path)
        cache = next((folder for folder in possible if folder.is_dir()), next(iter(possible), None))
        return Whereabouts(
            file_system=network_file_system(path, mountinfo_path),
            journal=journal,
            cache=cache,
            elsewhere=_elsewhere(journal, cache) if journal.is_dir() else None,
        )


def _elsewhere(journal: Path, cache: Path | None) -> Elsewhere | None:
    known = cache / "cache-id" if cache else None
    cache_id = known.read_text() if known and known.exists() else ""
    me = Holder(host=socket.gethostname(), boot_id=boot_id(), cache=str(cache), cache_id=cache_id, since="")
    found = other_holder(journal, me)
    if found is None:
        return None
    holder, silent_seconds = found
    text = in_use_text(journal, holder, me, silent_seconds)
    if silent_seconds > LEASE_SECONDS:
        text = (
            f"host {holder.host} has not released the ledger in {journal}, and gave no sign of life for"
            f" {silent_seconds:.0f} s; the next command here takes it over, e.g. 'mlflow-green balance'"
        )
    return Elsewhere(holder=holder, silent_seconds=silent_seconds, text=text)
