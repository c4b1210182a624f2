"""program.py: two plugins have one identity if their workers run the same modules."""

import os
from pathlib import Path

import pytest

from passthrough.worker.control import PROGRAM_ROOM
from plugin.mounting.program import identity


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "loop.so").write_bytes(b"code")
    (tmp_path / "module.py").write_text("code")
    return tmp_path


def test_the_identity_is_that_of_the_installed_modules(package: Path) -> None:
    assert identity() == identity()
    assert len(identity()) == PROGRAM_ROOM
    assert identity() != identity(package)


def test_times_and_other_files_are_no_part_of_the_identity(package: Path) -> None:
    before = identity(package)
    os.utime(package / "module.py", (1, 1))
    (package / "module.pyx").touch()
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "module.pyc").touch()
    assert identity(package) == before


@pytest.mark.parametrize("change", ["module.py", "core/loop.so", "core/new.py"])
def test_each_change_of_a_module_changes_the_identity(package: Path, change: str) -> None:
    before = identity(package)
    with (package / change).open("ab") as file:
        file.write(b"more")
    assert identity(package) != before


def test_a_module_with_another_name_changes_the_identity(package: Path) -> None:
    before = identity(package)
    (package / "module.py").rename(package / "other.py")
    assert identity(package) != before
