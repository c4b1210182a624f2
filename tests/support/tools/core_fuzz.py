"""Send random requests to the compiled core: a program, because a wrong request may crash it.

Called as a program: name of the options, source directory, number of requests, seed, threads.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from passthrough.core.face import Core
from passthrough.options.choices import CachePolicy, InodeFileHandles, SessionKind, Squash
from passthrough.options.values import Range
from passthrough.session.abi import Init, Opcode
from tests.passthrough.core.probe_fuzz import fuzz
from tests.support.tools.options import effective

# The user 1001 has no range.
ROOT = 100_000
_RANGES = (Range(0, ROOT, 1), Range(1000, 1000, 1))
OPTIONS: Mapping[str, Mapping[str, object]] = {
    "plain": {},
    "handles": {"inode_file_handles": InodeFileHandles.MANDATORY, "posix_acl": True},
    "mapped": {"map_uid": _RANGES, "map_gid": _RANGES},
    "squash-root": {"squash": Squash.ROOT},
    "squash-all": {"squash": Squash.ALL, "inode_file_handles": InodeFileHandles.MANDATORY},
    "no-open": {"no_open": True, "no_opendir": True, "cache": CachePolicy.ALWAYS},
    "sealed": {"seal_size": True, "use_host_ino": True, "no_readdir": True},
}
FEATURES = Init.HANDLE_KILLPRIV_V2 | Init.DO_READDIRPLUS | Init.POSIX_LOCKS | Init.FLOCK_LOCKS
MINOR = 45


class Failures:
    """A stand-in for session/rare.py: fails if the core calls it, and keeps lines of the log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def serve(self, opcode: int, body: bytes) -> bytes:
        raise AssertionError(f"opcode {opcode} came to Python with {len(body)} bytes")

    def report(self, kind: int, number: int, name: bytes) -> None:
        """Drop a line of the log: each malformed request causes one, and some options do."""

    def open_across(self, directory_fd: int, name: bytes) -> int:
        raise AssertionError(f"something is mounted on {name!r} in {directory_fd}")

    def mistake(self, what: str, error: Exception) -> None:
        self.lines.append(f"{what}: {error}")

    def last_words(self, why: bytes) -> None:
        print(why.decode(), file=sys.stderr)  # noqa: T201


def descriptors() -> set[str]:
    """Return the open descriptors, each with its file."""
    links = "/proc/self/fd"
    return {
        f"{number} {os.readlink(f'{links}/{number}')}"
        for number in os.listdir(links)
        if os.path.lexists(f"{links}/{number}")  # but the one that lists them
    }


def run(name: str, source: Path, count: int, seed: int, threads: int) -> None:
    """Fuzz one volume; raise AssertionError for what is wrong."""
    config = effective(session=SessionKind.KERNEL, **OPTIONS[name])
    python = Failures()
    core = Core(config, os.open(source, os.O_PATH | os.O_DIRECTORY), python)
    core.use_device(os.open(os.devnull, os.O_WRONLY))  # it takes each notification
    core.agree(int(FEATURES), MINOR, False)
    before = descriptors()
    wrong, request, done, seconds, streams = fuzz(core, count, seed, threads)
    rate = count * max(threads, 1) / seconds
    succeeded = {Opcode(opcode).name: number for opcode, number in done.items() if number}
    print(f"{name}: {rate:,.0f} requests a second, seed {seed}, {succeeded}")  # noqa: T201
    assert not wrong, (wrong, request.hex(" "))
    left = descriptors() - before
    assert len(left) <= streams, left
    assert core.close()
    assert not python.lines, python.lines


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6]))
