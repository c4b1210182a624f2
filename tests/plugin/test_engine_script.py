"""scripts/engine: it starts dockerd, waits until dockerd answers, and says why it does not."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
# The file `answers` says that the engine answers.
DOCKER = """#!/bin/sh
[ -e answers ] && echo 20.10
"""
ENDS = """#!/bin/sh
echo 'level=fatal msg="volume driver not found"'
exit 1
"""
LIVES = """#!/bin/sh
touch answers
exec sleep 60
"""
SOON_S = 20  # the script waits for 60 s while dockerd lives


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copytree(SCRIPTS, tmp_path / "scripts")
    engine = tmp_path / "scripts" / "engine"
    text = engine.read_text().replace("/var/log/", f"{tmp_path}/")
    engine.write_text(text.replace("/run/systemd/system", f"{tmp_path}/no-systemd"))
    (tmp_path / "bin").mkdir()
    return tmp_path


def run(checkout: Path, dockerd: str) -> subprocess.CompletedProcess[str]:
    for name, text in (("docker", DOCKER), ("dockerd", dockerd)):
        (checkout / "bin" / name).write_text(text)
        (checkout / "bin" / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "DOCKER_HOST"}
    environment["PATH"] = f"{checkout / 'bin'}:{environment['PATH']}"
    return subprocess.run(
        ["scripts/engine"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_end_of_dockerd_is_reported_at_once_with_its_log(checkout: Path) -> None:
    began = time.monotonic()
    done = run(checkout, ENDS)
    assert time.monotonic() - began < SOON_S
    assert done.returncode == 1
    assert "dockerd has ended at its start" in done.stderr
    assert "volume driver not found" in done.stderr


def test_a_dockerd_that_answers_goes_on_after_the_script(checkout: Path) -> None:
    begun = LIVES.replace("touch answers", "touch answers; echo $$ > pid")
    done = run(checkout, begun)
    pid = int((checkout / "pid").read_text())
    try:
        assert done.returncode == 0, done.stderr
        assert os.getsid(pid) == pid, "a signal of the terminal would reach it"
    finally:
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # init may have inherited and reaped it
            os.waitpid(pid, 0)
