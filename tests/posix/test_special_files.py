"""Special files: fifos, device nodes, sockets."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from tests.support.tools.callers import USER, Caller


def test_fifo(directory: Path, caller: Caller) -> None:
    """Two processes communicate through a fifo; each open(2) waits for the other: fifo(7)."""
    path = directory / "fifo"
    os.mkfifo(path, 0o600)
    assert stat.S_ISFIFO(path.stat().st_mode)
    with caller.start(lambda: path.write_bytes(b"through the fifo")):
        assert path.read_bytes() == b"through the fifo"

    assert path.stat().st_size == 0


def test_fifo_without_reader(directory: Path) -> None:
    """Opening a fifo with O_WRONLY | O_NONBLOCK fails with ENXIO if no process reads: fifo(7)."""
    os.mkfifo(directory / "fifo")
    with pytest.raises(OSError) as caught:
        os.open(directory / "fifo", os.O_WRONLY | os.O_NONBLOCK)

    assert caught.value.errno == errno.ENXIO


@pytest.mark.privileged
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK], ids=["character", "block"])
def test_device_node(directory: Path, kind: int) -> None:
    """A device node has its type and number, large ones too: mknod(2)."""
    number = os.makedev(259, 70_000)
    os.mknod(directory / "node", kind | 0o640, number)

    status = (directory / "node").stat()
    assert (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)) == (kind, 0o640)
    assert status.st_rdev == number


@pytest.mark.privileged
def test_opening_a_device_node(directory: Path) -> None:
    """A device node opens its device. If the mount has nodev, open fails with EACCES: mount(2)."""
    path = directory / "null"
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    if os.statvfs(path).f_flag & os.ST_NODEV:
        with pytest.raises(PermissionError) as caught:
            path.read_bytes()
        assert caught.value.errno == errno.EACCES
    else:
        assert path.read_bytes() == b""


@pytest.mark.privileged
def test_device_node_needs_privilege(directory: Path) -> None:
    """Only a privileged caller makes device nodes, EPERM otherwise: mknod(2)."""
    directory.chmod(0o777)
    with pytest.raises(PermissionError) as caught:
        USER.run(lambda: os.mknod(directory / "node", stat.S_IFCHR, os.makedev(1, 3)))

    assert caught.value.errno == errno.EPERM


def test_regular_file_by_mknod(directory: Path) -> None:
    """Mknod makes an ordinary empty file too: mknod(2)."""
    os.mknod(directory / "file", stat.S_IFREG | 0o640)
    (directory / "file").write_text("content")

    assert stat.S_ISREG((directory / "file").stat().st_mode)
    assert (directory / "file").read_text() == "content"


def test_socket(directory: Path, caller: Caller) -> None:
    """A client connects by the socket's name, until that name is removed: unix(7)."""
    path = directory / "socket"

    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))
            client.sendall(b"question")
            return client.recv(100)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
        assert path.is_socket()
        server.listen()
        with caller.start(ask) as asking:
            connection, _ = server.accept()
            with connection:
                assert connection.recv(100) == b"question"
                connection.sendall(b"answer")
            assert asking.result() == b"answer"
    with pytest.raises(ConnectionRefusedError):
        ask()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        ask()


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_special_files_rename_and_chmod(directory: Path, kind: str) -> None:
    """Fifos and sockets can be renamed, and their mode set, like files: rename(2), chmod(2)."""
    path, new = directory / "old", directory / "new"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.fspath(path))
    path.rename(new)
    new.chmod(0o600)

    assert stat.S_IMODE(new.stat().st_mode) == 0o600
    assert stat.S_IFMT(new.stat().st_mode) == (stat.S_IFIFO if kind == "fifo" else stat.S_IFSOCK)
