"""The work of threads on the tables, under ThreadSanitizer and AddressSanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
from tests.passthrough.native.probe_stress import stress
from tests.passthrough.native.probe_tables import Probe
for budget in (1 << 40, 5000, 0):
    probe = Probe(budget=budget, handle_bytes=24)
    assert stress(probe.fd, 4, 100_000) == 0
    probe.recover()
    assert probe.live() == [1]
"""
LIBRARIES = {"threads": ["libtsan.so"], "sanitize": ["libasan.so", "libubsan.so"]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIBRARIES)
def test_threads_find_no_race_and_no_wrong_access(kind: str, tmp_path: Path) -> None:
    for name in ("passthrough/native", "tests/passthrough/native"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "scripts/native"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "passthrough/__init__.py").touch()
    build = [sys.executable, "scripts/native", "memory", "tables", "stress"]
    environment = os.environ | {"PASSFS_BUILD": kind, "PYTHONPATH": str(tmp_path)}
    subprocess.run(build, cwd=tmp_path, env=environment, check=True, capture_output=True)
    environment |= {
        "LD_PRELOAD": " ".join(library(name) for name in LIBRARIES[kind]),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "TSAN_OPTIONS": "exitcode=66",
    }
    # ThreadSanitizer does not start where addresses are too random.
    program = ["setarch", "-R", sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        program, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def library(name: str) -> str:
    command = ["gcc", f"-print-file-name={name}"]
    return str(Path(subprocess.check_output(command, text=True).strip()).resolve())
