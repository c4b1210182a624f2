"""A source distribution has all that a build of passfs needs; a wheel has all that runs."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePath

import pytest

from tests.support.tools.distribution import BESIDE, PACKAGES, copy_sources, wheel
from tests.support.tools.generated import REPOSITORY

SOURCES = {".py", ".pyx", ".pxd", ".pyi", ".typed"}
# The sources of compiled modules are no part of a wheel; the declarations are, for other modules.
INSTALLED = SOURCES - {".pyx"}


def sources(kinds: set[str]) -> set[str]:
    return {
        str(path.relative_to(REPOSITORY))
        for name in PACKAGES
        for path in (REPOSITORY / name).rglob("*")
        if path.suffix in kinds
    }


def test_a_source_distribution_has_each_source(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy_sources(copy)  # with what is built in the tree
    environment = os.environ | {"PASSFS_BUILD": "none"}
    words = ["-W", "ignore", "setup.py", "-q", "sdist", "-d", str(tmp_path)]
    subprocess.run([sys.executable, *words], cwd=copy, env=environment, check=True)

    [archive] = tmp_path.glob("passfs-*.tar.gz")
    with tarfile.open(archive) as opened:
        paths = {"/".join(PurePath(name).parts[1:]) for name in opened.getnames()}
    inner = {path for path in paths if path.startswith(PACKAGES) and PurePath(path).suffix}
    assert inner == sources(SOURCES)
    assert paths >= {*BESIDE}


@pytest.mark.slow
def test_a_wheel_has_each_module_and_the_manual_page(tmp_path: Path) -> None:
    """The page has its place in share/man, below the prefix of pip."""
    file = wheel(tmp_path / "wheel")
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert file.name.startswith(f"passfs-{version}-cp")
    with zipfile.ZipFile(file) as opened:
        names = {*opened.namelist()}
        page = opened.read(f"passfs-{version}.data/data/share/man/man1/passfs.1")

    assert page == (REPOSITORY / "packaging" / "passfs.1").read_bytes()
    assert {name for name in names if PurePath(name).suffix in INSTALLED} == sources(INSTALLED)
    compiled = {name.partition(".")[0] for name in names if name.endswith(".so")}
    assert compiled == {name.removesuffix(".pyx") for name in sources({".pyx"})}
    assert not [name for name in names if name.startswith("tests")]
