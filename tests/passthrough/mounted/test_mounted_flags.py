"""Mount flags: setuid programs, device nodes and execution, for several users."""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.tools.callers import ROOT, USER, attempt
from tests.support.tools.mounted import Mounted, mounted

LIMIT_S = 30.0
ZERO_DEVICE = os.makedev(1, 5)


@contextmanager
def volume(base: Path, **options: str) -> Iterator[Mounted]:
    with mounted(base, options) as served, served.limited(LIMIT_S):
        served.source.chmod(0o755)
        yield served


def printed(*words: str | Path) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("options", "expected"), [({}, USER.uid), ({"suid": ""}, 0)])
def test_setuid_programs_take_effect_with_option_suid(
    base: Path, options: dict[str, str], expected: int
) -> None:
    with volume(base, **options) as served:
        shutil.copy("/usr/bin/id", served.source)
        (served.source / "id").chmod(0o4755)

        assert int(USER.run(lambda: printed(served.mountpoint / "id", "-u"))) == expected


@pytest.mark.parametrize(("options", "expected"), [({}, "EACCES"), ({"dev": ""}, "allowed")])
def test_device_nodes_can_be_opened_with_option_dev(
    base: Path, options: dict[str, str], expected: str
) -> None:
    """The caller's kernel opens them; the worker opens no device node with any option."""
    with volume(base, **options) as served:
        os.mknod(served.source / "zero", stat.S_IFCHR, ZERO_DEVICE)
        (served.source / "zero").chmod(0o666)

        for caller in (ROOT, USER):
            assert attempt(caller, lambda: first_byte(served.mountpoint / "zero")) == expected


def first_byte(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return file.read(1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, "allowed"), ({"exec": "off"}, "EACCES"), ({"noexec": ""}, "EACCES")],
)
def test_programs_can_be_executed_unless_exec_is_off(
    base: Path, options: dict[str, str], expected: str
) -> None:
    with volume(base, **options) as served:
        shutil.copy("/bin/true", served.source)

        for caller in (ROOT, USER):
            assert attempt(caller, lambda: printed(served.mountpoint / "true")) == expected
