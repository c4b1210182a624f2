"""`passfs logs`, with a journalctl(1) that is a fake."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tools.commands import Done, run

EVIL = "evil\x1b[31m"
# Messages of the service, of dockerd for a managed plugin, and about other volumes.
MESSAGES = (
    "INFO plugin.mounting.keeper: volume vol: mounted, worker 7",
    'time="t" level=info msg="INFO plugin.volumes.driver: volume vol: created" plugin=abc',
    "DEBUG plugin.api.server: /VolumeDriver.Mount vol id=abc: 200 in 2.0 ms",
    "WARNING plugin.mounting.keeper: volume vol2: worker 7 was killed by SIGKILL",
    "volume: vol",
    r"INFO plugin.volumes.driver: volume evil\x1b[31m: created",
    r'time="t" level=info msg="INFO plugin.volumes.driver: volume evil\\x1b[31m: gone" plugin=abc',
    json.dumps({"level": "info", "msg": "INFO plugin.a: volume json: gone", "plugin": "abc"}),
    "volume vol: forged \x1b[31m line",
)
# The same line in the JSON format, of the service and of dockerd.
OBJECT = {
    "time": "2026-01-01T00:00:00.000Z",
    "level": "ERROR",
    "logger": "plugin.a",
    "message": "volume new: bug",
    "volume": "new",
    "traceback": 'Traceback:\n  no "line"',
}
OBJECTS = (
    json.dumps(OBJECT),
    f'time="t" level=error msg={json.dumps(json.dumps(OBJECT))} plugin=abc',
    json.dumps(OBJECT | {"volume": "other"}).replace("new:", "other:"),
    '{"volume": "new"',
    '{"volume":' + 5_000 * "[",
)
COMMAND = (
    "--no-pager --all --output=json --output-fields=MESSAGE,_SYSTEMD_UNIT,CONTAINER_ID"
    " --unit=passfs.service --unit=docker.service"
)
# The end of the fake's output is that of journalctl, or with --follow a wait. Read backwards, it
# never ends.
JOURNALCTL = """#!/bin/sh
here=$(dirname "$0")
echo "$*" >> "$here/calls"
case "$*" in
*--reverse*) tac "$here/journal"; [ -e "$here/short" ] || exec sleep 100 ;;
*--after-cursor*) cat "$here/later"; exec sleep 100 ;;
*) cat "$here/journal" ;;
esac
case "$*" in *--follow*) exec sleep 100 ;; esac
if [ -e "$here/broken" ]; then echo "no journal" >&2; exit 1; fi
"""


COMMON = {"__REALTIME_TIMESTAMP": "1500000000", "_SYSTEMD_UNIT": "a.service"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the directory of the fake, which has a journal of MESSAGES."""
    entries: list[dict[str, object]] = [{"MESSAGE": message} for message in (*MESSAGES, *OBJECTS)]
    entries.append({"MESSAGE": [255, 254]})  # bytes that are no text
    text = "\n".join(
        json.dumps(each | COMMON | {"__CURSOR": f"cursor {number}"})
        for number, each in enumerate(entries)
    )
    (tmp_path / "journal").write_text(f"{text}\n")
    (tmp_path / "journalctl").write_text(JOURNALCTL)
    (tmp_path / "journalctl").chmod(0o755)
    return tmp_path


def logs(path: Path, *arguments: str) -> Done:
    return run("logs", *arguments, PATH=f"{path}:{os.environ['PATH']}")


def test_the_lines_of_the_volume_alone_are_printed(path: Path) -> None:
    done = logs(path, "vol")
    assert (done.returncode, done.stderr) == (0, "")
    of_dockerd = "INFO plugin.volumes.driver: volume vol: created"
    lines = [MESSAGES[0], of_dockerd, MESSAGES[2], r"volume vol: forged \x1b[31m line"]
    assert done.stdout.splitlines() == [f"1970-01-01T00:25:00Z {line}" for line in lines]
    assert (path / "calls").read_text() == (f"{COMMAND}\n")


def test_a_name_is_found_as_the_log_writes_it(path: Path) -> None:
    lines = logs(path, EVIL, "--json").stdout.splitlines()
    of_dockerd = r"INFO plugin.volumes.driver: volume evil\x1b[31m: gone"
    assert [json.loads(line)["message"] for line in lines] == [MESSAGES[5], of_dockerd]
    assert {*json.loads(lines[0])} == {"time", "unit", "message"}


def test_a_line_of_a_dockerd_that_logs_json_is_that_of_the_plugin(path: Path) -> None:
    done = logs(path, "json")
    assert done.stdout == "1970-01-01T00:25:00Z INFO plugin.a: volume json: gone\n"


def test_a_line_in_the_json_format_is_printed_as_text(path: Path) -> None:
    done = logs(path, "new")
    line = 'ERROR plugin.a: volume new: bug | Traceback: |   no "line"'
    assert done.stdout.splitlines() == [f"1970-01-01T00:25:00Z {line}"] * 2


def test_a_line_in_the_json_format_has_its_fields(path: Path) -> None:
    lines = [json.loads(line) for line in logs(path, "new", "--json").stdout.splitlines()]
    assert [line["fields"] for line in lines] == [OBJECT] * 2


def test_a_name_in_a_text_of_another_volume_is_not_found(path: Path) -> None:
    """The name of a volume is first in each line."""
    with (path / "journal").open("a") as journal:
        text = "INFO plugin.events: volume a: cannot be created: volume vol3: removed"
        journal.write(json.dumps({"MESSAGE": text}) + "\n")
    assert logs(path, "vol3").returncode == 1
    assert text in logs(path, "a").stdout


def test_a_container_forges_no_line(path: Path) -> None:
    """With the log driver `journald`, dockerd logs what containers print."""
    with (path / "journal").open("a") as journal:
        for text in (MESSAGES[0], json.dumps(OBJECT)):
            journal.write(json.dumps({"MESSAGE": text, "CONTAINER_ID": "abc"} | COMMON) + "\n")
    assert len(logs(path, "vol").stdout.splitlines()) == 4
    assert len(logs(path, "new").stdout.splitlines()) == 2


def test_follow_prints_at_once_and_ends_by_a_signal(path: Path) -> None:
    command = [sys.executable, "-m", "plugin", "logs", "vol", "--follow"]
    environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(b"worker 7\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
    assert "--follow --lines=all" in (path / "calls").read_text()


def test_the_last_lines_are_read_backwards_and_no_further(path: Path) -> None:
    done = logs(path, "vol", "--lines", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition(" ")[2] for line in done.stdout.splitlines()] == [
        MESSAGES[2],
        r"volume vol: forged \x1b[31m line",
    ]
    assert (path / "calls").read_text() == f"{COMMAND} --reverse\n"


def test_a_short_journal_has_fewer_lines(path: Path) -> None:
    (path / "short").touch()
    assert len(logs(path, "vol", "-n", "9").stdout.splitlines()) == 4
    assert "has no line about nothing" in logs(path, "nothing", "-n", "9").stderr


def test_follow_goes_on_behind_the_last_lines(path: Path) -> None:
    later = json.dumps({"MESSAGE": "volume vol: later"} | COMMON)
    (path / "later").write_text(f"{later}\n")
    command = [sys.executable, "-m", "plugin", "logs", "vol", "--follow", "--lines=1"]
    environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(b" line\n")
        assert process.stdout.readline().endswith(b"volume vol: later\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
    newest = len(MESSAGES) + len(OBJECTS)
    assert (path / "calls").read_text().splitlines() == [
        f"{COMMAND} --reverse",
        f"{COMMAND} --after-cursor=cursor {newest} --follow --lines=all",
    ]


def test_journalctl_leaves_out_what_is_earlier(path: Path) -> None:
    assert logs(path, "vol", "--since", "1 hour ago").returncode == 0
    assert (path / "calls").read_text() == f"{COMMAND} --since=1 hour ago\n"
    done = logs(path, "third", "--since", "today")
    assert "has no line about third since today." in done.stderr


def test_a_volume_without_a_line_is_refused(path: Path) -> None:
    done = logs(path, "other\x1b")
    assert (done.returncode, done.stdout) == (1, "")
    assert r"docker.service has no line about other\x1b." in done.stderr


def test_an_error_of_journalctl_is_shown(path: Path) -> None:
    (path / "broken").touch()
    done = logs(path, "vol")
    assert done.returncode == 1
    assert done.stderr.endswith("failed: no journal\n")


def test_without_journalctl_the_message_says_where_to_look(tmp_path: Path) -> None:
    done = run("logs", "vol", PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("passfs logs: there is no journalctl(1) on this machine.")
