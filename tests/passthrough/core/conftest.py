"""Probes of inodes, a volume with locks of two owners on one file, and builds with sanitizers."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.passthrough.core.probe_inodes import Probe
from tests.support.tools.checks import descriptors_below
from tests.support.tools.core_builds import CORE, LIBRARIES, Build
from tests.support.tools.core_inodes import Python, Serve, serving
from tests.support.tools.core_locks import Served, User


@pytest.fixture
def served(source: Path) -> Iterator[Served]:
    (source / "file").write_bytes(bytes(100))
    volume = Served(source / "file")
    yield volume
    assert volume.waiting() == 0
    volume.end()
    assert descriptors_below(source) == set()


@pytest.fixture
def alice(served: Served) -> User:
    return User(served, 1)


@pytest.fixture
def bob(served: Served) -> User:
    return User(served, 2)


@pytest.fixture
def python() -> Python:
    return Python()


@pytest.fixture
def serve(source: Path, python: Python) -> Iterator[Serve]:
    """Make probes of *source*; after the test, each is closed and leaves no descriptor."""
    yield from serving(source, python)


@pytest.fixture
def by_handle(serve: Serve) -> Probe:
    return serve(budget=0)


@pytest.fixture(scope="session", params=LIBRARIES)
def sanitized(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Build]:
    """Build the core with a sanitizer, and the probes of all tests that have this fixture."""
    target = tmp_path_factory.mktemp(request.param)
    yield Build(target, request.param, *CORE, "fuzz", "requests", "stress")
    shutil.rmtree(target)
