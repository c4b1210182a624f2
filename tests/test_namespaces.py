"""Mounts that others make on the machine: the tests neither see them nor keep them in use."""

import errno
import os
from pathlib import Path

from passthrough.linux import mountinfo, syscalls
from passthrough.worker import fuse_mount
from tests.support.tools.callers import ROOT
from tests.support.tools.mounts import MS_SHARED, bound
from tests.support.tools.namespaces import entered, leave_machine
from tests.support.tools.options import effective


def passfs_mounts(top: Path) -> list[str]:
    """Return the names of the directories in *top* with a passfs mount."""
    mounts = [mount for mount in mountinfo.read() if mount.fstype == mountinfo.FSTYPE]
    paths = [Path(os.fsdecode(mount.target)) for mount in mounts]
    return sorted(path.name for path in paths if path.parent == top)


def is_gone(fuse_fd: int) -> bool:
    """Return whether the file system behind a descriptor of /dev/fuse has ended, fuse(4)."""
    os.set_blocking(fuse_fd, False)
    try:
        while os.read(fuse_fd, 1 << 20):
            pass
    except OSError as error:
        return error.errno == errno.ENODEV
    return False


def test_mounts_of_the_machine_stay_out(tmp_path: Path) -> None:
    """The machine has one passfs mount before the tests begin, and gets another meanwhile."""
    machine = tmp_path / "machine"

    def run() -> tuple[list[list[str]], list[bool]]:
        syscalls.mount(b"none", os.fsencode(machine), b"none", MS_SHARED, b"")
        for name in ("before", "meanwhile"):
            (machine / name).mkdir()
        fuse = [fuse_mount.mount(machine / "before", effective())]
        namespace = leave_machine()
        seen = [passfs_mounts(machine)]
        with entered(namespace):
            fuse.append(fuse_mount.mount(machine / "meanwhile", effective()))
            seen.append(passfs_mounts(machine))
        seen.append(passfs_mounts(machine))
        with entered(namespace):
            for name in ("before", "meanwhile"):
                fuse_mount.unmount(machine / name)
        return seen, [is_gone(fd) for fd in fuse]

    with bound(tmp_path, machine):
        seen, gone = ROOT.run(run)

    assert seen == [[], ["before", "meanwhile"], []]
    assert gone == [True, True]
