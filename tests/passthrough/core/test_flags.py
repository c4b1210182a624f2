"""Flags of files: the capabilities with which the host is asked to change them."""

import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from passthrough.core.face import Core
from passthrough.options.choices import SessionKind, Squash
from passthrough.options.values import Range
from passthrough.session.abi import Opcode
from passthrough.session.rare import Rare
from tests.support.fakes.kernel import entry, text
from tests.support.tools import abi, wire
from tests.support.tools.core_threads import CAP_FSETID
from tests.support.tools.disks import ext4
from tests.support.tools.host_calls import FS_IOC_SETFLAGS
from tests.support.tools.options import effective

FIFREEZE, FITHAW, TCGETS = 0xC004_5877, 0xC004_5878, 0x5401
IOCTL_CALLS = ("16 ", "29 ")  # ioctl(2), x86_64 and aarch64
LIMIT_S = 20.0
NONE = b""


class Volume:
    """A core, the one thread that serves it, and its one file, which is open."""

    def __init__(self, source: Path, **options: object) -> None:
        config = effective(session=SessionKind.KERNEL, **options)
        self.core = Core(config, os.open(source, os.O_PATH | os.O_DIRECTORY), Rare(config))
        self.serving = ThreadPoolExecutor(1)
        self.thread = self.serving.submit(threading.get_native_id).result()
        found = self.serving.submit(
            self.core.call, Opcode.LOOKUP, abi.ROOT_ID, 0, 0, 1, text(b"file")
        )
        self.nodeid = entry(found.result())["nodeid"]
        opening = wire.OPEN_IN.pack(os.O_RDWR, 0)
        opened = self.serving.submit(self.core.call, Opcode.OPEN, self.nodeid, 0, 0, 1, opening)
        self.fh = wire.OPEN_OUT.unpack(opened.result())[0]

    def ioctl(
        self, command: int, data: bytes = NONE, uid: int = 0, gid: int = 0
    ) -> Future[bytes | int]:
        body = wire.IOCTL_IN.pack(self.fh, 0, command, 0, len(data), 0) + data
        return self.serving.submit(self.core.ask, Opcode.IOCTL, self.nodeid, uid, gid, 1, body)

    def capabilities(self) -> int:
        """Return the effective capabilities of the thread, once it is inside of ioctl(2)."""
        task, until = Path(f"/proc/self/task/{self.thread}"), time.monotonic() + LIMIT_S
        while not (task / "syscall").read_text().startswith(IOCTL_CALLS):
            assert time.monotonic() < until
        lines = (task / "status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("CapEff")).split()[1], 16)

    def close(self) -> None:
        self.serving.shutdown()
        assert self.core.close()


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Callable[[Volume, int], int]]:
    """Give what changes flags on a file system that is frozen meanwhile, ioctl_fifreeze(2).

    It returns the capabilities of the thread that then waits in ioctl(2).
    """
    (tmp_path / "disk").mkdir()
    with ext4(tmp_path / "disk"):
        (tmp_path / "disk" / "file").touch()
        top = os.open(tmp_path / "disk", os.O_RDONLY)

        def change(volume: Volume, uid: int) -> int:
            fcntl.ioctl(top, FIFREEZE, 0)
            try:
                changing = volume.ioctl(FS_IOC_SETFLAGS, struct.pack("=I", 0), uid, uid)
                return volume.capabilities()
            finally:
                fcntl.ioctl(top, FITHAW, 0)
                assert changing.result(LIMIT_S) == wire.IOCTL_OUT.pack(0, 0, 0, 0)

        yield change
        os.close(top)


@pytest.mark.parametrize(("uid", "expected"), [(0, CAP_FSETID), (1000, 0)])
def test_only_root_keeps_suid_and_sgid_bits_with_changed_flags(
    frozen: Callable[[Volume, int], int], tmp_path: Path, uid: int, expected: int
) -> None:
    """Without CAP_FSETID, a change of a file's flags makes XFS take these bits away."""
    with closing(Volume(tmp_path / "disk")) as volume:
        assert frozen(volume, uid) & CAP_FSETID == expected


def test_tcgets_is_refused_without_a_switch_of_ids(source: Path) -> None:
    """A caller that cannot be switched to gets the answer, too."""
    (source / "file").touch()
    (source / "file").chmod(0o666)
    options = {"anon_uid": 70, "anon_gid": 80, "map_gid": (Range(0, 0, 100),)}
    with closing(Volume(source, squash=Squash.ROOT, **options)) as volume:
        flags = struct.pack("=I", 0)
        assert volume.ioctl(FS_IOC_SETFLAGS, flags, 0, 700).result() == errno.EPERM
        assert volume.ioctl(TCGETS, NONE, 0, 700).result() == errno.ENOTTY
