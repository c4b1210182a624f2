"""Owners that are killed at any instruction, and what a successor finds."""

import functools
import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from tests.passthrough.core.probe_stress import stress
from tests.passthrough.core.probe_tables import Probe
from tests.support.tools.core_tables import ROOT, State, check, named, state
from tests.support.tools.stepping import step_through


def recovered(memory: bytes) -> Probe:
    fd = os.memfd_create("copy")
    os.write(fd, memory)
    return Probe(fd)


def start() -> Probe:
    """Make tables with inodes of each kind."""
    probe = Probe(inodes=128, opens=8, places=4, handle_bytes=8, budget=3)
    gone = named(probe.grant(69, 9))[1]
    named(probe.grant(70, 10))
    probe.grant(70, 10)
    probe.forget(gone)
    opened = named(probe.grant(71, 11))[1]
    probe.open(opened, 20, backing=3)
    probe.open(opened, 21)
    named(probe.grant(72, 12, handle=b"handle"))
    return probe


def nodeid_of(probe: Probe, ino: int) -> int:
    return (probe.find(ino) or ("", 0, 0))[1]


def forget_and_release(probe: Probe) -> None:
    nodeid = nodeid_of(probe, 71)
    probe.forget(nodeid)
    probe.release(1)
    probe.release(2)


WORK: dict[str, Callable[[Probe], object]] = {
    "grant new": lambda probe: probe.grant(80, 30),
    "grant known": lambda probe: probe.grant(70, 30),
    "grant by handle": lambda probe: probe.grant(80, 30, handle=b"another"),
    "grant with a reused number": lambda probe: probe.grant(72, 30, handle=b"another"),
    "grant elsewhere": lambda probe: probe.grant(80, 30, device=5),
    "forget one": lambda probe: probe.forget(nodeid_of(probe, 70)),
    "forget all": lambda probe: probe.forget(nodeid_of(probe, 70), 2),
    "pin": lambda probe: probe.pin(72, 40, b"handle"),
    "open": lambda probe: probe.open(ROOT, 22),
    "first open": lambda probe: probe.open(nodeid_of(probe, 70), 22, backing=6),
    "release": lambda probe: probe.release(1),
    "forget what is open": lambda probe: probe.forget(nodeid_of(probe, 71)),
    "forget and release": forget_and_release,
    "rebuild the hash": lambda probe: probe.rebuild_hash(),
    "recover": lambda probe: probe.recover(),
}
# How many states of inodes and open files an operation passes through, if not before and after.
STATES = {"forget and release": 4, "rebuild the hash": 1, "recover": 1}


@pytest.mark.parametrize("name", WORK)
def test_a_successor_may_come_after_any_instruction(name: str) -> None:
    probe = start()
    states: list[State] = []
    snapshots = 0
    for (memory,) in step_through([probe.fd], functools.partial(WORK[name], probe)):
        snapshots += 1
        successor = recovered(memory)
        check(successor)
        now = state(successor)
        if now not in states[-1:]:
            states.append(now)
        named(successor.grant(90, 50, handle=b"ninety"))
        check(successor)
    assert snapshots >= len(states)
    assert len(states) == len(set(states)) == STATES.get(name, 2)
    probe.recover()
    assert state(probe) == states[-1]


@pytest.mark.parametrize("seed", range(20))
def test_a_successor_goes_on_where_another_was_killed(seed: int) -> None:
    drawn = random.Random(seed)  # noqa: S311
    probe = Probe(inodes=1 << 16, budget=2_000, handle_bytes=24)
    pid = os.fork()
    if pid == 0:
        stress(probe.fd, 2, 1 << 40, 5_000, seed + 1)
        os._exit(1)
    time.sleep(drawn.uniform(0.001, 0.03))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    probe.recover()
    check(probe)
    successor = Probe(os.dup(probe.fd))
    check(successor)
    assert stress(successor.fd, 2, 20_000, 5_000, seed + 2) == 0
    successor.recover()
    check(successor)
