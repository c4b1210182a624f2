""".ci/run: it removes what it has set up, and keeps an existing plugin and volume."""

import os
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / ".ci" / "run"

# The files `plugin` and `volume` are the state of the engine. `make up` makes both.
DOCKER = """#!/bin/sh
case "$1 $2" in
    "plugin inspect") [ -e plugin ] && echo "$PWD/elsewhere" ;;
    "volume inspect") [ -e volume ] ;;
    "volume rm") rm volume && rm -r "$PWD"/*/volumes/demo ;;
esac
"""
MAKE = """#!/bin/sh
[ "$1" = up ] || exit "$TEST_STATUS"
[ ! -e fails ] || exit 2
data=elsewhere
[ -e plugin ] || data=default
mkdir -p "$data/volumes/demo"
touch plugin volume
"""
PASSFS = """#!/bin/sh
[ "$1" = uninstall ] && rm plugin
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for path, text in (
        (".ci/run", RUN.read_text().replace("/var/lib/passfs", str(tmp_path / "default"))),
        ("bin/docker", DOCKER),
        ("bin/make", MAKE),
        (".venv/bin/passfs", PASSFS),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)
    return tmp_path


def run(checkout: Path, status: int = 0) -> int:
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "TEST_STATUS": str(status)}
    return subprocess.run([checkout / ".ci" / "run"], env=environment, check=False).returncode


def left(checkout: Path) -> set[str]:
    state = {name for name in ("plugin", "volume") if (checkout / name).exists()}
    return state | {path.parts[-3] for path in checkout.glob("*/volumes/demo")}


@pytest.mark.parametrize("status", [0, 3])
def test_the_plugin_and_volume_of_make_up_are_removed(checkout: Path, status: int) -> None:
    assert bool(run(checkout, status)) == bool(status)
    assert left(checkout) == set()


@pytest.mark.parametrize(
    "before",
    [
        {"plugin"},
        {"plugin", "volume", "elsewhere"},
        {"plugin", "elsewhere"},
        {"volume", "default"},
        {"default"},
    ],
    ids=" ".join,
)
def test_an_existing_plugin_and_volume_are_kept(checkout: Path, before: set[str]) -> None:
    for name in before & {"plugin", "volume"}:
        (checkout / name).touch()
    for name in before & {"default", "elsewhere"}:
        (checkout / name / "volumes" / "demo").mkdir(parents=True)
    assert run(checkout) == 0
    assert left(checkout) >= before
    assert ("plugin" in left(checkout)) == ("plugin" in before)


def test_the_status_of_a_failed_make_up_is_returned(checkout: Path) -> None:
    (checkout / "fails").touch()
    assert run(checkout) == 2
    assert left(checkout) == set()
