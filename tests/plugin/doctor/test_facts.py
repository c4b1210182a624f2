"""facts.py: what an engine, systemd, the kernel and a plugin tell, or why they do not."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plugin.doctor import facts
from plugin.doctor.facts import EngineFacts, Machine, ServiceFacts
from plugin.install import engine
from plugin.install.installation import InstallationError
from tests.support.fakes.engine import FakeEngine, Install
from tests.support.fakes.hung import HungSource
from tests.support.tools.doctor import NO_ENGINE

UNIT = "/etc/systemd/system/passfs.service"
SYSTEMCTL = """#!/bin/sh
case "$*" in
    *LoadState*) echo loaded ;;
    *FragmentPath*) echo {unit} ;;
    *ActiveState*) echo failed ;;
esac
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, docker: FakeEngine) -> Callable[[str], EngineFacts]:
    """Return the function that asks a fake engine."""

    @contextmanager
    def connect(limit_s: float) -> Iterator[FakeEngine]:
        assert limit_s == facts.ANSWER_S
        yield docker

    monkeypatch.setattr(engine, "connect", connect)
    return facts._engine


def test_an_engine_with_a_managed_plugin(
    asked: Callable[[str], EngineFacts], install: Install
) -> None:
    install()
    found = asked(str(install.data_dir))
    assert (found.version, found.api, found.kind) == ("29.1", "1.52", "")
    assert (found.name, found.enabled, len(found.build) > 64) == ("passfs:latest", True, True)


def test_a_managed_plugin_with_another_data_directory_is_another_one(
    asked: Callable[[str], EngineFacts], install: Install
) -> None:
    install()
    assert asked("/var/lib/other").name == ""


def test_engines_of_special_kinds(asked: Callable[[str], EngineFacts], docker: FakeEngine) -> None:
    docker.info_answer |= {"SecurityOptions": ["name=rootless"]}
    assert asked("/").kind == "rootless"
    docker.info_answer |= {
        "SecurityOptions": ["name=userns"],
        "DockerRootDir": "/var/lib/docker/100000.100001",
    }
    assert asked("/").kind == "userns-remap to 100000:100001"


def test_an_engine_that_refuses_has_a_reason(
    asked: Callable[[str], EngineFacts], docker: FakeEngine
) -> None:
    docker.broken["version"] = "busy"
    assert asked("/").error == "the engine could not tell its version: busy."


def test_no_engine_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE)
    assert facts._engine("/").error.startswith(f"no Docker engine answers at {NO_ENGINE}")
    with pytest.raises(InstallationError):
        engine.connect(limit_s=1)


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a fake systemctl(1), which is not there yet."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(facts, "_SYSTEMD", tmp_path)
    return tmp_path / "systemctl"


def test_a_service_has_a_unit_and_a_state(systemd: Path) -> None:
    systemd.write_text(SYSTEMCTL.format(unit=UNIT))
    systemd.chmod(0o755)
    assert facts._service() == ServiceFacts(unit=UNIT, state="failed")


def test_a_systemd_that_does_not_answer_is_no_service(systemd: Path) -> None:
    systemd.write_text("#!/bin/sh\nexit 1\n")
    systemd.chmod(0o755)
    found = facts._service()
    assert (found.unit, "systemctl show" in found.error) == ("", True)


def test_without_systemd_there_is_no_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "_SYSTEMD", tmp_path / "none")
    assert facts._service() == ServiceFacts()


def test_a_kernel_without_the_module_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "filesystems").write_text("nodev\tproc\n")
    machine = Machine.own("/")._replace(proc=tmp_path)
    assert facts._init(machine).error == "the kernel has no FUSE yet"


def test_a_source_of_facts_that_hangs_delays_no_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "ANSWER_S", 2.0)
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE)
    with HungSource(tmp_path):
        found = facts.gathered(Machine.own(str(tmp_path / "data")))
    assert found.plugin.refusal == "no answer within 4 s"
    assert found.init.minor >= 40
    assert not found.plugin.absent
