"""Requests at random, as fast as the core answers; see probe_fuzz.pyx.

One in four is damaged. Several threads at once send requests as the kernel does, undamaged.

PASSFS_FUZZ_REQUESTS is the number of requests for each volume: 100,000. PASSFS_FUZZ_SEED changes
the requests. A failure shows both of them.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux import syscalls
from tests.support.tools.core_builds import BUILD_LIMIT_S, Build
from tests.support.tools.core_fuzz import OPTIONS, ROOT

REQUESTS = int(os.environ.get("PASSFS_FUZZ_REQUESTS", "100000"))
SEED = os.environ.get("PASSFS_FUZZ_SEED", "1")
THREADS = 4
# By the kind of sanitizer: requests for all volumes together, and threads; 0 for the one there is.
SANITIZED = {"sanitize": (300_000, 0), "threads": (100_000, THREADS)}
# A limit to what requests can take, and to how many files there are.
MEMORY = "size=8m,nr_inodes=3000,mode=0777"


@pytest.fixture(params=OPTIONS)
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The name of options, and a small file system in memory as the source; nothing else changes.

    The mapped volume's root owns the source.
    """
    yield from mounted(request.param, tmp_path)


def mounted(name: str, above: Path) -> Iterator[tuple[str, Path]]:
    source = above / "source"
    source.mkdir()
    owner = ROOT if name == "mapped" else 0
    data = f"{MEMORY},uid={owner},gid={owner}".encode()
    syscalls.mount(b"none", os.fsencode(source), b"tmpfs", syscalls.MS_NODEV, data)
    (above / "a").write_text("outside")
    try:
        yield name, source
    finally:
        syscalls.umount2(os.fsencode(source), syscalls.MNT_DETACH)
    assert {path.name for path in above.iterdir()} == {"source", "a"}
    assert (above / "a").read_text() == "outside"


def program(name: str, source: Path, requests: int, threads: int) -> tuple[str, ...]:
    """Return the words of a program that sends *requests*, by each of *threads* a part."""
    numbers = (requests // max(threads, 1), SEED, threads)
    return ("-m", "tests.support.tools.core_fuzz", name, str(source), *map(str, numbers))


@pytest.mark.parametrize("threads", [0, THREADS], ids=["damaged", "threads"])
def test_each_reply_is_well_formed_and_nothing_is_left(
    volume: tuple[str, Path], threads: int
) -> None:
    command = [sys.executable, *program(*volume, REQUESTS, threads)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    print(done.stdout)  # noqa: T201 - shown by -rP

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(BUILD_LIMIT_S)
def test_no_request_makes_a_wrong_access_or_a_race(sanitized: Build, tmp_path: Path) -> None:
    requests, threads = SANITIZED[sanitized.kind]
    for name in OPTIONS:
        (tmp_path / name).mkdir()
        for volume in mounted(name, tmp_path / name):
            done = sanitized.run(*program(*volume, requests // len(OPTIONS), threads))

            assert (done.returncode, done.stderr) == (0, ""), name
