"""The whole harness at a tiny size: every subject runs every line, and nothing is left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from benchmarks import arguments
from benchmarks.plan import BARE
from benchmarks.report import Report
from benchmarks.rounds import LINES
from tests.support.tools.processes import children

pytestmark = pytest.mark.full

REPOSITORY = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "benchmarks")
TINY = ("--size", "0.01", "--rounds", "1", "--seconds", "0")
LIMIT_S = 240.0
# rclone 1.60: without a cache of writes, a file that exists cannot be changed. It answers each call
# of extended attributes with EIO, so `cp -a` fails. Beside other programs it fails elsewhere, too.
FAILING = {
    "rclone": {
        *("random write", "mmap write", "cp -a"),
        *("SQLite, rollback journal", "SQLite, write-ahead log"),
    },
    "rclone/writes": {"cp -a"},
}
MOST_MORE = 2
SVG = "{http://www.w3.org/2000/svg}"


def run(*words: str, limit_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


def stages(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith("passfs-benchmarks-")]


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
def test_every_subject_runs_every_line(tmp_path: Path) -> None:
    json, svg, page = tmp_path / "all.json", tmp_path / "all.svg", tmp_path / "all.md"
    written = ("--json", str(json), "--svg", str(svg), "--page", str(page))

    done = run(*TINY, *written)

    assert done.returncode == 1, done.stderr
    report = msgspec.json.decode(json.read_bytes(), type=Report)
    names = {line.name for line in LINES}
    assert {line.name for line in report.lines} == names
    assert {"bindfs", "bindfs/multithreaded", "mergerfs", "libfuse"} <= set(report.subjects)
    assert {"rclone", "rclone/writes", "sshfs"} <= set(report.subjects)
    assert set(report.subjects) == set(arguments.installed_names())
    more: list[tuple[str, str, str]] = []
    for line in report.lines:
        assert set(line.of) == set(report.subjects)
        failing = {name: figures.failure for name, figures in line.of.items() if figures.failure}
        expected = {name for name, lines in FAILING.items() if line.name in lines}
        assert expected <= failing.keys() <= FAILING.keys(), (line.name, failing)
        more += [(line.name, name, failing[name]) for name in failing.keys() - expected]
        measured = {n: figures for n, figures in line.of.items() if n not in failing}
        assert all(len(figures.samples) == 1 for figures in measured.values())
        assert all(figures.median_s for figures in measured.values())
        counted = {n for n, figures in measured.items() if figures.requests is not None}
        assert counted in (set(), set(measured) - {BARE})
    assert len(more) <= MOST_MORE, more
    for cost in report.costs:
        assert set(report.plan.passfs) <= set(cost.of)
        assert all(amount.value > 0 for amount in cost.of.values())
    shown, drawn = done.stdout, drawn_texts(svg)
    for name in names:
        assert name in shown
        assert name in drawn
        assert f"| {name} |" in page.read_text()
    assert set(report.subjects[1:]) <= drawn
    for cost in report.costs:
        assert cost.name in shown


def drawn_texts(svg: Path) -> set[str]:
    return {element.text or "" for element in ET.parse(svg).iter(f"{SVG}text")}  # noqa: S314


@pytest.mark.slow
def test_options_select_the_measurements_and_from_shows_them_again(tmp_path: Path) -> None:
    """The run uses the caller's directory and the caller's peer, on a loaded machine."""
    json, svg = tmp_path / "some.json", tmp_path / "some.svg"
    peer = "again=bindfs -o attr_timeout=0 {source} {mountpoint}"

    done = run(
        *(*TINY, "--subjects", "bare,libfuse", "--passfs", "strict=cache=never", "--peer", peer),
        *("--lines", "stat*", "--lines", "rm *", "--no-costs", "--busy", "1", "--json", str(json)),
        *("--directory", str(tmp_path), "-o", "atime=noatime,negative_timeout=2s"),
    )
    again = run("--from", str(json), "--svg", str(svg))

    assert done.returncode == 0, done.stderr
    report = msgspec.json.decode(json.read_bytes(), type=Report)
    assert [line.name for line in report.lines] == ["stat cold", "stat warm", "rm -rf"]
    assert report.subjects == ["bare", "libfuse", "strict", "again"]
    shared = {"atime": "noatime", "negative_timeout": "2s"}
    assert report.plan.passfs["strict"].options == {"cache": "never"} | shared
    assert report.costs == []
    assert report.plan.busy == 1
    assert stages(tmp_path) == []
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert {"stat cold", "strict", "again"} <= drawn_texts(svg)


def test_a_line_that_fails_for_a_subject_is_reported_and_fails_the_run() -> None:
    peer = "frozen=bindfs -r {source} {mountpoint}"

    done = run(*TINY, "--subjects", "bare", "--peer", peer, "--lines", "*e", "--no-costs")

    assert done.returncode == 1
    assert "frozen: rename: OSError: [Errno 30] Read-only file system" in done.stderr
    assert "fails" in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--subjects", "nosuch"], "'nosuch' is not known"),
        (["--passfs", "x=session=nosuch"], "'nosuch' is not accepted"),
        (["--passfs", "x"], "NAME=VALUE is expected"),
        (["--peer", "x=bindfs {source}"], "lacks {source} or {mountpoint}"),
        (
            [
                "--subjects",
                "bindfs",
                "--peer",
                "x=sh -c 'echo no use >&2; exit 3' {source} {mountpoint}",
            ],
            "x does not mount: no use",
        ),
        (
            ["--subjects", "bare", "--peer", "x=/nonexistent {source} {mountpoint}"],
            "cannot be started",
        ),
    ],
)
def test_an_unusable_subject_is_an_error(words: list[str], sentence: str) -> None:
    done = run(*TINY, *words)

    assert done.returncode == 2
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("name", "programs"),
    [
        ("bindfs", "bindfs"),
        ("rclone/writes", "rclone"),
        ("sshfs", "sshfs and /usr/lib/openssh/sftp-server"),
    ],
)
def test_a_program_that_is_not_installed_is_named(
    name: str, programs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(shutil, "which", partial(absent, shutil.which))

    with pytest.raises(arguments.ArgumentError, match=f"'{name}' needs {programs}, not installed"):
        arguments.peers([name], [])
    assert name not in arguments.installed_names()


def absent(find: Callable[[str], str | None], name: str) -> str | None:
    """Find no program outside of PATH, as if its package were not installed."""
    return None if name.startswith("/") else find(name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_process_and_no_mount(
    number: signal.Signals, tmp_path: Path
) -> None:
    before = children()
    chosen = ("--subjects", "libfuse,bindfs", "--lines", "stat*", "--directory", str(tmp_path))
    endless = (*TINY, "--rounds", "9999")
    process = subprocess.Popen(
        [*COMMAND, *endless, *chosen],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    with process, process.stderr:
        process.stderr.readline()  # the first round of a subject is over
        mine = of(tmp_path)
        process.send_signal(number)
        process.stderr.read()  # until no process has it open
        status = process.wait()

    assert mine
    assert status == (-number if number == signal.SIGKILL else 130)
    assert stages(tmp_path) == [] or number == signal.SIGKILL
    deadline = time.monotonic() + 10
    while of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert of(tmp_path) == set()
    for orphan in children() - before:  # the kernel killed them, and made this process their parent
        os.waitpid(orphan, 0)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def of(directory: Path) -> set[int]:
    """Return the processes with *directory* in their command line: the servers and the command."""
    found = set()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if os.fsencode(directory) in words and int(name) != os.getpid():
            found.add(int(name))
    return found
