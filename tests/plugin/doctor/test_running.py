"""The checks of engine and plugin: each kind of installation, running and not."""

from pathlib import Path

import pytest

from plugin.doctor import running
from plugin.doctor.facts import EngineFacts, Facts, PluginFacts, ServiceFacts
from plugin.doctor.finding import State
from plugin.install import source_tree
from plugin.install.installation import TREE
from plugin.mounting.program import identity
from plugin.protocol import HealthReply
from tests.support.tools.doctor import facts, machine, plugin
from tests.support.tools.mounts import mounted_on

MANAGED = EngineFacts(version="29.1", api="1.52", name="passfs:latest", enabled=True)
UNIT = ServiceFacts(unit="/etc/systemd/system/passfs.service", state="inactive")
ABSENT = PluginFacts(refusal="no plugin listens.", absent=True)
SILENT = PluginFacts(refusal="the plugin has not answered within 5 s.")


@pytest.mark.parametrize(
    ("engine", "state", "text"),
    [
        (MANAGED, State.OK, "Docker 29.1, API 1.52"),
        (EngineFacts(version="29.1", api="1.52", kind="rootless"), State.OK, "1.52, rootless"),
        (EngineFacts(error="no Docker engine answers"), State.NOTE, "no Docker engine answers"),
    ],
)
def test_the_engine(tmp_path: Path, engine: EngineFacts, state: State, text: str) -> None:
    found = running.engine(facts(tmp_path, engine=engine))
    assert (found.state, text in found.found) == (state, True)


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ({"engine": MANAGED}, "managed plugin passfs:latest, process 7"),
        ({"service": UNIT}, "passfs.service, inactive, process 7"),
        ({}, "passfs serve, process 7"),
        ({"plugin": plugin(pid=0)}, "passfs serve, in a pid namespace out of sight"),
    ],
)
def test_a_plugin_that_answers(tmp_path: Path, known: dict[str, object], text: str) -> None:
    found = running.plugin(facts(tmp_path, **{"plugin": plugin()} | known))
    assert (found.state, found.found) == (State.OK, f"{text}; volumes: 0, mounted: 0")


@pytest.mark.parametrize(
    ("known", "text", "remedy"),
    [
        (
            {"engine": EngineFacts(name="passfs:latest")},
            "passfs:latest is disabled",
            "docker plugin enable passfs:latest",
        ),
        ({"engine": MANAGED}, "passfs:latest is enabled, and does not listen", "journalctl"),
        ({"service": UNIT}, "passfs.service is inactive", "systemctl start passfs"),
    ],
)
def test_a_plugin_that_does_not_listen_has_a_remedy_by_its_installation(
    tmp_path: Path, known: dict[str, object], text: str, remedy: str
) -> None:
    found = running.plugin(facts(tmp_path, plugin=ABSENT, **known))
    assert found.state is State.ERROR
    assert (found.found.startswith(text), found.remedy.startswith(remedy)) == (True, True)


def test_a_machine_without_passfs_has_a_warning_and_the_way_to_install(tmp_path: Path) -> None:
    found = running.plugin(facts(tmp_path, plugin=ABSENT))
    assert (found.state, found.found) == (State.WARNING, "passfs is not installed")
    assert found.remedy.startswith("passfs install, or")


def test_a_registry_without_a_plugin_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/passfs.db").touch()
    found = running.plugin(facts(tmp_path, plugin=ABSENT))
    assert (found.state, "has a registry" in found.found) == (State.ERROR, True)


def test_a_mount_over_the_data_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with mounted_on(tmp_path / "data", "tmpfs"):
        found = running.plugin(facts(tmp_path, plugin=ABSENT, service=UNIT))
    assert f"what is mounted at {tmp_path}/data covers" in found.remedy


def test_a_plugin_that_is_silent_is_an_error_for_root_alone(tmp_path: Path) -> None:
    assert running.plugin(facts(tmp_path, plugin=SILENT)).state is State.ERROR
    other = Facts(machine(tmp_path, user=1000), plugin=SILENT)
    assert running.plugin(other).state is State.WARNING


def running_program(program: str) -> PluginFacts:
    """Return a plugin that runs this program."""
    health = HealthReply(program=program, pid=1, volumes=0, mounted=0, lost=0)
    return PluginFacts(pid=1, health=health)


def test_the_program_of_the_service(tmp_path: Path) -> None:
    same = running.version(facts(tmp_path, plugin=running_program(identity()), service=UNIT))
    other = running.version(facts(tmp_path, plugin=running_program("other"), service=UNIT))
    assert (same.state, other.state) == (State.OK, State.NOTE)
    assert other.remedy.startswith("passfs upgrade")


@pytest.mark.parametrize(
    ("build", "state"), [("", State.OK), ("other:base", State.NOTE), ("own", State.OK)]
)
def test_the_build_of_the_managed_plugin(tmp_path: Path, build: str, state: State) -> None:
    stamp = f"{source_tree.digest(TREE)}:base" if build == "own" else build
    engine = EngineFacts(name="passfs:latest", enabled=True, build=stamp)
    found = running.version(facts(tmp_path, plugin=plugin(), engine=engine))
    assert found.state is state


def test_without_a_plugin_no_version_is_compared(tmp_path: Path) -> None:
    assert running.version(facts(tmp_path)).state is State.OK
