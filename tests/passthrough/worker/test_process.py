import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from passthrough.options.choices import InodeFileHandles, Sandbox, SessionKind, Standby
from passthrough.options.table import Requested
from passthrough.session.kernel import Served
from passthrough.worker import fuse_mount, process
from passthrough.worker.handover import Handover, encode
from tests.support.fakes.keeper import LIMIT_S, Keeper, ended, on_mount, report_of
from tests.support.tools.callers import ROOT as ROOT_USER
from tests.support.tools.checks import descriptors_below
from tests.support.tools.mounts import mounted_on, mounts_at
from tests.support.tools.options import effective
from tests.support.tools.processes import descriptors, wait_until


@pytest.fixture(params=[SessionKind.KERNEL, SessionKind.LIBFUSE])
def keeper(
    request: pytest.FixtureRequest, source: Path, mountpoint: Path, tmp_path: Path
) -> Iterator[Keeper]:
    keeper = Keeper(source, mountpoint, tmp_path / "stderr", Requested(session=request.param))
    yield keeper
    keeper.close()


def test_a_worker_serves_the_directory_of_its_handover(
    keeper: Keeper, source: Path, mountpoint: Path
) -> None:
    (source / "file").write_text("below")

    keeper.serve()

    assert on_mount("cat", f"{mountpoint}/file") == "below"
    on_mount(
        "sh", "-c", f"umask 077; echo through > {mountpoint}/new; mkdir -m 1777 {mountpoint}/d"
    )
    assert (source / "new").read_text() == "through\n"
    assert (source / "new").stat().st_mode & 0o7777 == 0o600
    assert (source / "d").stat().st_mode & 0o7777 == 0o1777


def test_new_files_belong_to_their_caller(keeper: Keeper, source: Path, mountpoint: Path) -> None:
    """The host must not check again: only the caller's supplementary group has access."""
    (source / "team").mkdir()
    os.chown(source / "team", 0, 41_100)
    (source / "team").chmod(0o2770)
    keeper.serve()

    user = "setpriv --reuid=41001 --regid=41002 --groups=41100"
    on_mount("sh", "-c", f"cd {mountpoint}/team && {user} touch file")

    found = (source / "team" / "file").stat()
    assert (found.st_uid, found.st_gid) == (41_001, 41_100)


ENDS: dict[str, Callable[[Keeper, subprocess.Popen[bytes]], object]] = {
    "SIGTERM": lambda _, process: process.terminate(),
    "SIGINT": lambda _, process: process.send_signal(signal.SIGINT),
    "the keeper's end": lambda _, process: process.stdin and process.stdin.close(),
    "an unmount": lambda keeper, _: fuse_mount.unmount(keeper.mountpoint),
    "an abort": lambda keeper, _: fuse_mount.unmount(keeper.mountpoint, abort=True),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_worker_ends_with_status_0(
    keeper: Keeper, end: Callable[[Keeper, subprocess.Popen[bytes]], object]
) -> None:
    """The exit status is 0, there is one report, and the log has no warning."""
    process = keeper.serve()
    on_mount("ls", str(keeper.mountpoint))

    end(keeper, process)

    assert ended(process) == (0, b"")
    assert keeper.told == []


def test_open_files_stay_usable_after_an_unmount(
    keeper: Keeper, source: Path, mountpoint: Path
) -> None:
    (source / "file").write_text("below")
    process = keeper.serve()
    script = f"exec 3<{mountpoint}/file; echo open; read line; cat <&3"
    with subprocess.Popen(["sh", "-c", script], stdin=-1, stdout=-1) as user:
        try:
            assert user.stdout is not None
            assert user.stdout.readline() == b"open\n"
            fuse_mount.unmount(mountpoint)
            assert mounts_at(mountpoint) == []
            out, _ = user.communicate(b"go on\n", timeout=LIMIT_S)
        finally:
            user.kill()

    assert out == b"below"
    assert ended(process) == (0, b"")


def test_a_mount_outlives_its_worker(keeper: Keeper, mountpoint: Path) -> None:
    """The keeper's duplicate keeps the connection; without it the mount is dead."""
    process = keeper.serve()
    process.terminate()
    process.wait(LIMIT_S)

    assert len(mounts_at(mountpoint)) == 1
    os.close(keeper.fuse_fd)
    keeper.fuse_fd = os.open("/dev/null", os.O_RDONLY)  # for the fixture to close
    asked = subprocess.run(
        ["stat", str(mountpoint)], capture_output=True, timeout=LIMIT_S, check=False
    )
    assert b"not connected" in asked.stderr


def test_a_source_without_a_mandatory_feature_is_reported(
    source: Path, mountpoint: Path, tmp_path: Path
) -> None:
    config = Requested(inode_file_handles=InodeFileHandles.MANDATORY)
    with mounted_on(source, "ramfs"):
        keeper = Keeper(source, mountpoint, tmp_path / "stderr", config)
        process = keeper.start(encode(keeper.handover), keeper.passed_fds)
        report, end = report_of(process), ended(process)
        keeper.close()

    assert not report.serving
    assert report.error.startswith("option 'inode_file_handles': 'mandatory' cannot be had: the")
    assert end == (1, b"")


@pytest.mark.parametrize(
    "line",
    [b"\n", b"nonsense\n", b'{"serving":true}\n', b"x" * (64 * 1024)],
    ids=["empty", "no JSON", "another message", "too long"],
)
def test_a_broken_handover_is_reported(keeper: Keeper, line: bytes) -> None:
    process = keeper.start(line, ())

    report = report_of(process)

    assert not report.serving
    assert report.error.startswith("no usable hand-over: ")
    assert ended(process) == (1, b"")


def test_a_handover_that_is_cut_short_is_reported(keeper: Keeper) -> None:
    process = keeper.start(encode(keeper.handover)[:-10], ())
    assert process.stdin is not None
    process.stdin.close()

    assert report_of(process).error.startswith("no usable hand-over: ")
    assert ended(process)[0] == 1


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("source_fd", "[Errno 9] Bad file descriptor"),
        ("fuse_fd", "[Errno 9]"),
        ("fuse_fd is no FUSE", "[Errno"),
    ],
)
def test_wrong_descriptors_are_reported(keeper: Keeper, wrong: str, sentence: str) -> None:
    """The report has one sentence, for the caller of the mount; the log has a traceback."""
    field, _, elsewhere = wrong.partition(" ")
    null = os.open("/dev/null", os.O_RDWR)
    line = encode(msgspec.structs.replace(keeper.handover, **{field: null}))
    try:
        inherited = {keeper.source_fd, keeper.fuse_fd} - {getattr(keeper, field)}
        process = keeper.start(line, [*inherited, null] if elsewhere else [*inherited])
    finally:
        os.close(null)

    report = report_of(process)

    assert not report.serving
    assert sentence in report.error
    assert ended(process) == (1, b"")
    assert "Traceback" in keeper.log.read_text()


def test_serve_leaves_no_descriptor_and_no_umask(source: Path, mountpoint: Path) -> None:
    """After the end of a mount no descriptor of the source, /dev/fuse or an open file is left."""

    def serve() -> tuple[set[int], list[str], int]:
        source_fd = os.open(source, os.O_PATH | os.O_DIRECTORY)
        fuse_fd = fuse_mount.mount(mountpoint, effective())
        # A sandbox would leave no /proc to look at, and guards end with their descriptors.
        config = Requested(sandbox=Sandbox.NONE, standby=Standby.OFF)
        handover = Handover(volume="v", config=config, fuse_fd=fuse_fd, source_fd=source_fd)
        # A thread may need a moment to leave.
        setattr(Served, "close", lambda served: wait_until(served.core.close))  # noqa: B010
        process.serve(handover, lambda _: fuse_mount.unmount(mountpoint))
        opened = list(descriptors().values())
        return descriptors_below(source), opened, os.umask(0)

    below, opened, umask = ROOT_USER.run(serve)

    assert below == set()
    assert "/dev/fuse" not in opened
    assert umask == 0
