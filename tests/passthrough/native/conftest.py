"""A volume that serves locks on one file, and two owners that have the file open."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tools.checks import descriptors_below
from tests.support.tools.native_locks import Served, User


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
