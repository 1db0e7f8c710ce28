"""Which file system a path lies on; SQLite needs locks that network file systems do not keep."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from mlflow_green.errors import LedgerUnavailable

# fmt: off
NETWORK_FILE_SYSTEMS = frozenset(
    {
        "nfs", "nfs3", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "lustre", "lustre_lite", "gpfs", "mmfs",
        "beegfs", "fhgfs", "ceph", "9p", "afs", "ncpfs", "panfs", "pvfs2", "orangefs", "ocfs2", "gfs", "gfs2",
        "glusterfs", "wekafs", "davfs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.cephfs",
        "fuse.s3fs", "fuse.gcsfuse", "fuse.goofys", "fuse.rclone", "fuse.juicefs", "fuse.beegfs", "fuse.davfs",
        "fuse.davfs2", "fuse.mount-s3", "fuse.smbnetfs", "fuse.curlftpfs", "fuse.hdfs", "fuse.nfs", "fuse.moosefs",
        "fuse.mfs",
    }
)
# fmt: on

_OCTAL = re.compile(r"\\([0-7]{3})")


def file_system_type(path: Path, mountinfo: str) -> str | None:
    """The type of the file system that ``path`` (absolute, resolved) is on, ``None`` if no mount matches.

    ``mountinfo`` is the text of ``/proc/self/mountinfo`` (proc(5)): field 5 is the mount point, with
    blanks as octal escapes; the type follows the separator ``-``. The longest mount point wins, and
    of mounts stacked on one point the last.
    """
    best: tuple[int, str] | None = None
    for line in mountinfo.splitlines():
        fields, separator, rest = line.partition(" - ")
        if not separator or len(fields.split(" ")) < 5:  # noqa: PLR2004 - the mount point is field 5
            continue
        point = Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), fields.split(" ")[4]))
        depth = len(point.parts)
        if path.is_relative_to(point) and (best is None or depth >= best[0]):
            best = (depth, rest.split(" ")[0])
    return best[1] if best else None


def network_file_system(path: Path, mountinfo_path: Path) -> str | None:
    """The type of the network file system that ``path`` is on; ``None`` on a local disk or where no mount is known."""
    try:
        mountinfo = mountinfo_path.read_text(errors="surrogateescape")
    except OSError:
        return None
    kind = file_system_type(path.resolve(), mountinfo)
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def local_folders(mountinfo_path: Path) -> tuple[Path, ...]:
    """Where files of this host may lie, best first: ``$MLFLOW_GREEN_RUNTIME_DIR``, /var/tmp, the temporary folder."""
    named = os.environ.get("MLFLOW_GREEN_RUNTIME_DIR")
    folders = [Path(named)] if named else []
    folders += [Path("/var/tmp"), Path(tempfile.gettempdir())]  # noqa: S108 - a folder of our own in it is checked
    return tuple(folder for folder in folders if network_file_system(folder, mountinfo_path) is None)


def journal_path(path: Path) -> Path:
    """Where the journal of the ledger ``path`` is, if it has one."""
    return path.with_suffix(".journal")


def journal_folder(path: Path, mountinfo_path: Path) -> Path | None:
    """Where the journal of the ledger ``path`` is or would be; ``None`` where its SQLite file is the ledger itself.

    A journal that is there counts on a local disk too: that is how the file server itself sees it, or whoever copied
    the project home.
    """
    folder = journal_path(path)
    return folder if folder.is_dir() or network_file_system(path, mountinfo_path) else None


def refuse_network_file_system(path: Path, mountinfo_path: Path) -> None:
    """Raise ``LedgerUnavailable`` if ``path`` lies on a network file system and no ledger can be kept there.

    It can be if its journal may lie there: no SQLite file is in the way, and this host has a local disk for the cache.
    """
    kind = network_file_system(path, mountinfo_path)
    if kind is None:
        return
    local = f"/var/tmp/{path.resolve().parent.parent.name or 'green'}-ledger.db"  # noqa: S108 - an example
    if path.exists() and not journal_path(path).exists():
        raise LedgerUnavailable(
            f"the ledger {path} is a SQLite file on a network file system ({kind}), where SQLite can corrupt it;"
            f" copy it to a local disk of this host and name it: cp {path} {local},"
            f" then set MLFLOW_GREEN_LEDGER=sqlite:///{local}"
        )
    if not local_folders(mountinfo_path):
        raise LedgerUnavailable(
            f"the ledger {path} would lie on a network file system ({kind}), which needs a folder on a local disk"
            " beside it; set MLFLOW_GREEN_RUNTIME_DIR to one of this host,"
            f" or MLFLOW_GREEN_LEDGER to a file there, e.g. MLFLOW_GREEN_LEDGER=sqlite:///{local}"
        )
