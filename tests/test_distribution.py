"""A source distribution has all that a build of passfs needs, and nothing that a build makes."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path, PurePath

from tests.support.tools.generated import REPOSITORY

PACKAGES = ("passthrough", "plugin")
SOURCES = {".py", ".pyx", ".pxd", ".pyi", ".typed"}
BESIDE = {"LICENSE", "README.md", "pyproject.toml", "setup.py"}


def test_a_source_distribution_has_each_source(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (*BESIDE, "MANIFEST.in"):
        shutil.copy(REPOSITORY / name, copy)
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, copy / name)  # with what is built in the tree
    environment = os.environ | {"PASSFS_BUILD": "none"}
    words = ["-W", "ignore", "setup.py", "-q", "sdist", "-d", str(tmp_path)]
    subprocess.run([sys.executable, *words], cwd=copy, env=environment, check=True)

    [archive] = tmp_path.glob("passfs-*.tar.gz")
    with tarfile.open(archive) as opened:
        paths = {"/".join(PurePath(name).parts[1:]) for name in opened.getnames()}
    inner = {path for path in paths if path.startswith(PACKAGES) and PurePath(path).suffix}
    assert inner == {
        str(path.relative_to(REPOSITORY))
        for name in PACKAGES
        for path in (REPOSITORY / name).rglob("*")
        if path.suffix in SOURCES
    }
    assert paths >= BESIDE
