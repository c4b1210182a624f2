"""The checks of the user, and of the plugin's capabilities."""

from pathlib import Path

import pytest

from plugin.doctor import rights
from plugin.doctor.facts import EngineFacts, Facts, PluginFacts
from plugin.doctor.finding import State
from tests.support.tools.doctor import ALL_CAPABILITIES, PLUGIN_PID, facts, machine, plugin, written


def test_root_sees_all(tmp_path: Path) -> None:
    assert rights.user(facts(tmp_path)).state is State.OK


@pytest.mark.parametrize(
    ("answering", "state"), [(plugin(), State.NOTE), (PluginFacts(), State.WARNING)]
)
def test_another_user_is_told_so(tmp_path: Path, answering: PluginFacts, state: State) -> None:
    found = rights.user(Facts(machine(tmp_path, user=1000), plugin=answering))
    assert (found.state, found.found[:9]) == (state, "user 1000")


def holding(directory: Path, *missing: str) -> None:
    """Let the plugin's process have all capabilities but the *missing* ones."""
    numbers = {need.name: need.number for need in rights.needs()}
    held = ALL_CAPABILITIES & ~sum(1 << numbers[name] for name in missing)
    written(directory, **{f"proc__{PLUGIN_PID}__status": f"Name:\tpassfs\nCapEff:\t{held:016x}\n"})


@pytest.mark.parametrize(
    ("missing", "state", "meaning"),
    [
        ((), State.OK, ""),
        (("CAP_SYS_ADMIN",), State.ERROR, "no volume can be mounted"),
        (("CAP_SETPCAP",), State.ERROR, "no worker can have a sandbox"),
        (("CAP_SYS_CHROOT", "CAP_SYS_PTRACE"), State.WARNING, "no standby"),
        (("CAP_CHOWN",), State.WARNING, "without CAP_CHOWN: containers fail in: chown of any file"),
        (("CAP_DAC_READ_SEARCH",), State.NOTE, "files are held by descriptors alone"),
    ],
)
def test_each_missing_capability_has_its_meaning(
    tmp_path: Path, missing: tuple[str, ...], state: State, meaning: str
) -> None:
    holding(tmp_path, *missing)
    found = rights.capabilities(facts(tmp_path, plugin=plugin()))
    assert found.state is state
    assert meaning in found.meaning
    assert all(name in found.found for name in missing)


def test_a_managed_plugin_needs_no_capability_for_upgrades(tmp_path: Path) -> None:
    holding(tmp_path, "CAP_SYS_PTRACE")
    managed = EngineFacts(name="passfs:latest", enabled=True)
    found = rights.capabilities(facts(tmp_path, plugin=plugin(), engine=managed))
    assert found.state is State.OK


def test_without_a_plugin_another_user_needs_none(tmp_path: Path) -> None:
    written(tmp_path, proc__self__status="CapEff:\t0000000000000000\n")
    assert rights.capabilities(Facts(machine(tmp_path, user=1000))).state is State.NOTE
    assert rights.capabilities(facts(tmp_path)).state is State.ERROR


def test_the_capabilities_are_those_of_the_unit() -> None:
    unit = Path(__file__).parents[3] / "packaging" / "passfs.service"
    (line,) = (each for each in unit.read_text().splitlines() if "CapabilityBoundingSet=" in each)
    assert {need.name for need in rights.needs()} == {*line.partition("=")[2].split()}
