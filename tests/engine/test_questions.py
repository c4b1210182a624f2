"""The commands of README.md that ask the plugin, against each installation, while a container runs.

`passfs logs` asks the journal instead: tests/plugin/commands/test_journal.py.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.tools.driver import Driver, execute

README = Path(__file__).parents[2] / "README.md"
QUESTIONS = re.findall(r"^\|.*\| `passfs ([^`]+)`", README.read_text(), re.MULTILINE)
QUICK = {"bench": ("--rounds", "1", "--size", "0.01"), "top": ("--count", "1")}
OF_THE_PLUGIN = {"plugin", "mounts on the host", "dead mounts", "volumes", "passfs check"}


def ask(driver: Driver, question: str, volume: str) -> tuple[int, Any]:
    """Run a command; return its exit status and its document."""
    words = question.replace("VOLUME", volume).split()
    command = [sys.executable, "-m", "plugin", *words, *QUICK.get(words[0], ())]
    done = subprocess.run(
        [*command, "--json", "--data-dir", str(driver.data_dir)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr
    return done.returncode, json.loads(done.stdout or "null")


def test_the_readme_has_the_questions() -> None:
    names = {question.split()[0] for question in QUESTIONS}
    assert names == {"ls", "status", "top", "bench", "logs", "check", "doctor", "set", "rm"}


@pytest.mark.slow
def test_each_question_has_an_answer(driver: Driver) -> None:
    with driver.volume() as volume:
        name = str(volume.name)
        answers: dict[str, Any] = {}
        with driver.container(volume) as container:
            execute(container, "echo served > /data/file")
            for question in QUESTIONS:
                command = question.split()[0]
                if command not in {"logs", "rm"}:
                    status, answers[command] = ask(driver, question, name)
                    assert status == 0 or command == "doctor"
            refused, _ = ask(driver, "rm --force VOLUME", name)
            assert refused == 1, "a container uses the volume"
            assert execute(container, "cat /data/file") == "served\n"

    (row,) = [row for row in answers["ls"] if row["name"] == name]
    assert (row["health"], row["users"]) == ("ok", 1)
    assert answers["status"]["name"] == name
    assert name in json.dumps(answers["top"])
    assert name in json.dumps(answers["bench"])
    assert answers["check"] == []
    assert "attr_timeout" in json.dumps(answers["set"])
    found = {each["check"]: each["state"] for each in answers["doctor"]}
    assert {check: found[check] for check in OF_THE_PLUGIN} == dict.fromkeys(OF_THE_PLUGIN, "ok")
