""".ci/run: what it sets up goes again, and what was here before stays."""

import os
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / ".ci" / "run"

# The engine's state is the files `plugin` and `volume`, and `make up` is what sets both up.
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
def test_what_it_has_set_up_goes_again(checkout: Path, status: int) -> None:
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
def test_what_was_here_before_stays(checkout: Path, before: set[str]) -> None:
    for name in before & {"plugin", "volume"}:
        (checkout / name).touch()
    for name in before & {"default", "elsewhere"}:
        (checkout / name / "volumes" / "demo").mkdir(parents=True)
    assert run(checkout) == 0
    assert left(checkout) >= before
    assert ("plugin" in left(checkout)) == ("plugin" in before)


def test_a_start_that_fails_leaves_its_own_status(checkout: Path) -> None:
    (checkout / "fails").touch()
    assert run(checkout) == 2
    assert left(checkout) == set()
