"""The fixtures of several modules: directories for mounts, and an engine for the installer."""

from pathlib import Path

import pytest

from tests.support.fakes.engine import FakeEngine, Install


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    return tmp_path / "mounts"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    return directory


@pytest.fixture
def docker() -> FakeEngine:
    """Return an engine that keeps plugins in memory."""
    return FakeEngine()


@pytest.fixture
def install(docker: FakeEngine, tmp_path: Path) -> Install:
    """Return `passfs install` for that engine."""
    return Install(docker, tmp_path)
