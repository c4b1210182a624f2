"""`passfs set`, beside a plugin that runs as a process: its effect on mounts, and its output."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from passthrough.worker import live
from tests.support.fakes.service_manager import ServiceManager
from tests.support.tools.commands import passfs, printed, processes_of
from tests.support.tools.processes import wait_until
from tests.support.tools.service import Service, started

pytestmark = pytest.mark.full

SESSIONS = pytest.mark.parametrize("session", ["kernel", "libfuse"])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with started(tmp_path_factory.mktemp("changes")) as service:
        yield service


@contextmanager
def volume(service: Service, **options: str) -> Iterator[None]:
    """Have a volume `vol` with a directory of its own, which has `file`, during the block."""
    assert service.call("VolumeDriver.Create", Name="vol", Opts=options) == {}
    (service.directory / "data" / "volumes" / "vol" / "file").touch()
    try:
        yield
    finally:
        for _ in range(status(service)["references"]):
            service.call("VolumeDriver.Unmount", Name="vol", ID="i")
        assert service.call("VolumeDriver.Remove", Name="vol") == {}


@contextmanager
def mounted(service: Service, **options: str) -> Iterator[None]:
    """Have `vol` mounted during the block."""
    with volume(service, **options):
        mount(service)
        yield


def mount(service: Service) -> None:
    assert "Mountpoint" in service.call("VolumeDriver.Mount", Name="vol", ID="i")


def unmount(service: Service) -> None:
    assert service.call("VolumeDriver.Unmount", Name="vol", ID="i") == {}


def status(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = service.call("VolumeDriver.Get", Name="vol")["Volume"]["Status"]
    return found


def change(service: Service, *arguments: str) -> list[tuple[str, str, str, str]]:
    """Change options of `vol`; return the differences that the command shows."""
    shown = json.loads(printed(service, "set", "vol", *arguments, "--json"))
    return [tuple(each.values()) for each in shown["changes"]]


def refusal(service: Service, *arguments: str) -> str:
    """Return the reason why the command refuses, which changes nothing."""
    before = service.call("VolumeDriver.List")
    done = passfs(service, "set", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert service.call("VolumeDriver.List") == before
    return done.stderr.removeprefix("passfs set: ").removesuffix("\n")


def is_remembered(service: Service) -> bool:
    """Return whether the kernel goes on with attributes that the host has changed meanwhile."""
    (beneath,) = service.directory.glob("data/volumes/vol/file")
    with (service.directory / "mounts" / "vol" / "file").open() as file:
        os.fstat(file.fileno())
        beneath.touch()  # the kernel asks once more what it has got before the change
        before = os.stat(file.fileno()).st_mode
        beneath.chmod(before ^ 0o111)
        return os.fstat(file.fileno()).st_mode == before


# Timeouts


@SESSIONS
def test_a_timeout_changes_at_once_in_a_mount(service: Service, session: str) -> None:
    with mounted(service, session=session, cache="never"):
        assert not is_remembered(service)
        assert change(service, "attr_timeout=1h") == [
            ("attr_timeout", "0s", "3600s", "now"),
            ("dir_attr_timeout", "0s", "3600s", "now"),
        ]
        assert is_remembered(service)
        assert status(service)["options"]["attr_timeout"] == "3600s"
        assert "next_mount" not in status(service)
        change(service, "--unset", "attr_timeout")
        assert not is_remembered(service)


def test_a_worker_that_follows_a_killed_one_has_the_changed_timeout(service: Service) -> None:
    with mounted(service, cache="never"):
        wait_until(lambda: len(processes_of(service, "vol")) == 3)
        change(service, "attr_timeout=1h")
        before = status(service)["worker_pid"]
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: status(service)["worker_pid"] != before)
        assert is_remembered(service)
        change(service, "attr_timeout=0")
        assert not is_remembered(service)


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
@pytest.mark.parametrize("program", ["", "another"], ids=["restart", "upgrade"])
def test_a_plugin_that_follows_has_the_changed_timeout(
    tmp_path: Path, manager: ServiceManager, end: signal.Signals, program: str
) -> None:
    """After an upgrade, another program serves the mount."""
    with started(tmp_path, manager) as service, mounted(service, cache="never"):
        change(service, "attr_timeout=1h", "readonly")
        service.end(end)
        if program:
            service.environment["PROGRAM"] = program
        service.start()
        wait_until(lambda: "program" not in status(service))
        assert is_remembered(service)
        assert status(service)["next_mount"] == {"readonly": "true"}
        change(service, "attr_timeout=0")
        assert not is_remembered(service)
        service.end(end)
        service.start()
        assert not is_remembered(service)


def test_a_mount_of_an_older_program_goes_on_with_the_timeouts_of_before(
    tmp_path: Path, manager: ServiceManager
) -> None:
    with started(tmp_path, manager) as service, mounted(service, cache="never"):
        os.pwrite(manager.stored["control1"], b"\0", live.VERSION_AT)
        shown = json.loads(printed(service, "set", "vol", "attr_timeout=1h", "--json"))
        assert {each["when"] for each in shown["changes"]} == {"next mount"}
        assert "an older program serves the mount" in shown["notes"][-1]
        assert not is_remembered(service)
        unmount(service)
        mount(service)
        assert is_remembered(service)


# Other options


@SESSIONS
def test_other_options_change_at_the_next_mount(service: Service, session: str) -> None:
    file = service.directory / "mounts" / "vol" / "file"
    with mounted(service, session=session):
        assert change(service, "readonly=true") == [("readonly", "false", "true", "next mount")]
        file.write_text("still writable")
        assert status(service)["options"]["readonly"] == "false"
        assert status(service)["next_mount"] == {"readonly": "true"}
        lines = printed(service, "status", "vol").splitlines()
        assert lines[lines.index("Options of the next mount that differ:") + 1] == "readonly  true"
        mount(service)  # one more container: the mount goes on
        file.write_text("still writable")
        unmount(service)
        unmount(service)
        mount(service)
        with pytest.raises(OSError, match="Read-only"):
            file.write_text("refused")
        assert "next_mount" not in status(service)


def test_a_policy_changes_later_than_the_timeouts_that_are_given(service: Service) -> None:
    with mounted(service):
        found = change(service, "cache=always", "negative_timeout=2s")
        assert found == [
            ("negative_timeout", "1s", "2s", "now"),
            ("cache", "auto", "always", "next mount"),
            *(
                (f"{name}_timeout", "1s", "86400s", "next mount")
                for name in ("entry", "attr", "dir_entry", "dir_attr")
            ),
        ]
        # Without its own value it follows the policy: that of the mount, and that of the next one.
        assert change(service, "--unset", "negative_timeout") == [
            ("negative_timeout", "2s", "1s", "now"),
            ("negative_timeout", "2s", "86400s", "next mount"),
        ]
        assert change(service, "cache=auto")[0] == ("cache", "always", "auto", "next mount")
        assert "next_mount" not in status(service)


def test_a_volume_that_is_not_mounted(service: Service) -> None:
    with volume(service, ro="", cache="never"):
        assert change(service, "rw", "attr-timeout=3s") == [
            ("attr_timeout", "0s", "3s", "next mount"),
            ("dir_attr_timeout", "0s", "3s", "next mount"),
            ("readonly", "true", "false", "next mount"),
        ]
        assert change(service, "readonly=no") == []
        mount(service)
        assert status(service)["options"]["readonly"] == "false"


def test_a_dry_run_changes_nothing(service: Service) -> None:
    with mounted(service, cache="never"):
        before = status(service)
        shown = change(service, "attr_timeout=1h", "readonly", "--dry-run")
        assert [each[3] for each in shown] == ["now", "now", "next mount"]
        assert status(service) == before
        assert not is_remembered(service)
        assert change(service, "attr_timeout=1h", "readonly") == shown


def test_the_output_is_a_table_with_notes(service: Service) -> None:
    with mounted(service):
        lines = printed(service, "set", "vol", "attr_timeout=2", "xattr=false").splitlines()
        assert [line.split() for line in lines[:6]] == [
            ["vol:"],
            ["OPTION", "BEFORE", "AFTER", "WHEN"],
            ["attr_timeout", "1s", "2s", "now"],
            ["dir_attr_timeout", "1s", "2s", "now"],
            ["xattr", "true", "false", "next", "mount"],
            ["posix_acl", "true", "false", "next", "mount"],
        ]
        assert [line.split()[0] for line in lines[6:] if line] == ["note", "note"]
        told = "volume vol: option xattr changes from true to false, next mount"
        assert told in service.log.read_text()
        unchanged = printed(service, "set", "vol", "xattr=false").splitlines()
        assert unchanged == ["volume  vol", "set     no option changes"]


def test_create_compares_with_the_options_that_were_set(service: Service) -> None:
    """An engine that has forgotten the volume may create it again."""
    with volume(service, cache="never"):
        change(service, "cache=auto")
        again = service.call("VolumeDriver.Create", Name="vol", Opts={"cache": "never"})
        assert "exists with other options: cache is 'auto' and 'never' was asked" in again["Err"]
        assert service.call("VolumeDriver.Create", Name="vol", Opts={"cache": "auto"}) == {}


# Refusals


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("none", "attr_timeout=1"), "no such volume: 'none'."),
        (("vol",), "no option is given. Name at least one: KEY=VALUE, or --unset KEY."),
        (("vol", "attr_timeout=1", "attr_timeout=2"), "option 'attr_timeout' is given twice."),
        (("vol", "readonly", "--unset", "ro"), "option 'ro': is given twice, also as 'readonly';"),
        (("vol", "attr_timeout=soon"), "option 'attr_timeout': 'soon' is not accepted; expected"),
        (("vol", "atr_timeout=1"), "option 'atr_timeout': is not known, given here as '1';"),
        (("vol", "--unset", "atr_timeout"), "option 'atr_timeout': is not known; expected attr_"),
        (("vol", "source=/srv"), "option 'source': cannot change: it says which files the volume"),
        (("vol", "--unset", "subpath"), "option 'subpath': cannot change: it says which files"),
        (("vol", "log_level=all"), "option 'log_level': 'all' is not accepted; expected auto, de"),
        (("vol", "mode=0700"), "option 'mode': cannot change: it counts only when the directory"),
        (
            ("vol", "passthrough=on", "writeback"),
            "option 'passthrough': 'on' cannot",
        ),
    ],
)
def test_a_refusal_changes_nothing(
    service: Service, arguments: tuple[str, ...], reason: str
) -> None:
    with volume(service):
        assert refusal(service, *arguments).startswith(reason)


def test_a_word_that_is_no_utf8_is_refused(service: Service) -> None:
    with volume(service):
        assert refusal(service, "vol", "fsname=\udcff") == "a word of the command is not UTF-8."


def test_a_source_that_is_missing_is_refused(service: Service, tmp_path: Path) -> None:
    """Also with `create`: only a new volume makes its source."""
    source = tmp_path / "source"
    options = {"source": str(source), "create": "true"}
    assert service.call("VolumeDriver.Create", Name="other", Opts=options) == {}
    source.rmdir()
    assert "does not exist" in refusal(service, "other", "readonly")
    assert not source.exists()
    service.call("VolumeDriver.Remove", Name="other")


def test_an_owner_has_to_fit_the_volumes_own_directory(service: Service) -> None:
    """Otherwise the next Mount would fail."""
    directory = service.directory / "data" / "volumes" / "vol"
    with volume(service):
        assert "would let any user of a container act as root" in refusal(
            service, "vol", "owner=33"
        )
        os.chown(directory, 33, 33)
        assert ("owner", "none", "33:33", "next mount") in change(service, "owner=33")
        mount(service)
        unmount(service)
        os.chown(directory, 0, 0)
        done = passfs(service, "check", "vol")
        assert done.returncode == 1
        assert "would let any user of a container act as root" in done.stdout
