"""`passfs upgrade`, with a systemctl(1) and a plugin that are fakes."""

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from plugin.__main__ import app
from plugin.install import upgrade
from plugin.mounting.program import identity
from tests.support.tools.driver import UNIT

# $1 is the subcommand; the files beside it say what it answers.
SYSTEMCTL = """#!/bin/sh
here=$(dirname "$0")
echo "$*" >> "$here/calls"
case "$*" in
*LoadState*) cat "$here/state" ;;
*FragmentPath*) echo "$here/passfs.service" ;;
*Listen*) echo "$here/p.sock (Stream)" ;;
restart*) if [ -e "$here/broken" ]; then echo "Job failed." >&2; exit 1; fi ;;
esac
"""
OWN = f"{sys.prefix}/bin/passfs"


class Host:
    """A machine with the service, as far as the command sees it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.unit = directory / "passfs.service"
        (directory / "systemctl").write_text(SYSTEMCTL)
        (directory / "systemctl").chmod(0o755)
        (directory / "state").write_text("loaded\n")
        self.unit.write_text(UNIT.read_text())
        self.replies: list[dict[str, Any]] = []
        """What the plugin answers, one after the other; the last one again and again."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "p.sock"))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def calls(self) -> list[str]:
        """The calls of systemctl(1) that change something."""
        lines = (self.directory / "calls").read_text().splitlines()
        return [line for line in lines if not line.startswith("show")]

    def upgrade(self, *arguments: str) -> Result:
        path = f"{self.directory}:{os.environ['PATH']}"
        return CliRunner(env={"PATH": path}).invoke(app, ["upgrade", *arguments])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                request = client.recv(65536)
                assert request.startswith(b"POST /Passfs.Programs HTTP/1.1\r\n")
                answer = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
                body = json.dumps(answer).encode()
                head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
                client.sendall(head + body)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def reply(*volumes: tuple[str, str, float], done: bool = True) -> dict[str, Any]:
    return {
        "Program": identity(),
        "Done": done,
        "Volumes": [
            {"Name": name, "Older": older, "Milliseconds": ms} for name, older, ms in volumes
        ],
    }


def test_the_service_runs_this_program_and_each_volume_has_a_line(host: Host) -> None:
    waiting = ("web", "it is about to be replaced", 0.0)
    host.replies = [
        reply(waiting, ("db", "", 0.0), done=False),
        reply(("web", "", 30.6), ("db", "", 0.0)),
    ]
    result = host.upgrade()
    assert result.exit_code == 0, result.output
    assert host.calls == ["daemon-reload", "restart passfs.service"]
    assert [line.strip() for line in result.output.splitlines()] == [
        f"1. Writing {host.unit}",
        f"the former unit is {host.unit}.old; put settings of your own into drop-ins",
        "2. Restarting passfs.service",
        "3. Waiting until this program serves the volumes",
        "db: has this program already",
        "web: taken over in 31 ms",
        "this program serves all mounted volumes",
    ]
    assert f"\nExecStart={OWN} serve\n" in host.unit.read_text()
    assert Path(f"{host.unit}.old").read_text() == UNIT.read_text()


def test_a_unit_that_is_as_it_should_be_stays(host: Host) -> None:
    host.replies = [reply()]
    assert host.upgrade().exit_code == 0
    Path(f"{host.unit}.old").unlink()
    result = host.upgrade()
    assert "it is as it was" in result.output
    assert not Path(f"{host.unit}.old").exists()


@pytest.mark.parametrize("program", ["passfs", "other"])
def test_the_unit_of_a_package_stays(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """It starts this program, and no source tree is there."""
    monkeypatch.setattr(upgrade, "TREE", tmp_path / "none")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "lib" / "passfs"))
    unit = UNIT.read_text().replace("/opt/passfs/.venv/bin/passfs", f"{sys.prefix}/bin/{program}")
    host.unit.write_text(unit)
    host.replies = [reply()]
    result = host.upgrade()
    if program == "passfs":
        assert (result.exit_code, host.unit.read_text()) == (0, unit)
        assert "it is as it was" in result.output
        assert host.calls == ["daemon-reload", "restart passfs.service"]
    else:
        assert result.exit_code == 1
        assert "--tree takes the directory of a checkout" in result.output


def test_a_volume_that_stays_with_an_older_program_is_an_exit_status(host: Host) -> None:
    host.replies = [reply(("db", "it has no standby", 0.0), ("web", "", 20.0))]
    result = host.upgrade()
    assert result.exit_code == 3
    assert "db: an older program serves on: it has no standby" in result.output
    assert "web: taken over in 20 ms" in result.output


def test_a_volume_that_is_lost_is_an_exit_status(host: Host) -> None:
    host.replies = [reply(("db", "", 0.0))]
    host.replies[0]["Volumes"][0]["Lost"] = "was killed by SIGKILL\x1b[2J"
    result = host.upgrade()
    assert result.exit_code == 3
    assert "db: restart its containers: its worker was killed by SIGKILL\\x1b[2J" in result.output


def test_the_document_has_the_units_and_each_volume(host: Host) -> None:
    host.replies = [reply(("web", "", 30.6), ("db", "", 0.0))]
    result = host.upgrade("--json")
    assert result.exit_code == 0, result.output
    volume = {"older": "", "lost": ""}
    assert json.loads(result.stdout) == {
        "unit": str(host.unit),
        "former_unit": f"{host.unit}.old",
        "complete": True,
        "volumes": [
            volume | {"name": "db", "milliseconds": 0.0},
            volume | {"name": "web", "milliseconds": 30.6},
        ],
    }
    assert "2. Restarting passfs.service" in result.stderr
    assert json.loads(host.upgrade("--json").stdout)["former_unit"] is None


def test_the_document_of_an_upgrade_that_is_not_complete_comes_with_its_exit_status(
    host: Host,
) -> None:
    host.replies = [reply(("db", "it has no standby", 0.0))]
    result = host.upgrade("--json")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert (document["complete"], document["volumes"][0]["older"]) == (False, "it has no standby")
    assert "this program does not serve all mounted volumes" in result.stderr


def test_an_error_has_no_document(host: Host) -> None:
    (host.directory / "broken").touch()
    result = host.upgrade("--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "`systemctl restart passfs.service` failed: Job failed." in result.stderr


def test_without_a_service_the_command_says_what_to_do(host: Host) -> None:
    (host.directory / "state").write_text("not-found\n")
    result = host.upgrade()
    assert result.exit_code == 1
    for words in ("docker plugin upgrade", "docker plugin disable -f", "passfs install"):
        assert words in result.output
    assert host.calls == []


def test_without_systemd_the_command_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(app, ["upgrade"])
    assert result.exit_code == 1
    assert "systemd has no passfs.service on this machine" in result.output


def test_a_service_that_does_not_start_is_an_error(host: Host) -> None:
    (host.directory / "broken").touch()
    result = host.upgrade()
    assert result.exit_code == 1
    assert "`systemctl restart passfs.service` failed: Job failed." in result.output
    assert "journalctl -u passfs" in result.output


def test_a_service_of_another_program_is_an_error(host: Host) -> None:
    host.replies = [reply() | {"Program": "another"}]
    result = host.upgrade()
    assert result.exit_code == 1
    assert "the service runs another program than this one" in result.output


def test_a_plugin_that_does_not_know_the_question_is_an_error(host: Host) -> None:
    host.replies = [{"Err": "no such verb"}]
    result = host.upgrade()
    assert result.exit_code == 1
    assert "does not say which program serves its volumes" in result.output


@pytest.mark.parametrize("done", [True, False])
def test_a_plugin_without_progress_is_an_error(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, done: bool
) -> None:
    """It does not answer, or makes no progress."""
    monkeypatch.setattr(upgrade, "STALLED_S", 0.3)
    host.replies = [reply(("web", "it is about to be replaced", 0.0), done=False)]
    result = host.upgrade(*(["--socket", str(tmp_path / "missing")] if done else []))
    assert result.exit_code == 1
    assert "no progress for 0.3 s" in result.output


def test_a_tree_without_the_unit_is_an_error(host: Host, tmp_path: Path) -> None:
    result = host.upgrade("--tree", str(tmp_path / "none"))
    assert result.exit_code == 1
    assert "--tree takes the directory of a checkout" in result.output
    assert host.calls == []
