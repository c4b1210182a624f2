"""plugin/driver.py: the nine verbs, as an engine sees them."""
# ruff: noqa: ASYNC240 - calls on local directories, where nothing else wants to run

import os
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from passthrough import running
from passthrough.config import Config, automatic
from plugin.driver import Driver
from plugin.errors import PluginError, RegistryFailed
from plugin.protocol import VolumeRequest
from plugin.registry import Registry
from plugin.server import prepared
from plugin.volume import Record, volume_name
from tests.support.dockerd import Dockerd, mounted, plugin, settings
from tests.support.fake_worker import command
from tests.support.mounts import mounted_on

SERVE = command("serve")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    return directory


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Where the files of volumes without a source lie."""
    return tmp_path / "data" / "volumes"


# Create and Remove.


async def test_a_volume_is_there_after_create_and_after_a_restart(
    tmp_path: Path, source: Path, own: Path
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="own", Opts={"cache": "never"})
        await dockerd.do("Create", Name="theirs", Opts={"source": str(source)})
        before = [await dockerd.volume(name) for name in ("own", "theirs")]
    async with plugin(tmp_path, SERVE) as dockerd:
        assert [await dockerd.volume(name) for name in ("own", "theirs")] == before
        assert await dockerd.names() == {"own", "theirs"}
    assert [path.name for path in own.iterdir()] == ["own"]


async def test_create_is_on_disk_before_it_is_answered(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v")
        content = (tmp_path / "data" / "passfs.db").read_bytes()
        assert not (tmp_path / "data" / "passfs.db-journal").exists()
    assert b"v{}" in content


async def test_the_same_create_again_succeeds(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v", Opts={"cache": "never", "ro": ""})
        await dockerd.do("Create", Name="v", Opts={"cache": "NEVER", "readonly": "true"})
        assert await dockerd.names() == {"v"}


async def test_another_create_of_the_same_name_is_refused_naming_the_difference(
    tmp_path: Path,
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v", Opts={"cache": "never"})
        before = await dockerd.volume("v")
        refused = await dockerd.call("Create", Name="v", Opts={"cache": "always"})
        assert refused.status == 409
        assert refused.error == (
            "volume 'v' exists with other options: cache is 'never' and 'always' was asked for"
        )
        assert await dockerd.volume("v") == before


@pytest.mark.parametrize(
    ("name", "opts", "words"),
    [
        ("a\0b", {}, ["'a\\x00b'", "expected 1 to 1024"]),
        ("v", {"cash": "auto"}, ["option 'cash'", "cache"]),
        ("v", {"cache": "sometimes"}, ["option 'cache'", "'sometimes'", "never, metadata"]),
        (
            "v",
            {"posix_acl": "", "session": "libfuse"},
            ["option 'posix_acl'", "session=libfuse", "DONT_MASK"],
        ),
        ("v", {"mode": "999"}, ["option 'mode'", "'999'", "octal digits"]),
        ("v", {"source": "/srv", "uid": "5"}, ["option 'uid'", "source is there already"]),
        ("v", {"source": "srv"}, ["option 'source'", "'srv'", "absolute path"]),
        ("v", {"source": "/no/such"}, ["option 'source'", "'/no/such'", "does not exist"]),
        ("v", {"source": "/"}, ["option 'source'", "'/'", "contains", "/mounts"]),
        ("v", {"source": "/etc/passwd"}, ["'/etc/passwd' is not a directory"]),
    ],
)
async def test_a_refused_create_stores_nothing(
    tmp_path: Path, own: Path, name: str, opts: dict[str, str], words: list[str]
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        refused = await dockerd.call("Create", Name=name, Opts=opts)
        assert refused.status == 400
        for word in words:
            assert word in refused.error
        assert await dockerd.names() == set()
        assert (await dockerd.call("Get", Name=name)).status == 404
        assert list(own.iterdir()) == []


async def test_a_create_that_cannot_be_recorded_leaves_no_directory(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RegistryFailed("the disk is full")

    async with plugin(tmp_path, SERVE) as dockerd:
        monkeypatch.setattr(Registry, "add", fail)
        assert (await dockerd.call("Create", Name="v")).error == "the disk is full"
        assert list(own.iterdir()) == []
        assert await dockerd.names() == set()


async def test_remove_deletes_the_files_of_a_volume_of_its_own(tmp_path: Path, own: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v")
        (own / "v" / "file").touch()
        await dockerd.do("Remove", Name="v")
        assert list(own.iterdir()) == []
        assert await dockerd.names() == set()
        assert (await dockerd.call("Remove", Name="v")).status == 404
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v")
        assert list((own / "v").iterdir()) == []


async def test_what_was_removed_is_deleted_at_the_next_start_at_the_latest(
    tmp_path: Path,
) -> None:
    trash = tmp_path / "data" / "trash"
    (trash / "left" / "deep").mkdir(parents=True)
    async with plugin(tmp_path, SERVE):
        with trio.fail_after(10):
            while list(trash.iterdir()):
                await trio.lowlevel.checkpoint()


async def test_remove_never_touches_a_source(tmp_path: Path, source: Path) -> None:
    (source / "file").write_text("theirs")
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v", Opts={"source": str(source)})
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Mount", Name="v", ID="a")
        await dockerd.do("Unmount", Name="v", ID="a")
        await dockerd.do("Remove", Name="v")
    assert (source / "file").read_text() == "theirs"


async def test_a_remove_that_cannot_be_recorded_leaves_the_files(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RegistryFailed("the disk is full")

    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v")
        (own / "v" / "file").touch()
        monkeypatch.setattr(Registry, "remove", fail)
        assert (await dockerd.call("Remove", Name="v")).error == "the disk is full"
        assert (own / "v" / "file").exists()
        assert await dockerd.names() == {"v"}


# Mount and Unmount.


async def test_a_container_s_file_lies_in_the_volume_s_directory(tmp_path: Path, own: Path) -> None:
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="v")
        target = Path((await dockerd.do("Mount", Name="v", ID="a"))["Mountpoint"])
        assert target == tmp_path / "mounts" / "v"
        await trio.to_thread.run_sync((target / "file").write_text, "hello")
        assert (own / "v" / "file").read_text() == "hello"
        await dockerd.do("Unmount", Name="v", ID="a")


async def test_the_last_unmount_takes_the_mount_down(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v")
        for mount_id in ("a", "b", "a"):
            await dockerd.do("Mount", Name="v", ID=mount_id)
        for mount_id, left in (("a", 2), ("b", 1), ("b", 1), ("x", 1)):
            await dockerd.do("Unmount", Name="v", ID=mount_id)
            assert await dockerd.references("v") == left
            assert mounted(tmp_path) == ["v"]
        await dockerd.do("Unmount", Name="v", ID="a")
        assert mounted(tmp_path) == []
        assert (await dockerd.volume("v"))["Status"]["mounted"] is False


@pytest.mark.logs("volume v: cannot be mounted: volume 'v' cannot be served: the kernel is too old")
async def test_a_mount_that_fails_counts_nothing_and_is_told_by_status(tmp_path: Path) -> None:
    async with plugin(tmp_path, command("refuse")) as dockerd:
        await dockerd.do("Create", Name="v")
        refused = await dockerd.call("Mount", Name="v", ID="a")
        assert refused.status == 500
        assert refused.error == "volume 'v' cannot be served: the kernel is too old"
        status = (await dockerd.volume("v"))["Status"]
        assert (status["mounted"], status["references"]) == (False, 0)
        assert status["error"] == refused.error
        assert mounted(tmp_path) == []
        await dockerd.do("Remove", Name="v")


@pytest.mark.logs("volume v: cannot be mounted: option 'source': '.*' does not exist")
async def test_a_source_that_has_gone_is_an_error_of_mount_alone(
    tmp_path: Path, source: Path
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v", Opts={"source": str(source)})
        source.rmdir()
        refused = await dockerd.call("Mount", Name="v", ID="a")
        assert f"option 'source': '{source}' does not exist" in refused.error
        assert await dockerd.names() == {"v"}
        assert (await dockerd.volume("v"))["Status"]["error"] == refused.error
        source.mkdir()
        await dockerd.do("Mount", Name="v", ID="a")
        assert "error" not in (await dockerd.volume("v"))["Status"]


@pytest.mark.logs("volume v: cannot be mounted: cannot use .*/volumes/v, ")
async def test_a_missing_directory_of_its_own_is_never_made_again(
    tmp_path: Path, own: Path
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v")
        (own / "v").rmdir()
        assert (await dockerd.call("Mount", Name="v", ID="a")).status == 500
        assert not (own / "v").exists()
        await dockerd.do("Remove", Name="v")


@pytest.mark.logs("volume v: worker [0-9]+ was killed by SIGKILL")
@pytest.mark.logs("volume v: its mount is not whole, making a new one")
async def test_a_dead_worker_is_told_by_status_and_healed_by_the_next_mount(
    tmp_path: Path,
) -> None:
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="v")
        await dockerd.do("Mount", Name="v", ID="a")
        pidfd = os.pidfd_open(await kill_worker(dockerd, "v"))
        await trio.lowlevel.wait_readable(pidfd)
        os.close(pidfd)
        with trio.fail_after(10):
            while (status := (await dockerd.volume("v"))["Status"])["mounted"]:
                await trio.lowlevel.checkpoint()
        assert status["error"] == "its worker was killed by SIGKILL"
        assert (status["worker_pid"], status["references"]) == (0, 1)

        target = Path((await dockerd.do("Mount", Name="v", ID="b"))["Mountpoint"])
        assert await trio.to_thread.run_sync(os.listdir, target) == []
        assert mounted(tmp_path) == ["v"]
        assert await dockerd.references("v") == 2
        for mount_id in "ab":
            await dockerd.do("Unmount", Name="v", ID=mount_id)
        assert mounted(tmp_path) == []


async def kill_worker(dockerd: Dockerd, name: str) -> int:
    pid = (await dockerd.volume(name))["Status"]["worker_pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGSTOP)  # so that its end can be waited for
    os.kill(pid, signal.SIGKILL)
    return pid


async def test_two_volumes_on_one_source_work_at_once(tmp_path: Path, source: Path) -> None:
    async with plugin(tmp_path) as dockerd:
        targets = []
        for name, cache in (("a", "never"), ("b", "always")):
            await dockerd.do("Create", Name=name, Opts={"source": str(source), "cache": cache})
            reply = await dockerd.do("Mount", Name=name, ID="i")
            targets.append(Path(reply["Mountpoint"]))
        await trio.to_thread.run_sync((targets[0] / "file").write_text, "one")
        assert await trio.to_thread.run_sync((targets[1] / "file").read_text) == "one"


@pytest.mark.parametrize("verb", ["Get", "Path", "Remove"])
async def test_an_unknown_volume_is_not_found(tmp_path: Path, verb: str) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        refused = await dockerd.call(verb, Name="v")
        assert (refused.status, refused.error) == (404, "no such volume: 'v'")


@pytest.mark.parametrize("verb", ["Mount", "Unmount"])
async def test_an_unknown_volume_is_not_mounted(tmp_path: Path, verb: str) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        assert (await dockerd.call(verb, Name="v", ID="a")).status == 404


async def test_the_directory_of_a_volume_gets_its_mode_and_owner(tmp_path: Path, own: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v", Opts={"mode": "2770", "uid": "41001", "gid": "41002"})
        status = (await dockerd.volume("v"))["Status"]

    made = (own / "v").stat()
    assert (made.st_mode & 0o7777, made.st_uid, made.st_gid) == (0o2770, 41_001, 41_002)
    assert {name: status["options"][name] for name in ("mode", "uid", "gid")} == {
        "mode": "2770",
        "uid": "41001",
        "gid": "41002",
    }


NAMES = ["..", "a/../../b", "/etc", "-v", "a b", "a\nb", "x" * 300, "\u00e4", "@\u00e4", "a:b"]


async def test_any_name_is_a_volume_with_a_mount_point_of_its_own(
    tmp_path: Path, own: Path
) -> None:
    targets = set()
    async with plugin(tmp_path, SERVE) as dockerd:
        for name in NAMES:
            await dockerd.do("Create", Name=name)
            targets.add(Path((await dockerd.do("Mount", Name=name, ID="i"))["Mountpoint"]))
        assert len(targets) == len(NAMES)
        assert {target.parent for target in targets} == {tmp_path / "mounts"}
        assert mounted(tmp_path) == sorted(target.name for target in targets)
        assert sorted(path.name for path in own.iterdir()) == mounted(tmp_path)
    async with plugin(tmp_path, SERVE) as dockerd:
        assert await dockerd.names() == set(NAMES)
        for name in NAMES:
            assert (await dockerd.volume(name))["Name"] == name
            await dockerd.do("Remove", Name=name)
    assert list(own.iterdir()) == []


# Get, List, Path.


async def test_status_says_what_applies(tmp_path: Path, source: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v", Opts={"source": str(source), "ro": ""})
        volume = await dockerd.volume("v")
        assert "Mountpoint" not in volume
        assert volume["Status"]["source"] == str(source)
        assert "data" not in volume["Status"]
        assert volume["Status"]["options"]["readonly"] == "true"
        assert volume["Status"]["options"]["cache"] == "auto"
        assert volume["Status"]["options"]["attr_timeout"] == "1s"
        assert volume["Status"]["options"]["session"] == automatic().session
        assert volume["Status"]["notes"] == []
        assert (await dockerd.do("Path", Name="v")) == {"Mountpoint": ""}

        await dockerd.do("Mount", Name="v", ID="a")
        target = str(tmp_path / "mounts" / "v")
        volume = await dockerd.volume("v")
        assert volume["Mountpoint"] == target
        assert volume["Status"]["worker_pid"] > 1
        assert (await dockerd.do("Path", Name="v")) == {"Mountpoint": target}
        assert (await dockerd.do("List"))["Volumes"] == [volume]


async def test_status_names_no_path_of_the_plugin_s_own(tmp_path: Path) -> None:
    """In a managed plugin it is another on the host, or none."""
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v")
        status = (await dockerd.volume("v"))["Status"]
        assert status["data"] == "own directory"
        assert str(tmp_path) not in str(status)


@pytest.mark.logs(r"volume v: writeback is false: with cache=never no data may wait")
async def test_what_another_option_overrules_is_said_when_the_volume_is_made_and_in_its_status(
    tmp_path: Path,
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v", Opts={"writeback": "", "cache": "never"})
        status = (await dockerd.volume("v"))["Status"]

    assert status["options"]["writeback"] == "false"
    assert status["notes"] == [
        "writeback is false: with cache=never no data may wait in the kernel"
    ]


async def test_what_the_source_cannot_do_is_in_the_status_as_long_as_it_is_mounted(
    tmp_path: Path,
) -> None:
    async with plugin(tmp_path, command("serve without handles")) as dockerd:
        await dockerd.do("Create", Name="v")
        before = (await dockerd.volume("v"))["Status"]
        await dockerd.do("Mount", Name="v", ID="a")
        while_mounted = (await dockerd.volume("v"))["Status"]
        await dockerd.do("Unmount", Name="v", ID="a")
        after = (await dockerd.volume("v"))["Status"]

    for status in (before, after):
        assert (status["options"]["inode_file_handles"], status["notes"]) == ("prefer", [])
    assert while_mounted["options"]["inode_file_handles"] == "never"
    assert while_mounted["notes"] == ["inode_file_handles is never: there are none"]


async def test_handles_are_demanded_of_a_source_when_the_volume_is_made(
    tmp_path: Path, source: Path
) -> None:
    wanted = {"source": str(source), "inode-file-handles": "mandatory"}
    async with plugin(tmp_path, SERVE) as dockerd:
        with mounted_on(source, "ramfs"):
            refusal = (await dockerd.call("Create", Name="v", Opts=wanted)).error
        assert (await dockerd.do("List"))["Volumes"] == []
        await dockerd.do("Create", Name="v", Opts=wanted)
    assert refusal.startswith(
        "option 'inode_file_handles': 'mandatory' cannot be had: the file system has no file"
    )
    assert refusal.endswith("; expected prefer or never")


async def test_options_of_another_version_do_not_hide_a_volume(tmp_path: Path) -> None:
    """Whatever Get answers with an error, dockerd forgets."""
    async with prepared(settings(tmp_path), SERVE) as (driver, _):
        await insert(driver, "v", {"later": "1"})
    async with plugin(tmp_path, SERVE) as dockerd:
        status = (await dockerd.volume("v"))["Status"]
        assert status["options"] == {"later": "1"}
        assert "option 'later'" in status["error"]
        await dockerd.do("Remove", Name="v")


async def insert(driver: Driver, name: str, options: dict[str, str]) -> None:
    """Create a volume as a later version might."""
    record = Record(name=volume_name(name), options=options, created_at=datetime.now(UTC))
    await trio.to_thread.run_sync(driver._inventory.add, record, Config())


async def test_nothing_is_remembered_of_names_that_are_gone(tmp_path: Path) -> None:
    async with prepared(settings(tmp_path), SERVE) as (driver, _):
        for number in range(50):
            with pytest.raises(PluginError):
                await driver.remove(VolumeRequest(name=f"v{number}"))
        assert not len(driver._turns)


async def test_rings_that_cannot_be_had_are_refused_and_the_status_tells_what_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "without_rings", lambda: "they are switched off")
    async with plugin(tmp_path, SERVE) as dockerd:
        opts = {"session": "kernel", "transport": "io_uring"}
        refused = await dockerd.call("Create", Name="v", Opts=opts)
        assert refused.status == 400
        assert "option 'transport': 'io_uring' cannot be had" in refused.error
        assert "they are switched off" in refused.error

        await dockerd.do("Create", Name="v", Opts={"session": "kernel"})
        status = (await dockerd.volume("v"))["Status"]
        assert status["transport"].startswith("dev: the kernel sends again")
        assert status["options"]["transport"] == "dev"
        monkeypatch.setattr(running, "without_rings", str)
        await dockerd.do("Create", Name="w", Opts=opts)
        monkeypatch.setattr(running, "without_rings", lambda: "they are switched off")
        assert (await dockerd.volume("w"))["Status"]["transport"] == "io_uring: as asked for"
