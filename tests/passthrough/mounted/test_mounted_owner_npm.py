"""owner: npm packs and installs a package, as on a bare directory of the given user."""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.passthrough.mounted.test_mounted_owner import HOST, SESSIONS, volume
from tests.support.tools.callers import OTHER, ROOT, USER, Caller
from tests.support.tools.files import owner, public_directory

pytestmark = pytest.mark.slow

LIMIT_S = 60.0  # of a command; npm takes 5 s on a busy machine
Tree: TypeAlias = dict[str, tuple[str, tuple[int, int], bytes]]

PACKAGE = {
    "name": "dep",
    "version": "1.0.0",
    "bin": {"sample": "sample.js"},
    "scripts": {"install": "node install.js"},
}
PROGRAM = """#!/usr/bin/env node
console.log(require('fs').readFileSync(`${__dirname}/built`, 'utf8'))
"""
INSTALL = "require('fs').writeFileSync('built', 'works')\n"


def use(top: Path, caller: Caller, home: Path) -> tuple[str, Tree]:
    """Pack and install a package in *top* as *caller*; return its program's output, and all files.

    npm keeps its cache and its log in the directory *home*, which belongs to the caller.
    """
    caller.run(lambda: write_packages(top))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "npm_config_cache": str(home / "cache"),
        "npm_config_globalconfig": os.devnull,
        "npm_config_offline": "true",
        "npm_config_audit": "false",
        "npm_config_update_notifier": "false",
    }

    def run(*command: str) -> str:
        done = subprocess.run(
            command,
            cwd=top / "app",
            env=environment,
            user=caller.uid,
            group=caller.gid,
            extra_groups=[],
            umask=0o022,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("npm", "pack", "../dep")
    run("npm", "install", "--offline", "./dep-1.0.0.tgz")
    return run("node_modules/.bin/sample"), tree(top)


def write_packages(top: Path) -> None:
    """Write the sources of the package `dep`, and an application without dependencies."""
    top.mkdir()
    (top / "app").mkdir()
    (top / "app" / "package.json").write_text(json.dumps({"name": "app", "version": "1.0.0"}))
    (top / "dep").mkdir()
    (top / "dep" / "package.json").write_text(json.dumps(PACKAGE))
    (top / "dep" / "sample.js").write_text(PROGRAM)
    (top / "dep" / "install.js").write_text(INSTALL)


def tree(top: Path) -> Tree:
    """Return mode, owner, and content or target of each file."""
    return {
        str(path.relative_to(top)): (stat.filemode(path.lstat().st_mode), owner(path), held(path))
        for path in top.rglob("*")
    }


def held(path: Path) -> bytes:
    if path.is_symlink():
        return os.fsencode(path.readlink())
    return b"" if path.is_dir() else path.read_bytes()


def home_of(caller: Caller, base: Path) -> Path:
    home = base / "home"
    home.mkdir()
    os.chown(home, caller.uid, caller.gid)
    return home


@pytest.fixture(scope="module")
def bare() -> Iterator[tuple[str, Tree]]:
    """The output and the files on a bare directory of the given user."""
    with public_directory() as base:
        (base / "own").mkdir()
        os.chown(base / "own", USER.uid, USER.gid)
        yield use(base / "own" / "top", USER, home_of(USER, base))


def test_the_package_has_a_program_and_the_result_of_its_script(bare: tuple[str, Tree]) -> None:
    output, files = bare
    assert output == "works\n"
    assert files["app/node_modules/.bin/sample"][2] == b"../dep/sample.js"
    assert files["app/node_modules/dep/built"][2] == b"works"


@pytest.mark.parametrize("caller", [USER, ROOT, OTHER], ids=lambda caller: caller.name)
def test_npm_works_as_on_a_bare_directory(bare: tuple[str, Tree], caller: Caller) -> None:
    with volume(SESSIONS["kernel"]) as served:
        home = home_of(caller, served.source.parent)

        assert use(served.mountpoint / "top", caller, home) == bare
        assert {owner(path) for path in served.source.rglob("*")} == {(HOST.uid, HOST.gid)}
