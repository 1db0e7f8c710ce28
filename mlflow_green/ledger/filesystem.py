"""Which file system a path lies on; SQLite needs locks that network file systems do not keep."""

from __future__ import annotations

import re
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


def refuse_network_file_system(path: Path, mountinfo_path: Path) -> None:
    """Raise ``LedgerUnavailable`` if ``path`` is on a network file system; without mountinfo nothing is known."""
    try:
        mountinfo = mountinfo_path.read_text(errors="surrogateescape")
    except OSError:
        return
    kind = file_system_type(path.resolve(), mountinfo)
    if kind in NETWORK_FILE_SYSTEMS:
        raise LedgerUnavailable(
            f"the ledger {path} would lie on a network file system ({kind}), where SQLite can corrupt it;"
            " set MLFLOW_GREEN_LEDGER to a file on a local disk of this host,"
            f" e.g. MLFLOW_GREEN_LEDGER=sqlite:////var/tmp/{path.resolve().parent.parent.name or 'green'}-ledger.db"
        )
