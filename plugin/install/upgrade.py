"""`passfs upgrade`: the service on the host goes over to this program, and its volumes with it.

The command replaces the unit and restarts the service. The new plugin then has processes of its own
program take over each mounted volume (plugin/mounting/succession.py). The command waits for that
and names the volumes that stay with an older program.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from plugin.admin.settings import SETTINGS
from plugin.errors import printable
from plugin.install import service
from plugin.install.installation import TREE, InstallationError, Progress
from plugin.mounting.program import identity
from plugin.protocol import ProgramsReply, VolumeProgram

# One volume takes some 100 ms, and 10 s if its worker hangs.
STALLED_S = 60.0
_LOOK_S: Final = 0.1
_OLD: Final = ".old"
_PROGRAM: Final = "/opt/passfs/.venv/bin/passfs"
"""The program in the unit of the source tree."""

NO_SERVICE: Final = (
    f"systemd has no {service.UNIT} on this machine, and `passfs upgrade` is for the service on the"
    " host (docs/install.md). `passfs install` upgrades a managed plugin from a source tree; from a"
    " registry, `docker plugin disable -f` and `docker plugin upgrade` do. Both end its mounts:"
    ' running containers get "Transport endpoint is not connected" until they are restarted'
    " (docs/survival.md)."
)


class Upgrade(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `passfs upgrade`."""

    tree: Path | None = None
    """The source tree with the unit; None: that of this program."""
    socket: str = ""
    """The plugin's socket; empty: that of the socket unit."""


class Upgraded(msgspec.Struct, frozen=True, kw_only=True):
    """A service that runs this program."""

    unit: str
    former_unit: str | None
    """The copy of a unit that was replaced."""
    complete: bool
    """True if this program serves all mounted volumes."""
    volumes: Sequence[Mapping[str, Any]]
    """The fields of VolumeProgram, by name."""


def upgrade(wanted: Upgrade, progress: Progress) -> Upgraded:
    """Upgrade the service, and its mounted volumes with it.

    Raises:
        InstallationError: a step failed; the volumes are served nevertheless.
    """
    installed = service.unit_path()
    if installed is None:
        raise InstallationError(NO_SERVICE)
    if os.geteuid() != 0:
        raise InstallationError("`passfs upgrade` writes the unit of the service: run it as root.")
    program = identity()
    progress.step(f"Writing {installed}")
    former = _write_unit(_unit_of(wanted.tree, installed), installed)
    progress.line(
        f"the former unit is {former}; put settings of your own into drop-ins"
        if former
        else "it is as it was"
    )
    progress.step(f"Restarting {service.UNIT}")
    service.restart()
    progress.step("Waiting until this program serves the volumes")
    path = wanted.socket or service.socket_path(SETTINGS["socket"].default)
    reply = _wait(path, program)
    volumes = sorted(reply.volumes, key=lambda volume: volume.name)
    for volume in volumes:
        progress.line(f"{volume.name}: {_outcome(volume)}")
    return Upgraded(
        unit=str(installed),
        former_unit=former,
        complete=not any(volume.older or volume.lost for volume in volumes),
        volumes=[msgspec.structs.asdict(volume) for volume in volumes],
    )


def _unit_of(tree: Path | None, installed: Path) -> str:
    """Return the text of the unit in *tree*, with this program.

    Without a tree, return that of the *installed* unit if it starts this program: a package of the
    distribution has replaced both.
    """
    program = Path(sys.prefix) / "bin" / "passfs"
    # A virtual environment lies in the tree that it was made for, unless the program runs from it.
    trees = [TREE, Path(sys.prefix).parent] if tree is None else [tree]
    units = [each / "packaging" / service.UNIT for each in trees]
    found = next((unit for unit in units if unit.is_file()), None)
    if found is None and tree is None and _starts(installed, program):
        return installed.read_text(encoding="utf-8")
    if found is None:
        raise InstallationError(
            f"there is no {' and no '.join(map(str, units))}; --tree takes the directory of a"
            " checkout."
        )
    if not program.exists():
        raise InstallationError(
            f"there is no {program}, which the service would start; install passfs into this"
            f" environment first: {sys.executable} -m pip install {found.parents[1]}"
        )
    return found.read_text(encoding="utf-8").replace(_PROGRAM, str(program))


def _starts(unit: Path, program: Path) -> bool:
    lines = unit.read_text(encoding="utf-8").splitlines()
    return any(line.startswith(f"ExecStart={program} ") for line in lines)


def _write_unit(text: str, path: Path) -> str | None:
    """Write the unit *text* to *path*; return the copy of a unit that was replaced."""
    try:
        former = path.read_text(encoding="utf-8")
        if former == text:
            return None
        kept = path.with_name(path.name + _OLD)
        kept.write_text(former, encoding="utf-8")
        new = path.with_name(path.name + ".new")
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise InstallationError(f"cannot write the unit {path}: {error.strerror}.") from error
    return str(kept)


def _wait(path: str, program: str) -> ProgramsReply:
    """Wait until the plugin at the socket *path* has tried to replace each older program."""
    limit_s = time.monotonic() + STALLED_S
    last: ProgramsReply | None = None
    while time.monotonic() < limit_s:
        try:
            reply = service.programs(path)
        except OSError as error:
            problem = str(error)
        else:
            if reply.program != program:
                raise InstallationError(
                    f"the service runs another program than this one. Does a drop-in of"
                    f" {service.UNIT} name another ExecStart=? `systemctl cat {service.UNIT}`"
                )
            if reply.done:
                return reply
            if reply != last:
                limit_s = time.monotonic() + STALLED_S
            last, problem = reply, "it is not done"
        time.sleep(_LOOK_S)
    raise InstallationError(
        f"no progress for {STALLED_S:g} s: the plugin at {path} does not answer, or a volume hangs"
        f" ({problem}); `journalctl -u passfs` has the log."
    )


def _outcome(volume: VolumeProgram) -> str:
    if volume.lost:
        return f"restart its containers: its worker {printable(volume.lost)}"
    if volume.older:
        return f"an older program serves on: {printable(volume.older)}"
    if volume.milliseconds:
        return f"taken over in {volume.milliseconds:.0f} ms"
    return "has this program already"
