"""Every command of README.md and docs/options.md runs; only names and paths are replaced.

A comment behind a command of a recipe is what the command prints.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tools.driver import INSTALL_S, TOOLS_IMAGE, TRUST, Driver, passfs

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh( foreground)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCUMENTS = ("README.md", "docs/options.md")
BLOCKS = [block for name in DOCUMENTS for block in BLOCK.findall((ROOT / name).read_text())]
COMMANDS = [commands for foreground, commands in BLOCKS if not foreground]
FOREGROUND = [commands for foreground, commands in BLOCKS if foreground]
PRINTED = re.compile(r"   # (.+)$", re.MULTILINE)
# A name of a volume or container; not a part of a path, except for a volume's own directory.
NAME = re.compile(r"(?<![\w/.-])(demo|app|db|web)(?![\w/.=-])|(?<=/volumes/)demo")
PLUGIN = "passfs-readme"


def test_make_has_the_two_targets() -> None:
    """Look for the targets in .ci/run, which runs them."""
    ci = (ROOT / ".ci" / "run").read_text()
    targets = [line.split()[1] for line in COMMANDS[0].splitlines()]

    assert targets == ["up", "test"]
    assert [target for target in targets if f"make {target}" not in ci] == []


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["host"], indirect=True)
@pytest.mark.parametrize("commands", COMMANDS[1:], ids=lambda text: text.split("\n")[0][:30])
def test_commands(driver: Driver, commands: str, source: Path) -> None:
    """Run each block as one script; no command in it may fail."""
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
            filters = {"volume": volume.name}
            for container in driver.client.containers.list(all=True, filters=filters):
                container.remove(force=True)
            driver.client.api.remove_volume(volume.name)

    assert done.returncode == 0, script + done.stdout + done.stderr
    assert "Building" not in done.stdout, "a setting needs no new image"
    printed = iter(done.stdout.splitlines())
    missing = [text for text in PRINTED.findall(commands) if not any(text in p for p in printed)]
    assert missing == [], done.stdout


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
        ("/srv/shared/web", str(source)),
        ("/srv/app", str(source)),
        ("-d passfs", f"-d {driver.name}"),
        ("/var/lib/passfs", str(driver.data_dir)),
        (".venv/bin/passfs install", f"{sys.executable} -m plugin install --name {PLUGIN}"),
        (".venv/bin/passfs uninstall", f"{sys.executable} -m plugin uninstall --name {PLUGIN}"),
        # The same database by Debian; the image of that name has this working directory.
        ("redis:8", f"--workdir /data {TOOLS_IMAGE}"),
    ):
        commands = commands.replace(printed, used)
    return NAME.sub(r"readme-\g<0>", commands)
