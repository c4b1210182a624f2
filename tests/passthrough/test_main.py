import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from passthrough.worker import fuse_mount
from tests.support.tools.mounts import MS_BIND, mounts_at, options_at
from tests.support.tools.processes import children, wait_until

pytestmark = pytest.mark.full

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 30.0
PYTHON = (sys.executable, "-m", "passthrough")


def command(source: Path, mountpoint: Path, *options: str) -> list[str]:
    paths = ["--source", str(source), "--mountpoint", str(mountpoint)]
    return [*PYTHON, *paths, *(word for option in options for word in ("-o", option))]


@contextmanager
def serving(source: Path, mountpoint: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command for the block, which may end it."""
    words = command(source, mountpoint, *options)
    with subprocess.Popen(words, cwd=REPOSITORY, stdout=-1, stderr=-1) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], LIMIT_S)[0]
            message = process.stdout.readline()
            assert message == f"serving {source} at {mountpoint}\n".encode()
            yield process
        finally:
            # SIGTERM first, so that the serving child ends before the command.
            process.terminate()
            try:
                process.wait(LIMIT_S)
            finally:
                process.kill()


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def refused(words: Sequence[str]) -> str:
    """Run a command that must not serve; return its error message."""
    done = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("passthrough: ")
    return sentence.removeprefix("passthrough: ")


def read(path: Path) -> str:
    """Read a file of a mount in a process of its own, which can be killed."""
    done = subprocess.run(["cat", path], capture_output=True, timeout=LIMIT_S, check=True)
    return done.stdout.decode()


def test_it_serves(source: Path, mountpoint: Path) -> None:
    (source / "file").write_text("below")

    with serving(source, mountpoint):
        assert read(mountpoint / "file") == "below"


def test_options_are_split_as_mount_splits_them(source: Path, mountpoint: Path) -> None:
    options = ("ro,noexec", "fsname=server:/data,cache=never", "ro", "")
    with serving(source, mountpoint, *options):
        (mounted,) = mounts_at(mountpoint)
        assert mounted.source == b"server:/data"
        assert {"ro", "noexec", "nosuid", "nodev"} <= options_at(mountpoint)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_the_mount(
    source: Path, mountpoint: Path, number: signal.Signals
) -> None:
    with serving(source, mountpoint) as process:
        process.send_signal(number)
        assert ended(process) == (0, b"", b"")

    assert mounts_at(mountpoint) == []
    mountpoint.rmdir()


def test_the_death_of_a_guard_does_not_end_it(source: Path, mountpoint: Path) -> None:
    (source / "file").write_text("below")
    with serving(source, mountpoint, "standby=on") as process:
        (first,) = children(process.pid)
        others = children(first)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: others <= children(process.pid))

        assert (mountpoint / "file").read_text() == "below"
        process.terminate()
        status, _, _ = ended(process)

    assert (status, mounts_at(mountpoint)) == (0, [])


def test_an_unmount_ends_it(source: Path, mountpoint: Path) -> None:
    with serving(source, mountpoint) as process:
        fuse_mount.unmount(mountpoint)
        assert ended(process) == (0, b"", b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_mount_on_top_of_it_stays(source: Path, mountpoint: Path, number: signal.Signals) -> None:
    with serving(source, mountpoint) as process:
        syscalls.mount(b"theirs", os.fsencode(mountpoint), b"tmpfs", 0, b"")
        process.send_signal(number)
        assert ended(process) == (0, b"", b"")

    assert mounts_at(mountpoint)[-1].source == b"theirs"


def test_a_mountpoint_may_be_named_through_a_symlink(
    source: Path, mountpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(mountpoint)

    with serving(source, tmp_path / "link") as process:
        assert len(mounts_at(mountpoint)) == 1
        process.terminate()
        assert ended(process)[0] == 0

    assert mounts_at(mountpoint) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["no_readdir"], "option 'no_readdir': '' hides the files of the source, so that an"),
        (["cahce=auto"], "option 'cahce': is not known, given here as 'auto'; expected cache"),
        (["cache=sometimes"], "option 'cache': 'sometimes' is not accepted; expected never,"),
        (["attr_timeout"], "option 'attr_timeout': '' is not accepted; expected seconds,"),
        (["ro,rw"], "option 'rw': is given twice, here as ''; expected one of the two: ro"),
        (["cache=auto", "cache=never"], "option 'cache': 'never' is not accepted; expected one"),
        (["mode=0700"], "option 'mode': is for volumes of the plugin; expected chmod(1) on the"),
        (["UID=1000"], "option 'UID': is for volumes of the plugin; expected owner, which shows"),
        (["Subpath=a"], "option 'subpath': is for volumes of the plugin; expected the directory"),
        (["create"], "option 'create': is for volumes of the plugin; expected mkdir(1) before"),
        (["source=/"], "option 'source': is not known, given here as '/'; expected one of"),
    ],
)
def test_a_bad_option_is_refused(
    source: Path, mountpoint: Path, options: list[str], sentence: str
) -> None:
    assert refused(command(source, mountpoint, *options)).startswith(sentence)
    assert mounts_at(mountpoint) == []


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "[Errno 2] No such file or directory"),
        ("file", "[Errno 20] Not a directory"),
        ("symlink", "[Errno 20] Not a directory"),
    ],
)
@pytest.mark.parametrize("place", ["source", "mountpoint"])
def test_a_path_that_is_no_directory_is_refused(  # noqa: PLR0917 - two tables, three fixtures
    source: Path, mountpoint: Path, tmp_path: Path, kind: str, sentence: str, place: str
) -> None:
    """A symlink could lead to another source at the next start."""
    wrong = tmp_path / kind
    if kind == "file":
        wrong.touch()
    if kind == "symlink":
        wrong.symlink_to(source if place == "source" else tmp_path / "missing")
        sentence = sentence if place == "source" else "[Errno 2] No such file or directory"
    paths = {"source": source, "mountpoint": mountpoint, place: wrong}

    message = refused(command(**paths))

    assert message.startswith(sentence)
    assert str(tmp_path) in message
    assert mounts_at(mountpoint) == []


@pytest.mark.parametrize("below", [".", "inside", "inside/deeper"])
@pytest.mark.parametrize("through", ["path", "symlink", "bind"])
def test_a_mountpoint_inside_its_source_is_refused(
    source: Path, mountpoint: Path, tmp_path: Path, below: str, through: str
) -> None:
    """A walk through the source would wait for itself in the mount."""
    (source / "inside" / "deeper").mkdir(parents=True)
    top = source
    if through == "symlink":
        top = tmp_path / "link"
        top.symlink_to(source)
    if through == "bind":
        top = mountpoint
        syscalls.mount(os.fsencode(source), os.fsencode(mountpoint), b"", MS_BIND, b"")

    message = refused(command(source, top / below))

    resolved = str((top / below).resolve())
    assert message.startswith(f"option 'mountpoint': {resolved!r} is not accepted; expected")


def test_a_source_inside_its_mountpoint_is_served(mountpoint: Path) -> None:
    """The worker has a descriptor of the source; the mount covers only the path."""
    (mountpoint / "inside").mkdir()
    (mountpoint / "inside" / "file").write_text("below")

    with serving(mountpoint / "inside", mountpoint):
        assert read(mountpoint / "file") == "below"


def test_a_worker_that_cannot_serve_leaves_no_mount(source: Path, mountpoint: Path) -> None:
    """Without CAP_SETPCAP the worker cannot keep its capabilities; it fails after the mount."""
    lacking = ["setpriv", "--bounding-set", "-setpcap"]

    message = refused([*lacking, *command(source, mountpoint)])

    assert message.startswith(
        "option 'sandbox': namespace is not possible here: CAP_SETPCAP missing"
    )
    assert mounts_at(mountpoint) == []


@pytest.mark.parametrize("option", ["--source", "--mountpoint"])
def test_an_empty_path_is_not_the_working_directory(
    source: Path, mountpoint: Path, option: str
) -> None:
    words = command(source, mountpoint)
    words[words.index(option) + 1] = ""

    assert refused(words) == (
        f"option {option.removeprefix('--')!r}: '' is not accepted; expected a directory; '.' is"
        " the working directory"
    )


@pytest.mark.parametrize("missing", ["--source", "--mountpoint"])
def test_source_and_mountpoint_must_be_given(source: Path, mountpoint: Path, missing: str) -> None:
    words = command(source, mountpoint)
    at = words.index(missing)

    done = subprocess.run(
        [*words[:at], *words[at + 2 :]],
        cwd=REPOSITORY,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert done.returncode == 2
    assert missing.encode() in done.stderr


@pytest.mark.parametrize("session", ["kernel", "libfuse"])
@pytest.mark.parametrize("level", ["", "debug"])
def test_the_log_level_holds_without_docker(
    source: Path, mountpoint: Path, session: str, level: str
) -> None:
    options = [f"session={session}", *([f"log_level={level}"] if level else [])]
    with serving(source, mountpoint, *options) as process:
        fuse_mount.unmount(mountpoint)
        status, _, err = ended(process)
    assert status == 0
    if not level:
        assert err == b""
    else:
        assert b": the session ends" in err
