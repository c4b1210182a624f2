"""The checks of the engine and the plugin: do they answer, and do they fit together."""

import os
from pathlib import Path
from typing import Final

from plugin.doctor.facts import Facts
from plugin.doctor.finding import Found, State, unchecked
from plugin.install import source_tree
from plugin.install.installation import TREE
from plugin.install.service import UNIT
from plugin.mounting.program import identity
from plugin.volumes.registry import FILE_NAME

_INSTALL: Final = "passfs install, or install the service on the host (docs/install.md)"
_NO_CONTAINER: Final = "no container with a volume starts"


def engine(facts: Facts) -> Found:
    """Tell which Docker engine answers."""
    known = facts.engine
    if known.error:
        return Found(
            State.NOTE,
            known.error,
            "no managed plugin and no container of Docker; podman needs no engine",
            "apt-get install docker.io, or systemctl start docker; DOCKER_HOST names another one",
        )
    kind = f", {known.kind}" if known.kind else ""
    return Found(State.OK, f"Docker {known.version}, API {known.api}{kind}")


def plugin(facts: Facts) -> Found:
    """Ask the plugin whether it serves; if it does not, tell how it is installed."""
    known = facts.plugin
    if known.health is not None:
        where = f"process {known.pid}" if known.pid else "in a pid namespace out of sight"
        count = f"volumes: {known.health.volumes}, mounted: {known.health.mounted}"
        return Found(State.OK, f"{_kind(facts)}, {where}; {count}")
    if known.absent:
        return _absent(facts)
    if not facts.is_root:
        return unchecked(known.refusal)
    logs = "journalctl -u passfs, or -u docker, has the log; then restart the plugin"
    return Found(State.ERROR, known.refusal, _NO_CONTAINER, logs)


def _absent(facts: Facts) -> Found:
    """Return the finding that no plugin listens, by what is installed."""
    directory, managed, service = facts.machine.data_dir, facts.engine, facts.service
    if managed.name and not managed.enabled:
        found, remedy = f"{managed.name} is disabled", f"docker plugin enable {managed.name}"
    elif managed.name:
        found = f"{managed.name} is enabled, and does not listen in {directory}"
        remedy = "journalctl -u docker has its log; `passfs install` builds it anew"
    elif service.unit:
        found = f"{UNIT} is {service.state}, and no plugin listens in {directory}"
        remedy = "systemctl start passfs; journalctl -u passfs has the log"
    elif Path(directory, FILE_NAME).exists():
        found, remedy = f"{directory} has a registry, and no plugin listens there", _INSTALL
    else:
        return Found(State.WARNING, "passfs is not installed", "there is no volume yet", _INSTALL)
    if os.path.ismount(directory):
        remedy += f". If what is mounted at {directory} covers its data, unmount it"
    return Found(State.ERROR, found, _NO_CONTAINER, remedy)


def version(facts: Facts) -> Found:
    """Compare the program of the plugin with that of this command."""
    health = facts.plugin.health
    if health is None:
        return Found(State.OK, "no plugin to compare this command with")
    another = "this command may not know all that the plugin answers, or the other way round"
    if facts.engine.enabled and facts.engine.name:
        return _compared_with_build(facts.engine.build, another)
    if health.program == identity():
        return Found(State.OK, "the plugin runs the program of this command")
    return Found(
        State.NOTE,
        "the plugin runs another program than this command",
        another,
        "passfs upgrade, if this is the newer one; else run the command of the plugin",
    )


def _compared_with_build(build: str, another: str) -> Found:
    if not build:
        return Found(State.OK, "the managed plugin comes from a registry")
    if not (TREE / "config.json").exists():
        return Found(State.OK, "this command has no source tree to compare the plugin with")
    if build.partition(":")[0] == source_tree.digest(TREE):
        return Found(State.OK, f"the managed plugin is built from {TREE}")
    return Found(
        State.NOTE,
        f"the managed plugin is not built from {TREE} as it is now",
        another,
        "passfs install, which ends its mounts",
    )


def _kind(facts: Facts) -> str:
    if facts.engine.enabled:
        return f"managed plugin {facts.engine.name}"
    return f"{UNIT}, {facts.service.state}" if facts.service.unit else "passfs serve"
