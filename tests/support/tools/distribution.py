"""A wheel of this checkout, with the modules that scripts/core has compiled."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.tools.core_builds import GENERATED
from tests.support.tools.generated import REPOSITORY

PACKAGES = ("passthrough", "plugin")
BESIDE = ("LICENSE", "README.md", "packaging/passfs.1", "pyproject.toml", "setup.py")
BUILT = "build/core/release"
LIMIT_S = 300.0


def copy_sources(directory: Path) -> None:
    """Copy all that a build needs, and what earlier builds have left in the packages."""
    for name in (*BESIDE, "MANIFEST.in"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, directory / name)
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, directory / name)


def wheel(directory: Path) -> Path:
    """Build a wheel in *directory*, which must not exist, and return its path.

    setuptools compiles only what is newer than the results of scripts/core.
    """
    copy = directory / "copy"
    copy_sources(copy)
    libraries = (f"{BUILT}/{path.name}" for path in (REPOSITORY / BUILT).glob("lib.*"))
    for name in (f"{GENERATED}/passthrough", *libraries):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("tests"))
    words = ["-W", "ignore", "setup.py", "-q", "bdist_wheel", "--dist-dir", str(directory)]
    environment = {**os.environ, "PASSFS_BUILD": "release"}
    command = [sys.executable, *words]
    subprocess.run(command, cwd=copy, env=environment, timeout=LIMIT_S, check=True)
    (found,) = directory.glob("passfs-*.whl")
    return found
