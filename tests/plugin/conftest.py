"""The fixtures of several modules: directories for mounts, and an engine for the installer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fakes.engine import FakeEngine, Install
from tests.support.fakes.service_manager import ServiceManager


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    return tmp_path / "mounts"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    return directory


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    """Yield a service manager, which keeps descriptors."""
    with ServiceManager(tmp_path) as manager:
        yield manager


@pytest.fixture
def docker() -> FakeEngine:
    """Return an engine that keeps plugins in memory."""
    return FakeEngine()


@pytest.fixture
def install(docker: FakeEngine, tmp_path: Path) -> Install:
    """Return `passfs install` for that engine."""
    return Install(docker, tmp_path)
