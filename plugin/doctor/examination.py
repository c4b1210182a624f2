"""The table of checks, in the order of the report, and the examination by all of them."""

from collections.abc import Callable
from typing import Final, NamedTuple

from plugin.children import Call, Child, Failed, Silent, running as calling
from plugin.doctor import kernel, limits, mounts, rights, running, storage, volumes
from plugin.doctor.facts import Facts, Machine, gathered
from plugin.doctor.finding import Finding, Found, State, unchecked

LIMIT_S: Final = 10.0
REGISTRY_S: Final = 45.0
"""`passfs check` waits for 40 s, commands/inquiry.py."""


class Check(NamedTuple):
    """A check, with its name in the report."""

    name: str
    find: Callable[[Facts], Found]
    limit_s: float = LIMIT_S
    silence: State = State.WARNING
    """How bad it is if the check does not end."""


CHECKS: Final = (
    Check("user", rights.user),
    Check("Linux", kernel.release),
    Check("/dev/fuse", kernel.device),
    Check("FUSE", kernel.protocol),
    Check("features of FUSE", kernel.features),
    Check("kernel passthrough", kernel.passthrough),
    Check("io_uring", kernel.io_uring),
    Check("sandbox", kernel.namespaces),
    Check("fanotify", kernel.fanotify),
    Check("capabilities", rights.capabilities),
    Check("open files", limits.open_files),
    Check("threads", limits.threads),
    Check("locked memory", limits.locked_memory),
    Check("data directory", storage.data_directory, silence=State.ERROR),
    Check("file handles", storage.file_handles),
    Check("engine", running.engine),
    Check("plugin", running.plugin),
    Check("version", running.version),
    Check("propagation", mounts.propagation),
    Check("mounts on the host", mounts.visible),
    Check("dead mounts", mounts.dead),
    Check("hidden sources", mounts.hidden),
    Check("volumes", volumes.health),
    Check("passfs check", volumes.registry, limit_s=REGISTRY_S),
)


def examine(machine: Machine) -> list[Finding]:
    """Make all checks of *machine*, at the same time."""
    facts = gathered(machine)
    calls = [Call(_bound(check, facts), Found, check.limit_s) for check in CHECKS]
    with calling(calls) as children:
        return [_finding(check, child) for check, child in zip(CHECKS, children, strict=True)]


def _bound(check: Check, facts: Facts) -> Callable[[], Found]:
    return lambda: check.find(facts)


def _finding(check: Check, child: Child[Found]) -> Finding:
    found = _found(check, child)
    return Finding(
        check=check.name,
        state=found.state,
        found=found.found,
        meaning=found.meaning,
        remedy=found.remedy,
    )


def _found(check: Check, child: Child[Found]) -> Found:
    try:
        return child.result()
    except Silent as silence:
        return Found(
            check.silence,
            f"not checked: {silence}",
            "a file system hangs, such as one on a dead file server, or the machine is very busy",
            "mend the file server, and run the command again",
        )
    except Failed as failure:
        return unchecked(str(failure))
