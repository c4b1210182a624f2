"""`passfs bench`, beside a plugin that runs as a process."""

import fcntl
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passthrough.linux import mountinfo
from plugin.commands import bench
from plugin.commands.asking import CommandError, Plugin
from plugin.commands.workloads import WORKLOADS, Site, Workload
from plugin.protocol import BENCH_ID
from tests.support.tools.commands import passfs, printed, run
from tests.support.tools.processes import wait_until
from tests.support.tools.service import Service, started

pytestmark = pytest.mark.full

QUICK = ("--rounds", "2", "--size", "0.02")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("bench")
    (directory / "data").mkdir()
    with started(directory) as service:
        yield service


def made(service: Service, name: str, **options: str) -> Path:
    """Make a volume over a source with one file, and return the source."""
    source = service.directory / name
    source.mkdir()
    os.chown(source, 65534, 65534)  # owner and squash refuse a source of root
    (source / "kept").write_text("kept")
    service.call("VolumeDriver.Create", Name=name, Opts={"source": str(source)} | options)
    return source


def references(service: Service, name: str) -> dict[str, int]:
    found: dict[str, int] = json.loads(printed(service, "status", name, "--json"))["references"]
    return found


def assert_untouched(service: Service, source: Path) -> None:
    """Assert that nothing is left of a measurement: no file, no reference, no mount."""
    assert [path.name for path in source.iterdir()] == ["kept"]
    assert references(service, source.name) == {}
    assert not os.path.ismount(service.directory / "mounts" / source.name)


@pytest.mark.alone
def test_each_workload_has_a_line_and_nothing_is_left(service: Service) -> None:
    source = made(service, "vol")
    result = json.loads(printed(service, "bench", "vol", *QUICK, "--json"))

    assert (result["volume"], result["source"], result["rounds"]) == ("vol", str(source), 2)
    assert [line["workload"] for line in result["lines"]] == [each.name for each in WORKLOADS]
    for line in result["lines"]:
        assert line["refusal"] == ""
        assert 0 < line["source_s"] < 1
        assert line["volume_s"] > line["source_s"] / 20
        # The kernel sends at least a request for each file, and a bare directory needs none.
        if line["workload"] in {"rename", "unlink", "stat, for the first time"}:
            assert line["ratio"] > 1
    assert_untouched(service, source)


def test_the_table_has_the_ratios(service: Service) -> None:
    made(service, "table")
    lines = printed(service, "bench", "table", *QUICK).splitlines()

    header = next(n for n, line in enumerate(lines) if line.startswith("WORKLOAD"))
    assert lines[header].split() == ["WORKLOAD", "UNIT", "SOURCE", "VOLUME", "RATIO"]
    assert len(lines) == header + 1 + len(WORKLOADS)
    assert all(float(line.split()[-1]) > 0 for line in lines[header + 1 :])


def test_a_volume_in_use_stays_mounted(service: Service) -> None:
    made(service, "used")
    service.call("VolumeDriver.Mount", Name="used", ID="container")
    printed(service, "bench", "used", *QUICK)

    assert references(service, "used") == {"container": 1}
    service.call("VolumeDriver.Unmount", Name="used", ID="container")


@pytest.mark.parametrize(
    "options", [{"owner": ""}, {"squash": "all"}, {"cache": "never"}, {"cache": "always"}], ids=str
)
def test_volumes_that_map_users_and_cache_are_measured(
    service: Service, options: dict[str, str]
) -> None:
    name = "-".join([*options, *options.values()])
    source = made(service, name, **options)
    result = json.loads(printed(service, "bench", name, *QUICK, "--json"))

    assert [line["refusal"] for line in result["lines"]] == [""] * len(WORKLOADS)
    assert_untouched(service, source)


def test_a_call_that_the_volume_refuses_has_its_refusal(service: Service) -> None:
    source = made(service, "sealed", seal_size="true")
    result = json.loads(printed(service, "bench", "sealed", *QUICK, "--json"))

    refusals = {line["workload"]: line["refusal"] for line in result["lines"]}
    assert refusals["append 256 bytes"] == "Operation not permitted"
    assert refusals["list with attributes"] == "Operation not permitted"  # of files with content
    assert_untouched(service, source)


def test_a_readonly_volume_is_refused(service: Service) -> None:
    source = made(service, "readonly", readonly="true")
    done = passfs(service, "bench", "readonly", *QUICK)

    assert (done.returncode, done.stdout) == (1, "")
    assert "the volume takes no files of this user" in done.stderr
    assert "Read-only file system" in done.stderr
    assert_untouched(service, source)


def test_a_second_command_is_refused(service: Service) -> None:
    made(service, "second")
    fd = os.open(service.directory / "data", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        done = passfs(service, "bench", "second", *QUICK)
    finally:
        os.close(fd)
    assert done.returncode == 1
    assert "another `passfs bench` runs" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_command_that_is_ended_cleans_up(service: Service, number: int) -> None:
    source = made(service, f"ended-{number}")
    process = running(service, source)
    process.send_signal(number)
    assert process.wait(60) != 0
    assert_untouched(service, source)


@pytest.mark.parametrize("number", [1, 2], ids=["outer", "inner"])
def test_a_signal_right_after_a_directory_is_made_leaves_none(
    service: Service, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    source = made(service, f"after-{number}")
    make, made_ones = os.mkdir, itertools.count(1)

    def make_and_end(name: str, mode: int, *, dir_fd: int) -> None:
        make(name, mode, dir_fd=dir_fd)
        if next(made_ones) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "mkdir", make_and_end)
    with pytest.raises(KeyboardInterrupt):
        bench.bench(Plugin(str(service.directory / "data")), source.name, 1, 0.02, lambda _: None)
    assert_untouched(service, source)


def test_the_reference_of_a_killed_command_is_dropped_by_the_next_one(service: Service) -> None:
    source = made(service, "killed")
    process = running(service, source)
    process.kill()
    process.wait(60)
    assert references(service, "killed") == {BENCH_ID: 1}

    printed(service, "bench", "killed", *QUICK)
    assert references(service, "killed") == {}


def running(service: Service, source: Path) -> "subprocess.Popen[bytes]":
    """Return a command that is measuring."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "plugin", "bench", source.name, "--rounds", "1000"),
            *("--data-dir", str(service.directory / "data")),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: any(len([*path.iterdir()]) for path in source.glob(".passfs-bench-*")))
    return process


def test_a_volume_that_lists_no_files_has_a_refusal(service: Service) -> None:
    service.call("VolumeDriver.Create", Name="unlisted", Opts={"no_readdir": "true"})
    result = json.loads(printed(service, "bench", "unlisted", *QUICK, "--json"))

    refusals = {line["workload"]: line["refusal"] for line in result["lines"]}
    assert refusals.pop("list with attributes") == "the files are not listed"
    assert set(refusals.values()) == {""}


def test_no_plugin_to_ask_is_a_clear_error(tmp_path: Path) -> None:
    done = run("bench", "vol", "--data-dir", str(tmp_path / "missing"))

    assert (done.returncode, done.stdout) == (1, "")
    assert "no plugin listens" in done.stderr


def own(source: Path) -> Path:
    """Return the directory in *source* in which a command is measuring."""
    found = (each for each in source.glob(".passfs-bench-*/*") if not each.is_symlink())
    return max(found, key=lambda path: path.stat().st_ctime_ns)


def devices(source: Path, _: Path) -> None:
    for file in own(source).iterdir():
        os.mknod(own(source) / "new", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (own(source) / "new").rename(file)


def fifos(source: Path, _: Path) -> None:
    for file in own(source).iterdir():
        os.mkfifo(own(source) / "new", 0o666)
        (own(source) / "new").rename(file)


def links(source: Path, victim: Path) -> None:
    for file in own(source).iterdir():
        (own(source) / "new").symlink_to(victim / file.name)
        (own(source) / "new").rename(file)


def hard_links(source: Path, victim: Path) -> None:
    for file in own(source).iterdir():
        (own(source) / "new").hardlink_to(victim / file.name)
        (own(source) / "new").rename(file)


def directories(source: Path, _: Path) -> None:
    for file in own(source).iterdir():
        file.unlink()
        file.mkdir()


def another_directory(source: Path, victim: Path) -> None:
    path = own(source)
    path.rename(source / path.name)
    path.symlink_to(victim)


Attack = Callable[[Path, Path], None]


@pytest.mark.parametrize("way", ["source", "volume"])
@pytest.mark.parametrize(
    ("attack", "refusal"),
    [
        (devices, "Permission denied"),
        (fifos, "No such device or address"),
        (links, "Too many levels of symbolic links"),
        (hard_links, "another program has replaced the file"),
        (directories, "Is a directory"),
        (another_directory, ""),
    ],
)
def test_a_container_that_replaces_files_gains_nothing(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    attack: Attack,
    refusal: str,
    way: str,
) -> None:
    """Its root replaces each file that the command has made, before the command goes on."""

    def attacked(workload: Workload) -> Workload:
        def prepare(at: Site) -> None:
            workload.prepare(at)
            if (os.fstat(at.directory).st_dev == source.stat().st_dev) == (way == "source"):
                attack(source, victim)

        return workload._replace(prepare=prepare)

    # The kernel asks for each name anew, and no option keeps it from opening devices.
    source = made(service, f"{attack.__name__}-{way}", dev="true", cache="never")
    victim = service.directory / f"victim-{source.name}"
    victim.mkdir()
    names = ("f0000", "g0000", "large")
    for name in names:
        (victim / name).write_text(name)
    monkeypatch.setattr(bench, "WORKLOADS", [attacked(each) for each in WORKLOADS])
    result = bench.bench(Plugin(str(service.directory / "data")), source.name, 2, 0.002, print)

    assert {path.name: path.read_text() for path in victim.iterdir()} == {n: n for n in names}
    (line,) = (line for line in result.lines if line.workload == "write 4 KiB at random")
    assert line.refusal == refusal
    assert references(service, source.name) == {}


def test_a_mount_that_the_host_does_not_see_is_refused(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = made(service, "unseen")
    monkeypatch.setattr(mountinfo, "read", list)
    with pytest.raises(CommandError, match="the volume's mount is not visible on this host"):
        bench.bench(Plugin(str(service.directory / "data")), "unseen", 1, 0.002, print)
    assert_untouched(service, source)
