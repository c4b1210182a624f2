"""`passfs doctor` as a program, and the facts of a machine that a test describes."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from passthrough.session import negotiation
from plugin.doctor.facts import Facts, InitFacts, Machine, PluginFacts
from plugin.doctor.finding import Finding
from plugin.protocol import HealthReply, VolumeInfo
from tests.support.tools.commands import Done, run

LIMIT_S = 60
PLUGIN_PID = 7
PROGRAM = "0" * 32
ALL_CAPABILITIES = (1 << 41) - 1
NO_ENGINE = "unix:///nonexistent/docker.sock"


class Examined(NamedTuple):
    """The end of `passfs doctor --json`."""

    status: int
    findings: dict[str, Finding]
    """By check, in the order of the report."""
    errors: str


def examined(data_dir: Path, *options: str, within: Sequence[str] = ()) -> Examined:
    """Run `passfs doctor --json`; no engine is asked.

    The command runs in this process, or as a program that the command *within* executes.
    """
    arguments = ("doctor", "--json", *options, "--data-dir", str(data_dir))
    if within:
        done = executed(*within, sys.executable, "-m", "plugin", *arguments)
    else:
        done = run(*arguments, DOCKER_HOST=NO_ENGINE)
    assert done.stdout, done.stderr
    found = msgspec.json.decode(done.stdout, type=list[Finding])
    return Examined(done.returncode, {each.check: each for each in found}, done.stderr)


def executed(*command: str) -> Done:
    """Execute a program; no engine is asked."""
    done = subprocess.run(
        command,
        env=os.environ | {"DOCKER_HOST": NO_ENGINE},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def machine(
    directory: Path,
    *,
    release: tuple[int, int] = (6, 18),
    architecture: str = "x86_64",
    user: int = 0,
    **paths: Path,
) -> Machine:
    """Return a machine with the data directory and the files of /proc and /sys in *directory*."""
    proc, sysfs = directory / "proc", directory / "sys"
    given = {"proc": proc, "sys": sysfs} | paths
    return Machine(str(directory / "data"), release, architecture, user, **given)


def written(directory: Path, **contents: str) -> None:
    """Write files in *directory*; in a name, two underscores stand for a slash."""
    for name, content in contents.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def init(*missing: str, minor: int = 45) -> InitFacts:
    """Return an INIT that offers all features but the *missing* ones."""
    flags = sum(row.flag for row in negotiation.FEATURES if row.flag.name not in missing)
    return InitFacts(major=7, minor=minor, flags=flags)


def plugin(*volumes: VolumeInfo, pid: int = PLUGIN_PID) -> PluginFacts:
    """Return a plugin that answers, with these *volumes*."""
    health = HealthReply(program=PROGRAM, pid=1, volumes=len(volumes), mounted=0, lost=0)
    return PluginFacts(pid=pid, health=health, volumes=volumes)


def volume(name: str, **status: Any) -> VolumeInfo:
    """Return a volume with this Status."""
    return VolumeInfo(
        name=name,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        status=msgspec.Raw(json.dumps(status).encode()),
    )


def facts(directory: Path, **more: Any) -> Facts:
    """Return the facts about `machine` with *more* of their fields."""
    return Facts(**{"machine": machine(directory)} | more)
