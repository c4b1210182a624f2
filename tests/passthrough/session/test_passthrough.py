"""Kernel passthrough, through a mount: data bypasses the worker, and nothing is left behind."""

import contextlib
import errno
import fcntl
import mmap
import os
import shlex
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tools.callers import USER
from tests.support.tools.files import noise, refused
from tests.support.tools.mounted import REPOSITORY, Mounted, command, mounted
from tests.support.tools.processes import threads

pytestmark = pytest.mark.full

CLOCK_S = 0.02  # longer than a tick, which tells times of files apart
LIMIT_S = 60.0
BLOCK = 4096


@contextlib.contextmanager
def volume(base: Path, **options: str) -> Iterator[Mounted]:
    usual = {"session": "kernel", "passthrough": "on"}
    with mounted(base, usual | options) as served, served.limited(LIMIT_S):
        served.source.chmod(0o777)
        yield served


@contextlib.contextmanager
def filesystem(target: Path, kind: str, options: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", kind, "-o", options, kind, str(target)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(target)], check=True)


@contextlib.contextmanager
def stopped(served: Mounted) -> Iterator[None]:
    os.kill(served.worker_pid, signal.SIGSTOP)
    try:
        # A thread that runs on another processor takes requests until the signal reaches it.
        while _states(served.worker_pid) != {"T"}:
            time.sleep(0.001)
        yield
    finally:
        os.kill(served.worker_pid, signal.SIGCONT)


def _states(pid: int) -> set[str]:
    """Return the states of the threads, proc_pid_stat(5)."""
    return {text.rpartition(") ")[2][0] for text in threads(pid, "stat").values()}


def reads_and_writes_without_the_worker(served: Mounted, path: Path) -> None:
    path.write_bytes(noise(BLOCK))
    with path.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), BLOCK) as mapped:
        # After new attributes the kernel requests security.capability once.
        file.write(b"first")
        file.seek(0)
        with stopped(served):
            file.write(b"written")
            mapped[100:106] = b"mapped"
            assert os.pread(file.fileno(), 7, 0) == b"written"
            assert os.pread(file.fileno(), 6, 100) == b"mapped"
        assert (served.source / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("cache", ["never", "auto", "always"])
def test_reads_writes_and_maps_bypass_the_worker(base: Path, cache: str) -> None:
    with volume(base, cache=cache) as served:
        reads_and_writes_without_the_worker(served, served.mountpoint / "file")


def test_files_on_overlayfs_pass_through(base: Path) -> None:
    for name in ("layers", "source"):
        (base / name).mkdir()
    with filesystem(base / "layers", "tmpfs", "size=16m"):
        for name in ("lower", "upper", "work"):
            (base / "layers" / name).mkdir()
        layers = base / "layers"
        options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
        with filesystem(base / "source", "overlay", options), volume(base) as served:
            reads_and_writes_without_the_worker(served, served.mountpoint / "file")


def test_files_that_are_stacked_too_deep_are_logged_once(base: Path) -> None:
    below = base / "source" / "below"
    below.mkdir(parents=True)
    (base / "layers").mkdir()
    with filesystem(base / "layers", "tmpfs", "size=16m"):
        for name in ("lower", "upper", "work"):
            (base / "layers" / name).mkdir()
        layers = base / "layers"
        options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
        with filesystem(below, "overlay", options), volume(base) as served:
            for name in ("one", "another"):
                path = served.mountpoint / "below" / name
                path.write_bytes(noise(BLOCK))
                assert path.read_bytes() == (below / name).read_bytes() == noise(BLOCK)
            said = "some files are read and written by the worker: they lie on too many"
            assert served.logged().count(said) == 1


def test_a_removed_file_takes_no_space_once_it_is_closed(base: Path) -> None:
    (base / "source").mkdir()
    with filesystem(base / "source", "tmpfs", "size=16m"), volume(base) as served:
        free = os.statvfs(served.source).f_bfree
        path = served.mountpoint / "file"
        with path.open("wb") as file, path.open("rb") as other:
            file.write(noise(1 << 20))
            file.flush()
            path.unlink()
            assert len(other.read()) == 1 << 20
            assert os.statvfs(served.source).f_bfree < free
        wait_until_free(served.source, free)  # the kernel does not wait for RELEASE


def wait_until_free(source: Path, free: int) -> None:
    while os.statvfs(source).f_bfree != free:  # the test's own time limit ends it
        os.sched_yield()


def test_a_write_by_another_user_clears_suid_and_sgid_bits(base: Path) -> None:
    with volume(base) as served:
        for name, mode in (("before", 0o6777), ("while", 0o777)):
            path = served.mountpoint / name
            path.touch()
            path.chmod(mode)

        def write() -> None:
            for name in ("before", "while"):
                with (served.mountpoint / name).open("r+b", buffering=0) as file:
                    file.write(b"x")

        fd = os.open(served.mountpoint / "while", os.O_RDONLY)
        (served.mountpoint / "while").chmod(0o6777)
        USER.run(write)
        os.close(fd)

        for name in ("before", "while"):
            mode = (served.source / name).stat().st_mode
            assert not mode & (stat.S_ISUID | stat.S_ISGID), name
            assert (served.mountpoint / name).stat().st_mode == mode


def test_root_keeps_suid_bits_of_a_file_that_has_them_when_it_is_opened(base: Path) -> None:
    with volume(base) as served:
        path = served.mountpoint / "file"
        path.touch()
        path.chmod(0o4755)
        path.write_bytes(b"x")

        assert path.stat().st_mode & stat.S_ISUID


def test_allow_direct_io_off_keeps_direct_io_from_the_host(base: Path) -> None:
    with volume(base, allow_direct_io="off") as served:
        path = served.mountpoint / "file"
        path.write_bytes(noise(BLOCK))
        usual = os.open(path, os.O_RDWR)
        direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        assert os.pwrite(direct, b"odd", 5) == 3
        assert os.pread(usual, 3, 5) == b"odd"
        assert os.pwrite(usual, b"ODD", 5) == 3
        assert os.pread(direct, 3, 5) == b"ODD"
        os.close(usual)
        os.close(direct)


def test_allow_direct_io_off_works_on_a_host_without_o_direct(base: Path) -> None:
    (base / "source").mkdir()
    without = {"allow_direct_io": "off", "inode_file_handles": "never"}
    with filesystem(base / "source", "ramfs", "mode=777"), volume(base, **without) as served:
        path = served.mountpoint / "file"
        with path.open("wb") as usual:
            fd = os.open(path, os.O_RDWR | os.O_DIRECT)
            assert os.pwrite(fd, b"not aligned", 3) == 11
            os.close(fd)
            usual.write(b"old")
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        assert os.pread(fd, 100, 0) == b"oldnot aligned"
        os.close(fd)
        assert served.logged().count("their file system knows no O_DIRECT") == 1


@pytest.mark.parametrize("disk", ["/var/tmp", "/dev/shm"])
def test_o_direct_can_be_cleared_on_an_open_file(disk: str) -> None:
    """dd(1) does so for a last partial block, and the bare directory allows it."""
    with tempfile.TemporaryDirectory(dir=disk) as base, volume(Path(base)) as served:
        contents = Path(base, "contents")
        contents.write_bytes(noise(2 * BLOCK + 100))
        words = ["dd", f"if={contents}", f"bs={BLOCK}", "oflag=direct", "status=none"]
        for copy in (Path(base, "bare"), served.mountpoint / "copy"):
            subprocess.run([*words, f"of={copy}"], check=True)
            assert copy.read_bytes() == contents.read_bytes()


def test_o_append_set_by_fcntl_reaches_the_host(base: Path) -> None:
    """O_APPEND takes effect; with O_DIRECT the host's cache stays in use, the data correct."""
    with volume(base) as served:
        path = served.mountpoint / "file"
        path.write_bytes(b"begin ")
        fd = os.open(path, os.O_RDWR)
        with (served.source / "file").open("ab") as beneath:
            beneath.write(b"middle ")
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND | os.O_DIRECT)
        with stopped(served):
            os.pwrite(fd, b"end", 0)
        os.close(fd)

        assert (served.source / "file").read_bytes() == b"begin middle end"


def test_a_file_that_was_written_takes_no_request_at_the_next_write(base: Path) -> None:
    """No shared map can change a file that is open for writing alone, mmap(2).

    Python's open() calls fstat(2), and new attributes make the kernel request security.capability.
    """
    with volume(base) as served:
        path = served.mountpoint / "file"
        with path.open("wb", buffering=0) as file:
            time.sleep(CLOCK_S)
            file.write(b"begin ")
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            with stopped(served):
                os.write(fd, b"end")
        finally:
            os.close(fd)

        assert (served.source / "file").read_bytes() == b"begin end"


def test_a_read_only_volume_passes_no_write_through(base: Path) -> None:
    (base / "source").mkdir()
    (base / "source" / "file").write_bytes(b"kept")
    with volume(base, ro="") as served:
        path = served.mountpoint / "file"
        refused(errno.EROFS, lambda: os.open(path, os.O_WRONLY))
        with path.open("rb") as file, stopped(served):
            assert os.pread(file.fileno(), 4, 0) == b"kept"


def in_a_user_namespace(base: Path, passthrough: str, meanwhile: str) -> tuple[int, str]:
    """Serve while a shell command runs; return the exit status and the log of the server."""
    for name in ("source", "mount"):
        (base / name).mkdir()
    options = {"session": "kernel", "passthrough": passthrough}
    serve = shlex.join(command(base / "source", base / "mount", options))
    script = f"{serve} & serving=$!; cd {base}; {meanwhile}; wait $serving"
    ended = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return ended.returncode, ended.stderr


def test_in_a_user_namespace_the_worker_serves_files_without_a_warning(base: Path) -> None:
    mounted = "while ! mountpoint -q mount; do sleep 0.05; done"
    code, logged = in_a_user_namespace(
        base, "auto", f"{mounted}; echo text > mount/file; kill $serving"
    )

    assert code == 0
    assert "read and written by the worker" not in logged
    assert (base / "source" / "file").read_text() == "text\n"


def test_in_a_user_namespace_passthrough_on_is_refused(base: Path) -> None:
    code, logged = in_a_user_namespace(base, "on", ":")

    assert code == 1
    assert "'on' cannot be had: it takes CAP_SYS_ADMIN" in logged


def test_concurrent_appends_land_at_the_end(base: Path) -> None:
    with volume(base) as served:
        path = served.mountpoint / "log"
        files = [path.open("ab", buffering=0) for _ in range(3)]
        for file in files:  # after new attributes the kernel requests security.capability once
            file.write(b"--\n")
        with stopped(served):
            for number in range(30):
                files[number % 3].write(b"%02d\n" % number)
        for file in files:
            file.close()

        assert path.read_bytes() == b"--\n" * 3 + b"".join(
            b"%02d\n" % number for number in range(30)
        )
        assert path.stat().st_size == 99
