"""Every command of the README, as it is printed but for names and places."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tools.driver import INSTALL_S, TRUST, Driver, passfs

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh( foreground)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text())
COMMANDS = [commands for foreground, commands in BLOCKS if not foreground]
FOREGROUND = [commands for foreground, commands in BLOCKS if foreground]
PLUGIN = "passfs-readme"


def test_make_has_the_two_targets() -> None:
    """`make up` and `make test` themselves are what .ci/run runs."""
    ci = (ROOT / ".ci" / "run").read_text()
    targets = [line.split()[1] for line in COMMANDS[0].splitlines()]

    assert targets == ["up", "test"]
    assert [target for target in targets if f"make {target}" not in ci] == []


@pytest.mark.parametrize("driver", ["host"], indirect=True)
@pytest.mark.parametrize("commands", COMMANDS[1:], ids=lambda text: text.split("\n")[0][:30])
def test_commands(driver: Driver, commands: str, source: Path) -> None:
    """Each block runs as one script, and no command in it may fail."""
    script = _here(commands, driver, source)
    if "passfs install" in commands:  # which is for a plugin that `make up` has installed
        passfs("install", "--name", PLUGIN, "--data-dir", str(source.parent / "data"), *TRUST)
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )
    finally:
        for volume in driver.client.volumes.list(filters={"driver": driver.name}):
            driver.client.api.remove_volume(volume.name)

    assert done.returncode == 0, script + done.stdout + done.stderr
    assert "Building" not in done.stdout, "a setting needs no new image"


@pytest.mark.parametrize("command", FOREGROUND)
def test_foreground_commands_serve_until_interrupted(command: str, tmp_path: Path) -> None:
    source, mountpoint = tmp_path / "source", tmp_path / "mountpoint"
    source.mkdir()
    (source / "file").write_text("served")
    mountpoint.mkdir()
    command = command.replace("/srv/app", str(source)).replace("/mnt", str(mountpoint))
    process = subprocess.Popen(
        command.replace(".venv/bin/python", sys.executable).split(), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline().startswith(b"serving")
        assert (mountpoint / "file").read_text() == "served"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert not os.path.ismount(mountpoint)


def _here(commands: str, driver: Driver, source: Path) -> str:
    for printed, used in (
        ("/srv/app", str(source)),
        ("-d passfs", f"-d {driver.name}"),
        ("/var/lib/passfs", str(driver.data_dir)),
        (".venv/bin/passfs install", f"{sys.executable} -m plugin install --name {PLUGIN}"),
        (".venv/bin/passfs uninstall", f"{sys.executable} -m plugin uninstall --name {PLUGIN}"),
        (" demo", " readme-demo"),
        (" -v demo", " -v readme-demo"),
        ("volumes/demo", "volumes/readme-demo"),
        (" app\n", " readme-app\n"),
        (" -v app", " -v readme-app"),
    ):
        commands = commands.replace(printed, used)
    return commands
