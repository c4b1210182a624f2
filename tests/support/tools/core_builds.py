"""Builds of the compiled modules with sanitizers, each in a copy of the program beside it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "threads": ("libtsan.so",),
    "sanitize": ("libasan.so", "libubsan.so"),
}
"""The kinds of builds, with the libraries that Python needs before any other."""
GENERATED = "build/core/unchecked"
"""The C of all builds without checks of indices, in this checkout."""
_COPIED = (
    *("passthrough", "tests", "setup.py", "pyproject.toml", "README.md", "scripts/core"),
    # The dates are copied, too: a build with the same directives translates no module again.
    GENERATED,
)
_BUILT = shutil.ignore_patterns("*.so", "__pycache__")
CORE = tuple(path.stem for path in (ROOT / "passthrough/core").glob("*.pyx"))
"""The names of all modules that are not of tests."""
BUILD_LIMIT_S = 1200.0
"""For a test that may be the first one to need a build."""


class Build:
    """A build of a kind in the directory *target*, of the modules and probes *names*."""

    def __init__(self, target: Path, kind: str, *names: str) -> None:
        self.kind = kind
        self._target = target
        for name in _COPIED:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, target / name, ignore=_BUILT)
            else:
                shutil.copy2(ROOT / name, target / name)
        environment = os.environ | {"PASSFS_BUILD": kind, "PYTHONPATH": str(target)}
        command = [sys.executable, "scripts/core", f"-j{len(os.sched_getaffinity(0))}", *names]
        subprocess.run(command, cwd=target, env=environment, check=True, capture_output=True)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run Python with *words* on the build."""
        environment = os.environ | {
            "PYTHONPATH": str(self._target),
            "LD_PRELOAD": " ".join(_library(name) for name in LIBRARIES[self.kind]),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
            "TSAN_OPTIONS": "exitcode=66",
        }
        # ThreadSanitizer does not start where addresses are too random.
        command = ["setarch", "-R", sys.executable, *words]
        return subprocess.run(
            command, cwd=self._target, env=environment, check=False, capture_output=True, text=True
        )


def _library(name: str) -> str:
    command = ["gcc", f"-print-file-name={name}"]
    return str(Path(subprocess.check_output(command, text=True).strip()).resolve())
