"""The version of passfs: pyproject.toml has the only copy, and users see it."""

import re
from importlib import metadata

from typer.testing import CliRunner

from plugin.__main__ import app
from plugin.install import source_tree
from tests.support.fakes.engine import FakeEngine, Install
from tests.support.tools.generated import REPOSITORY

VERSION = source_tree.version(REPOSITORY)
# Files that users see or install.
FILES = ("Dockerfile", "Makefile", "README.md", "config.json", "setup.py")
DIRECTORIES = ("docs", "packaging", "passthrough", "plugin", "scripts")


def test_no_other_file_has_the_version() -> None:
    files = [REPOSITORY / name for name in FILES]
    for directory in DIRECTORIES:
        files += [path for path in (REPOSITORY / directory).glob("**/*") if path.is_file()]
    literal = re.compile(rb"(?<![\d.])%b(?![\d.])" % re.escape(VERSION.encode()))
    compiled = {".so", ".pyc"}
    copies = {
        str(path.relative_to(REPOSITORY))
        for path in files
        if path.suffix not in compiled and literal.search(path.read_bytes())
    }
    assert copies == set()


def test_the_changelog_begins_with_the_version() -> None:
    headings = re.findall(r"^## ([^ ,]+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == VERSION


def test_the_command_prints_the_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"passfs {metadata.version('passfs')}\n")


def test_the_installed_plugin_has_the_version_in_its_description(
    docker: FakeEngine, install: Install
) -> None:
    """`docker plugin ls` shows the first words of the description."""
    install()
    description = docker.plugins["passfs"]["Config"]["Description"]
    assert description.startswith(f"passfs {VERSION}: volumes that pass ")
