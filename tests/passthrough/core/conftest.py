"""Probes of inodes, and a volume that serves locks on one file for two owners."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.passthrough.core.probe_inodes import Probe
from tests.support.tools.checks import descriptors_below
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
