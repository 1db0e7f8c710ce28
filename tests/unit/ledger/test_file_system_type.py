from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_green.ledger.filesystem import NETWORK_FILE_SYSTEMS, file_system_type

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /home rw,relatime shared:2 master:3 - nfs4 server:/home rw
24 22 0:22 / /home/ana/my\\040data rw - xfs /dev/vdb rw
25 22 0:23 / /scratch rw - autofs map rw
26 25 0:24 / /scratch rw - lustre mds:/scratch rw
27 22 0:25 / /homes rw - tmpfs tmpfs rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/tmp/ledger.db", "ext4"),
        ("/home/bob/.green/ledger.db", "nfs4"),
        ("/home/ana/my data/ledger.db", "xfs"),
        ("/home/ana/my", "nfs4"),
        ("/scratch/x", "lustre"),
        ("/homes/x", "tmpfs"),
    ],
)
def test_the_longest_and_last_mount_point_decides(path, kind):
    assert file_system_type(Path(path), MOUNTS) == kind


def test_without_mounts_nothing_is_known():
    assert file_system_type(Path("/x"), "") is None


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "9p", "fuse.sshfs"]
)
def test_network_file_systems_are_known(kind):
    assert kind in NETWORK_FILE_SYSTEMS


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs"])
def test_local_file_systems_are_not_refused(kind):
    assert kind not in NETWORK_FILE_SYSTEMS
