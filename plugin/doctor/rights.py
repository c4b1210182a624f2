"""The checks of rights: the user of the command, and the capabilities of the plugin."""

from typing import Final, NamedTuple

from passthrough.worker import sandbox
from plugin.doctor.facts import Facts
from plugin.doctor.finding import Found, State


class Need(NamedTuple):
    """A capability, and the consequence if it is missing."""

    name: str
    number: int
    state: State
    meaning: str


_CANNOT_MOUNT: Final = "no volume can be mounted"
# The capabilities with other consequences than a call of containers that fails.
_OTHERS: Final = (
    Need("CAP_SYS_ADMIN", 21, State.ERROR, _CANNOT_MOUNT),
    Need("CAP_SETPCAP", 8, State.ERROR, "no worker can have a sandbox"),
    Need("CAP_SYS_CHROOT", 18, State.WARNING, "no standby: a mount ends with its worker"),
    Need("CAP_DAC_READ_SEARCH", 2, State.NOTE, "files are held by descriptors alone"),
    Need("CAP_SYS_PTRACE", 19, State.NOTE, "`passfs upgrade` leaves mounts to older programs"),
)
_APART: Final = frozenset({need.name for need in _OTHERS})
# A managed plugin is upgraded by another way.
_OF_SERVICE: Final = "CAP_SYS_PTRACE"
_SEVERITY: Final = (State.NOTE, State.WARNING, State.ERROR)


def needs() -> list[Need]:
    """Return all capabilities that a plugin and its workers use, the most important first."""
    others = [
        Need(name, number, State.WARNING, f"containers fail in: {purpose}")
        for name, (number, purpose) in sandbox.KEPT.items()
        if name not in _APART
    ]
    return [*_OTHERS, *others]


def user(facts: Facts) -> Found:
    """Tell whether the command may see all."""
    if facts.is_root:
        return Found(State.OK, "root")
    found = f"user {facts.machine.user}"
    if facts.plugin.health is not None:
        owner = f"{found}, as the plugin"
        meaning = "facts that only root may see are `not checked`"
        return Found(State.NOTE, owner, meaning, "none is needed with a rootless engine")
    return Found(
        State.WARNING,
        found,
        "checks that need root are `not checked`",
        "run the command as root, or as the user of a rootless engine with --data-dir",
    )


def capabilities(facts: Facts) -> Found:
    """Compare the plugin's capabilities with those that volumes need."""
    whose = facts.process_name
    lines = (facts.process / "status").read_text().splitlines()
    (held,) = (int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    missing = [
        need
        for need in needs()
        if not held >> need.number & 1 and not (facts.engine.enabled and need.name == _OF_SERVICE)
    ]
    if not missing:
        return Found(State.OK, f"{whose} has all {len(needs())} that volumes need")
    if not facts.plugin.pid and not facts.is_root:
        return Found(
            State.NOTE,
            "this process is not root",
            "nothing: the plugin has capabilities of its own",
            "run the command as root",
        )
    state = max((need.state for need in missing), key=_SEVERITY.index)
    return Found(
        state,
        f"{whose} lacks {', '.join(need.name for need in missing)}",
        "; ".join(f"without {need.name}: {need.meaning}" for need in missing),
        "give them to the unit (CapabilityBoundingSet=) or to the container of this command",
    )
