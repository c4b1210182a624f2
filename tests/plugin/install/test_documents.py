"""`passfs install` and `passfs uninstall` with --json: a document on standard output."""

import contextlib
import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from plugin.__main__ import app
from plugin.install import engine
from tests.support.fakes.engine import FakeEngine, Install, container


@pytest.fixture(autouse=True)
def _connected(docker: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "connect", lambda: contextlib.nullcontext(docker))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def installed(install: Install, *arguments: str) -> Any:
    """Return the document of an install of the small source tree."""
    given = ("--tree", str(install.tree), "--data-dir", str(install.data_dir))
    result = run("install", *given, "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_document_of_an_install_has_what_was_done(docker: FakeEngine, install: Install) -> None:
    first = installed(install)
    assert first == {"plugin": "passfs", "done": "created", "settings": first["settings"]}
    assert installed(install)["done"] == "nothing"
    assert installed(install, "--log-level", "debug")["done"] == "configured"
    docker.plugins["passfs"]["Enabled"] = False
    assert installed(install)["done"] == "enabled"
    install.change_sources()
    assert installed(install)["done"] == "replaced"


def test_the_document_of_an_install_has_the_settings_in_force(
    docker: FakeEngine, install: Install
) -> None:
    for arguments in ((), ("--log-level", "debug"), ()):
        settings = installed(install, *arguments)["settings"]
        assert settings["data.source"] == str(install.data_dir)
        assert settings.items() <= docker.settings().items()
    assert settings["PASSFS_LOG_LEVEL"] == "debug"


def test_the_document_of_an_uninstall_names_the_data_directory(install: Install) -> None:
    install()
    result = run("uninstall", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"plugin": "passfs", "data_dir": str(install.data_dir)}


def test_the_steps_go_to_standard_error(install: Install) -> None:
    result = run("install", "--tree", str(install.tree), "--json")
    assert "Creating the plugin passfs" in result.stderr
    result = run("uninstall", "--json")
    assert result.stderr.startswith("1. Removing the plugin passfs\n")


def test_without_json_the_steps_are_the_output(install: Install) -> None:
    install()
    result = run("uninstall")
    assert result.stdout.startswith("1. Removing the plugin passfs\n")
    assert result.stderr == ""


@pytest.mark.parametrize("arguments", [("install", "--name", "a b"), ("uninstall",)])
def test_a_refusal_has_no_document(
    docker: FakeEngine, install: Install, arguments: tuple[str, ...]
) -> None:
    install()
    docker.running = [container("web", "passfs:latest")]
    result = run(*arguments, "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"passfs {arguments[0]}: ")
