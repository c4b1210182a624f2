"""The checks of limits: descriptors, threads and locked memory of the plugin and the machine."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from plugin.doctor.facts import Facts
from plugin.doctor.finding import Found, State

_OF_MOUNT: Final = 6  # descriptors of the plugin for a mounted volume, app.py
_FEW_DESCRIPTORS: Final = 4096
_MANY_OF_ALL: Final = 0.9
_OF_WORKER: Final = 1300
"""The threads of a worker whose callers wait for many locks, docs/install.md."""
_LOCKED_BYTES: Final = 2 << 20
"""The buffers of a worker, which it locks: up to 1 MiB for each reader of /dev/fuse."""


def open_files(facts: Facts) -> Found:
    """Compare the limits of descriptors with the needs of plugin and workers."""
    used, _, most = map(int, (facts.machine.proc / "sys/fs/file-nr").read_text().split())
    if used > _MANY_OF_ALL * most:
        return Found(
            State.WARNING,
            f"{used} of {most} files are open on this machine",
            "calls in volumes may fail with ENFILE",
            "raise fs.file-max by sysctl(8)",
        )
    if not facts.plugin.pid:
        return Found(State.OK, f"{used} of {most} files are open on this machine")
    hard = _hard_limit(facts.process, "Max open files")
    volumes = len(facts.plugin.volumes)
    number = "any number" if hard == sys.maxsize else hard
    found = f"the plugin and each worker may open {number}"
    raised = "raise LimitNOFILE= of the unit that starts the plugin"
    if hard < _OF_MOUNT * volumes:
        meaning = f"the plugin cannot mount all of its {volumes} volumes at once"
        return Found(State.WARNING, found, meaning, raised)
    if hard < _FEW_DESCRIPTORS:
        return Found(
            State.WARNING,
            found,
            "a worker without file handles fails with EMFILE when the kernel caches more files",
            raised,
        )
    return Found(State.OK, found)


def threads(facts: Facts) -> Found:
    """Compare the limits of threads with the needs of a worker."""
    if not facts.plugin.pid:
        most = int((facts.machine.proc / "sys/kernel/threads-max").read_text())
        return Found(State.OK, f"{most} threads on this machine")
    limits = list(_limits_of_threads(facts))
    if not limits:
        return Found(State.OK, "no cgroup of the plugin has a limit")
    free, path = min(limits)
    found = f"{free} more threads in the cgroup {path}"
    if free < _OF_WORKER:
        return Found(
            State.WARNING,
            found,
            "under load, waiting for a lock fails with ENOLCK, and no further worker may start",
            "raise TasksMax= of the unit, or pids.max of the cgroup",
        )
    return Found(State.OK, found)


def locked_memory(facts: Facts) -> Found:
    """Compare the limit of locked memory with the buffers of a worker."""
    hard = _hard_limit(facts.process, "Max locked memory")
    found = f"{facts.process_name} may lock {hard} bytes"
    if hard == sys.maxsize:
        found = f"{facts.process_name} may lock all memory"
    elif hard < _LOCKED_BYTES:
        return Found(
            State.NOTE,
            found,
            "if memory is short, a request can fail with EIO when its worker is killed",
            "raise LimitMEMLOCK= of the unit",
        )
    return Found(State.OK, found)


def _hard_limit(process: Path, name: str) -> int:
    """Return a hard limit of a process; "unlimited" is sys.maxsize."""
    lines = (process / "limits").read_text().splitlines()
    (words,) = (line[len(name) :].split() for line in lines if line.startswith(name))
    return sys.maxsize if words[1] == "unlimited" else int(words[1])


def _limits_of_threads(facts: Facts) -> Iterator[tuple[int, str]]:
    """Yield the threads that each cgroup above the plugin's process still allows, cgroups(7)."""
    for line in (facts.process / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in {"", "pids"}:
            top = facts.machine.sys / "fs/cgroup" / controllers
            inner = top / path.lstrip("/")
            for directory in (inner, *inner.parents):
                if directory.is_relative_to(top) and (most := _number(directory / "pids.max")):
                    now = _number(directory / "pids.current")
                    yield most - now, f"/{directory.relative_to(top)}".removesuffix("/.")


def _number(path: Path) -> int:
    """Return the number in a file; 0 if it has none, or does not exist."""
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdecimal() else 0
