"""Tries on each file system what programs rely on: `python -m benchmarks.abilities`.

It prints a table in Markdown, the one in docs/comparison.md. The peers get `allow_other` besides
their defaults: without this option, only root can enter their mounts.
"""

import errno
import fcntl
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.isolation import NAMESPACES
from benchmarks.plan import Passfs, Peer, Plan
from benchmarks.rounds import in_child
from benchmarks.subjects import KNOWN_PEERS, REPOSITORY, Directories, Subject, mounted, subjects

PEERS = {
    "bindfs": KNOWN_PEERS["bindfs"],
    "sshfs": Peer(f"{KNOWN_PEERS['sshfs'].command} -o allow_other"),
    "rclone": Peer(f"{KNOWN_PEERS['rclone'].command} --allow-other"),
    "rclone, `writes`": Peer(f"{KNOWN_PEERS['rclone/writes'].command} --allow-other"),
}
YES, NO = "yes", "no"

_USER = 1000
_RECORDS, _RECORD_BYTES = 200, 100
_LIMIT_S, _SEEN_S, _WRITTEN_BACK_S, _POLL_S = 30.0, 2.0, 15.0, 0.02


class Place(NamedTuple):
    """A new directory on both sides of a subject. Each trial has one of its own."""

    host: str
    mount: str


class Trial(NamedTuple):
    """A need of programs, and the function that tries it; it returns the text of a cell."""

    name: str
    attempt: Callable[[Place], str]


def main() -> int:
    """Print the table, from a process in namespaces of its own, and return an exit status."""
    if os.getpid() != 1:
        command = (*NAMESPACES, sys.executable, "-m", "benchmarks.abilities")
        return subprocess.run(command, cwd=REPOSITORY, check=False).returncode
    with tempfile.TemporaryDirectory(prefix="passfs-abilities-") as stage:
        sys.stdout.write("\n".join(table(Path(stage))) + "\n")
    return 0


def table(stage: Path) -> list[str]:
    """Return the lines of the table; *stage* is an empty directory, on which a tmpfs is mounted."""
    subprocess.run(["mount", "-t", "tmpfs", "none", stage], check=True)
    at = Directories(stage / "source", stage / "mount", stage / "scratch")
    for directory in at:
        directory.mkdir()
    columns = {subject.name: column(subject, at) for subject in _subjects()}
    subprocess.run(["umount", stage], check=True)
    return [
        f"| | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(
            f"| {trial.name} | {' | '.join(cells[n] for cells in columns.values())} |"
            for n, trial in enumerate(TRIALS)
        ),
    ]


def column(subject: Subject, at: Directories) -> list[str]:
    """Return a cell for each trial on *subject*."""
    places = []
    for number, _ in enumerate(TRIALS):
        name = f"{''.join(filter(str.isalnum, subject.name))}-{number}"
        os.mkdir(at.source / name)
        os.chmod(at.source / name, 0o777)  # noqa: S103 - for uid 1000, in a tmpfs of this run
        through = at.mountpoint if subject.command else at.source
        places.append(Place(str(at.source / name), str(through / name)))
    with mounted(subject, at):
        return [_outcome(trial, place) for trial, place in zip(TRIALS, places, strict=True)]


def _subjects() -> list[Subject]:
    plan = Plan(
        passfs={"passfs": Passfs({})},
        peers=PEERS,
        rounds=1,
        size=1,
        least_s=0,
        lines=(),
        busy=0,
        costs=False,
        stage="",
        on_tmpfs=True,
        seed=0,
    )
    bare, *others = subjects(plan)
    return [bare._replace(name="bind mount"), *others]


def _outcome(trial: Trial, place: Place) -> str:
    """Return the cell; an error is its name, and a process that ends has got a signal."""

    def attempt(send: Callable[[str], None]) -> None:
        try:
            send(trial.attempt(place))
        except OSError as error:
            send(f"{NO}: {errno.errorcode[error.errno or errno.EIO]}")

    return next(iter(in_child(attempt, _LIMIT_S)), f"{NO}: the process dies")


def _yes(condition: bool) -> str:
    return YES if condition else NO


# The trials


def _owner(at: Place) -> str:
    _finish(_start(lambda: _write(f"{at.mount}/file", b""), _USER))
    seen, kept = os.stat(f"{at.mount}/file").st_uid, _on_host(f"{at.host}/file").st_uid
    return f"{seen}" if seen == kept else f"{seen}, on the host {kept}"


def _mode_and_owner(at: Place) -> str:
    _write(f"{at.mount}/file", b"")
    os.chmod(f"{at.mount}/file", 0o640)
    os.chown(f"{at.mount}/file", _USER, _USER)
    kept = _on_host(f"{at.host}/file")
    return _yes((kept.st_mode & 0o777, kept.st_uid) == (0o640, _USER))


def _hard_link(at: Place) -> str:
    _write(f"{at.mount}/file", b"")
    os.link(f"{at.mount}/file", f"{at.mount}/other")
    return _yes(os.path.samefile(f"{at.host}/file", f"{at.host}/other"))


def _symbolic_link(at: Place) -> str:
    os.symlink("target", f"{at.mount}/link")
    return _yes(os.readlink(f"{at.host}/link") == "target")


def _attributes(at: Place) -> str:
    _write(f"{at.mount}/file", b"")
    os.setxattr(f"{at.mount}/file", "user.name", b"value")
    return _yes(os.getxattr(f"{at.host}/file", "user.name") == b"value")


def _locks_of_containers(at: Place) -> str:
    _write(f"{at.mount}/file", b"")
    return _yes(_excluded(f"{at.mount}/file", f"{at.mount}/file"))


def _locks_of_the_host(at: Place) -> str:
    _write(f"{at.host}/file", b"")
    return _yes(_excluded(f"{at.host}/file", f"{at.mount}/file"))


def _excluded(held: str, wanted: str) -> bool:
    """Return whether flock(2) on *held* prevents flock(2) of another process on *wanted*."""
    with open(held, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def lock() -> None:
            with open(wanted, "rb") as other:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

        try:
            _finish(_start(lock))
        except BlockingIOError:
            return True
    return False


def _appends(at: Place) -> str:
    """Let two processes append records at the same time; each record has to be whole."""
    _write(f"{at.mount}/log", b"")
    records = [bytes([letter]) * _RECORD_BYTES for letter in b"ab"]
    writers = [_start(partial(_append, f"{at.mount}/log", record)) for record in records]
    for writer in writers:
        _finish(writer)
    content = _read(f"{at.mount}/log")
    found = [content[n : n + _RECORD_BYTES] for n in range(0, len(content), _RECORD_BYTES)]
    return _yes(sorted(found) == sorted(records * _RECORDS))


def _append(path: str, record: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    for _ in range(_RECORDS):
        os.write(fd, record)
    os.close(fd)


def _shared_map(at: Place) -> str:
    _write(f"{at.mount}/file", bytes(mmap.PAGESIZE))
    with open(f"{at.mount}/file", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:5] = b"value"
        mapped.flush()
    return _yes(_read(f"{at.mount}/file")[:5] == b"value")


def _overwrite(at: Place) -> str:
    _write(f"{at.mount}/file", b"old value")
    with open(f"{at.mount}/file", "r+b", buffering=0) as file:
        file.write(b"new")
    return _yes(_read(f"{at.mount}/file") == b"new value")


def _deleted(at: Place) -> str:
    _write(f"{at.mount}/file", b"value")
    with open(f"{at.mount}/file", "rb", buffering=0) as file:
        os.unlink(f"{at.mount}/file")
        if file.read() != b"value":
            return NO
        return f"{YES}, under a hidden name" if os.listdir(at.host) else YES


def _written_at_close(at: Place) -> str:
    _write(f"{at.mount}/file", b"value")
    return _yes(os.path.exists(f"{at.host}/file") and _read(f"{at.host}/file") == b"value")


def _seen_soon(at: Place) -> str:
    """Add a file on the host, to a directory that has been listed through the mount."""
    os.listdir(at.mount)
    _write(f"{at.host}/file", b"")
    deadline = time.monotonic() + _SEEN_S
    while os.listdir(at.mount) != ["file"]:
        if time.monotonic() > deadline:
            return NO
        time.sleep(_POLL_S)
    return YES


def _on_host(path: str) -> os.stat_result:
    """Return the status of a file of the host, after rclone has written it back (5 s)."""
    deadline = time.monotonic() + _WRITTEN_BACK_S
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return os.stat(path)


def _write(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, content)
    os.close(fd)


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def _start(function: Callable[[], None], uid: int = 0) -> int:
    """Start *function* in a child process with this user id, and return its pid."""
    pid = os.fork()
    if pid == 0:
        status = errno.EIO
        try:
            os.setresuid(uid, uid, uid)
            function()
            status = 0
        except OSError as error:
            status = error.errno or errno.EIO
        finally:
            os._exit(status)
    return pid


def _finish(pid: int) -> None:
    """Wait for a child process of `_start`, and raise the OSError of its function."""
    if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise OSError(abs(status), os.strerror(abs(status)))


TRIALS = (
    Trial("owner of a file that uid 1000 creates", _owner),
    Trial("chmod(2) and chown(2) reach the host", _mode_and_owner),
    Trial("a file that exists can be changed in place", _overwrite),
    Trial("O_APPEND of two processes at once", _appends),
    Trial("mmap(2) with MAP_SHARED, writing", _shared_map),
    Trial("an open file that is deleted stays readable", _deleted),
    Trial("hard links", _hard_link),
    Trial("symbolic links", _symbolic_link),
    Trial("extended attributes", _attributes),
    Trial("locks between two containers", _locks_of_containers),
    Trial("locks between a container and the host", _locks_of_the_host),
    Trial("contents are on the host after close(2)", _written_at_close),
    Trial("a new file of the host is listed within 2 s", _seen_soon),
)

if __name__ == "__main__":
    sys.exit(main())
