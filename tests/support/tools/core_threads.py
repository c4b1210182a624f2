"""Threads of a volume that the compiled core has prepared, and what the kernel says of them.

A prepared thread lacks CAP_FSETID for good, so each test has a thread of its own.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from tests.passthrough.core.probe_identity import Probe

REPOSITORY = Path(__file__).resolve().parents[3]
EXIT_IDENTITY_LOST = 77
NONE, ROOT, ALL = 0, 1, 2
NO_ID, NO_FILES_ID = 0xFFFF_FFFF, 0xFFFF_FFF0
CALLER, OTHER = (41_001, 41_002), (41_003, 41_004)
CAP_FOWNER, CAP_FSETID = 1 << 3, 1 << 4
LIMIT_S = 30.0
MAPPED: dict[str, list[tuple[int, int, int]]] = {
    "users": [(0, 100_000, 1000)],
    "groups": [(0, 200_000, 1000)],
}

R = TypeVar("R")


def mapped() -> Probe:
    """Return a volume that maps the ids 0 to 999."""
    return Probe(users=MAPPED["users"], groups=MAPPED["groups"])


def in_thread(volume: Probe, function: Callable[[], R]) -> R:
    """Call *function* in a thread of *volume*, which must be outside of all guards after it."""

    def run() -> R:
        volume.prepare()
        before = status()
        try:
            return function()
        finally:
            assert volume.itself
            assert volume.known == volume.present == (0, 0)
            assert status() == before

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result(LIMIT_S)


def status() -> dict[str, str]:
    """Return ids, groups and capabilities of this thread."""
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: fields[name].strip() for name in ("Uid", "Gid", "Groups", "CapEff", "CapPrm")}


def capabilities() -> int:
    """Return the effective capabilities of this thread."""
    return int(status()["CapEff"], 16)


def refused(number: int, call: Callable[[], object]) -> None:
    """Assert that *call* fails with errno *number*."""
    with pytest.raises(OSError, match=r".") as caught:
        call()

    assert caught.value.errno == number


ENDING = """
import os, sys, threading
sys.path.insert(0, {repository!r})
from tests.passthrough.core.probe_identity import Probe, give_up, set_ids
ALL = (1 << 41) - 1
volume = Probe().asked_by(41001, 41002)
def run():
    volume.prepare()
    {code}
    print("went on", flush=True)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def ended(code: str, *, without: str = "sys_boot") -> subprocess.CompletedProcess[str]:
    """Run *code* in a prepared thread of a process that lacks a capability."""
    return subprocess.run(
        [
            *("setpriv", "--bounding-set", f"-{without}"),
            *(sys.executable, "-c", ENDING.format(repository=str(REPOSITORY), code=code)),
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


class Identity(NamedTuple):
    """As whom a thread acts."""

    ids: tuple[int, int]
    groups: list[int]
    powerless: bool


ITSELF = Identity((0, 0), [], False)


def without_groups(volume: Probe, function: Callable[[], R]) -> R:
    """Call *function* in a thread of *volume* without supplementary groups, as a worker has it."""
    groups = os.getgroups()
    os.setgroups(())
    try:
        return in_thread(volume, function)
    finally:
        os.setgroups(groups)


def present(volume: Probe) -> Identity:
    """Return as whom the thread acts by what the kernel says, and so does Thread."""
    found = status()
    groups = sorted(map(int, found["Groups"].split()))
    ids = int(found["Uid"].split()[3]), int(found["Gid"].split()[3])
    powerless = capabilities() == 0
    assert volume.powerless == (ids if powerless else None)
    assert ids == volume.known == volume.present
    if powerless:
        assert sorted(volume.groups) == groups
    return Identity(ids, groups, powerless)
