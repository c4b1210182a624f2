"""`--help` of each command: complete texts, in narrow and in wide terminals."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import benchmarks.__main__
import passthrough.__main__
import plugin.__main__

ROOT = Path(__file__).parents[1]
PROGRAMS = {
    "passthrough": passthrough.__main__.app,
    "plugin": plugin.__main__.app,
    "benchmarks": benchmarks.__main__.app,
}
WIDTHS = ("24", "80", "250")  # columns


def commands() -> list[tuple[str, list[str]]]:
    """Return each program by itself and with each of its subcommands."""
    found: list[tuple[str, list[str]]] = []
    for name, program in PROGRAMS.items():
        subcommands = getattr(typer.main.get_command(program), "commands", {})
        found += [(name, []), *((name, [subcommand]) for subcommand in subcommands)]
    return found


def texts(name: str, arguments: list[str]) -> list[str]:
    """Return the help texts of the command and its options."""
    command = typer.main.get_command(PROGRAMS[name])
    for argument in arguments:
        command = command.commands[argument]  # type: ignore[attr-defined]
    options = [getattr(parameter, "help", None) for parameter in command.params]
    return [text for text in (command.help, *options) if text]


def without_blanks(text: str) -> str:
    """Return *text* without blanks, which depend on the width of the terminal."""
    return "".join(text.split())


def test_the_subcommands_are_found() -> None:
    assert ("plugin", ["install"]) in commands()
    assert "[/var/lib/passfs]" in " ".join(texts("plugin", ["install"]))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("name", "arguments"), commands(), ids=str)
def test_help_shows_every_text(name: str, arguments: list[str], width: str) -> None:
    """Text in brackets is not read as markup, and no text is cut off."""
    result = CliRunner(env={"COLUMNS": width}).invoke(PROGRAMS[name], [*arguments, "--help"])
    assert result.exit_code == 0, result.exception

    shown = without_blanks(result.output)
    assert [text for text in texts(name, arguments) if without_blanks(text) not in shown] == []


def test_the_list_of_subcommands_has_whole_sentences() -> None:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(PROGRAMS["plugin"], ["--help"])

    assert "..." not in result.output.partition("Commands:")[2]


def test_each_command_of_passfs_has_json_but_the_server() -> None:
    program = typer.main.get_command(PROGRAMS["plugin"])
    options = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in program.commands.items()  # type: ignore[attr-defined]
    }
    assert [name for name in options if "--json" not in options[name]] == ["serve"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_python_m_shows_its_help(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", name, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")
