"""The start of the plugin, which its engine waits for: the modules that it loads, and the time."""

import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.fakes.dockerd import settings
from tests.support.tools.generated import REPOSITORY
from tests.support.tools.starting import STARTS, limit_s, waited_s

pytestmark = pytest.mark.full

# As the script that pip makes from pyproject.toml.
PROGRAM = "from plugin.start import main; main()"
WITH_A_LIST = f"import atexit, sys; atexit.register(lambda: print(*sys.modules)); {PROGRAM}"
ENTRY_POINT = "plugin.start:main"
DEADLINE_S = 60
PAUSE_S = 0.002

LIBRARIES = {
    *("attr", "attrs", "h11", "idna", "msgspec", "outcome", "sniffio", "sortedcontainers", "trio"),
    "typing_extensions",  # msgspec loads it if another package has installed it
}
# Modules that take long to load, and that no request needs.
NEEDLESS = {
    "asyncio",
    "http.client",
    "plugin.__main__",
    "plugin.cli",
    "plugin.commands",
    "plugin.install",
}


@contextmanager
def listening(directory: Path, program: str = PROGRAM) -> Iterator[subprocess.Popen[bytes]]:
    """Start `passfs serve`, wait until it accepts connections, and end it after the block."""
    given = settings(directory)
    environment = os.environ | {
        "PASSFS_SOCKET": str(given.socket),
        "PASSFS_DATA_DIR": str(given.data_dir),
        "PASSFS_MOUNT_DIR": str(given.mount_dir),
    }
    command = [sys.executable, "-c", program, "serve"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
        try:
            wait_until_listening(given.socket, process)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0


def wait_until_listening(path: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(str(path)) == 0:
                return
        time.sleep(PAUSE_S)
    raise AssertionError(f"it does not listen; its status is {process.poll()}")


def test_the_program_begins_at_this_entry_point() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["passfs"] == ENTRY_POINT


def test_the_plugin_loads_only_what_it_serves_with(tmp_path: Path) -> None:
    """A further library needs a row in LIBRARIES, and delays each start."""
    with listening(tmp_path, WITH_A_LIST):
        pass
    loaded = (tmp_path / "log").read_text().splitlines()[-1].split()
    packages = {name.partition(".")[0] for name in loaded if not name.startswith("_")}
    own = {"plugin", "passthrough"}
    assert packages - sys.stdlib_module_names - own <= LIBRARIES
    assert NEEDLESS & {*loaded} == set()


@pytest.mark.alone
def test_the_plugin_listens_within_half_a_second(tmp_path: Path) -> None:
    """By the clock, without the time in which its main thread waited for a processor."""
    for _ in range(STARTS):
        limit = limit_s()
        begun = time.monotonic()
        with listening(tmp_path) as process:
            seconds = time.monotonic() - begun - waited_s(process.pid)
        if seconds < limit:
            return
    pytest.fail(f"the last start took {seconds:.2f} s, and the limit is {limit:.2f} s")
