"""driver.py: the nine verbs, called as an engine calls them."""
# ruff: noqa: ASYNC240 - calls on local directories, while no other task has work

import fcntl
import os
from pathlib import Path

import pytest
import trio

from passthrough.linux import kernel_features
from passthrough.options.sessions import automatic
from plugin.app import composed
from plugin.commands import changes
from plugin.commands.asking import CommandError, Plugin
from plugin.errors import PluginError, RegistryFailed
from plugin.protocol import VolumeRequest
from plugin.volumes.driver import Driver
from plugin.volumes.registry import Registry
from tests.support.fakes.dockerd import mounted, plugin, settings
from tests.support.fakes.worker import command
from tests.support.tools.files import outcome
from tests.support.tools.mounts import mounted_on
from tests.support.tools.options import RELEASE, effective
from tests.support.tools.processes import kill_all
from tests.support.tools.records import record

SERVE = command("serve")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Return the parent of the directories of volumes without a source."""
    return tmp_path / "data" / "volumes"


# Create and Remove.


async def test_volumes_survive_a_restart_of_the_plugin(
    tmp_path: Path, source: Path, own: Path
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="own", Opts={"cache": "never"})
        await dockerd.do("Create", Name="theirs", Opts={"source": str(source)})
        before = [await dockerd.volume(name) for name in ("own", "theirs")]
    async with plugin(tmp_path, SERVE) as dockerd:
        assert await dockerd.names() == {"own", "theirs"}
        with trio.fail_after(10):  # until the plugin has checked the source, for its note
            while [await dockerd.volume(name) for name in ("own", "theirs")] != before:
                await trio.lowlevel.checkpoint()
    assert [path.name for path in own.iterdir()] == ["own"]


async def test_create_is_on_disk_before_it_is_answered(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        content = (tmp_path / "data" / "passfs.db").read_bytes()
        assert not (tmp_path / "data" / "passfs.db-journal").exists()
    assert b"vol{}" in content


async def test_the_same_create_again_succeeds(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol", Opts={"cache": "never", "ro": ""})
        await dockerd.do("Create", Name="vol", Opts={"cache": "NEVER", "readonly": "true"})
        assert await dockerd.names() == {"vol"}


async def test_create_of_an_existing_name_with_other_options_names_the_difference(
    tmp_path: Path,
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol", Opts={"cache": "never"})
        before = await dockerd.volume("vol")
        refused = await dockerd.call("Create", Name="vol", Opts={"cache": "always"})
        assert refused.status == 409
        assert refused.error == (
            "volume 'vol' exists with other options: cache is 'never' and 'always' was asked for"
        )
        assert await dockerd.volume("vol") == before


@pytest.mark.parametrize(
    ("name", "opts", "words"),
    [
        ("a/../b", {}, ["volume name 'a/../b' is not accepted; expected 2 to 200 characters"]),
        ("v", {}, ["volume name 'v' is not accepted", "takes a single letter for a Windows drive"]),
        ("vol", {"cash": "auto"}, ["option 'cash'", "cache"]),
        ("vol", {"cache": "sometimes"}, ["option 'cache'", "'sometimes'", "never, metadata"]),
        (
            "vol",
            {"posix_acl": "", "session": "libfuse"},
            ["option 'posix_acl'", "session=libfuse", "DONT_MASK"],
        ),
        ("vol", {"mode": "999"}, ["option 'mode'", "'999'", "octal digits"]),
        ("vol", {"source": "/srv", "uid": "5"}, ["option 'uid'", "the source exists already"]),
        ("vol", {"source": "srv"}, ["option 'source'", "'srv'", "absolute path"]),
        ("vol", {"source": "/no/such"}, ["option 'source'", "'/no/such'", "does not exist"]),
        ("vol", {"source": "/"}, ["option 'source'", "'/'", "contains", "/mounts"]),
        ("vol", {"source": "/etc/passwd"}, ["'/etc/passwd' is not a directory"]),
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
        assert (await dockerd.call("Create", Name="vol")).error == "the disk is full"
        assert list(own.iterdir()) == []
        assert await dockerd.names() == set()


async def test_remove_deletes_the_files_of_a_volume_without_source(
    tmp_path: Path, own: Path
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        (own / "vol" / "file").touch()
        await dockerd.do("Remove", Name="vol")
        assert list(own.iterdir()) == []
        assert await dockerd.names() == set()
        assert (await dockerd.call("Remove", Name="vol")).status == 404
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        assert list((own / "vol").iterdir()) == []


async def test_a_start_deletes_files_left_in_the_trash(
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
        await dockerd.do("Create", Name="vol", Opts={"source": str(source)})
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Mount", Name="vol", ID="a")
        await dockerd.do("Unmount", Name="vol", ID="a")
        await dockerd.do("Remove", Name="vol")
    assert (source / "file").read_text() == "theirs"


async def test_a_remove_that_cannot_be_recorded_leaves_the_files(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RegistryFailed("the disk is full")

    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        (own / "vol" / "file").touch()
        monkeypatch.setattr(Registry, "remove", fail)
        assert (await dockerd.call("Remove", Name="vol")).error == "the disk is full"
        assert (own / "vol" / "file").exists()
        assert await dockerd.names() == {"vol"}


# Mount and Unmount.


async def test_a_file_written_through_the_mount_is_in_the_volume_s_directory(
    tmp_path: Path, own: Path
) -> None:
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol")
        target = Path((await dockerd.do("Mount", Name="vol", ID="a"))["Mountpoint"])
        assert target == tmp_path / "mounts" / "vol"
        await trio.to_thread.run_sync((target / "file").write_text, "hello")
        assert (own / "vol" / "file").read_text() == "hello"
        await dockerd.do("Unmount", Name="vol", ID="a")


@pytest.mark.parametrize(("given", "seen"), [({}, False), ({"locks": "host"}, True)])
async def test_locks_in_a_directory_of_its_own_reach_the_host_only_if_asked_for(
    tmp_path: Path, own: Path, given: dict[str, str], *, seen: bool
) -> None:
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol", Opts=given)
        target = Path((await dockerd.do("Mount", Name="vol", ID="a"))["Mountpoint"])
        volume = await dockerd.volume("vol")
        assert volume["Status"]["options"]["locks"] == ("host" if seen else "local")
        with (target / "file").open("w") as inside, (own / "vol" / "file").open("w") as host:
            await trio.to_thread.run_sync(fcntl.lockf, inside, fcntl.LOCK_EX)
            held = outcome(fcntl.lockf, host, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert held == ("EAGAIN" if seen else None)
        await dockerd.do("Unmount", Name="vol", ID="a")


async def test_the_last_unmount_unmounts_the_volume(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        for mount_id in ("a", "b", "a"):
            await dockerd.do("Mount", Name="vol", ID=mount_id)
        for mount_id, left in (("a", 2), ("b", 1), ("b", 1), ("x", 1)):
            await dockerd.do("Unmount", Name="vol", ID=mount_id)
            assert await dockerd.references("vol") == left
            assert mounted(tmp_path) == ["vol"]
        await dockerd.do("Unmount", Name="vol", ID="a")
        assert mounted(tmp_path) == []
        assert (await dockerd.volume("vol"))["Status"]["mounted"] is False


@pytest.mark.logs(
    "volume vol: cannot be mounted: volume 'vol' cannot be served: the kernel is too old"
)
async def test_a_failed_mount_counts_no_reference_and_is_in_the_status(tmp_path: Path) -> None:
    async with plugin(tmp_path, command("refuse")) as dockerd:
        await dockerd.do("Create", Name="vol")
        refused = await dockerd.call("Mount", Name="vol", ID="a")
        assert refused.status == 500
        assert refused.error == "volume 'vol' cannot be served: the kernel is too old"
        status = (await dockerd.volume("vol"))["Status"]
        assert (status["mounted"], status["references"]) == (False, 0)
        assert status["error"] == refused.error
        assert mounted(tmp_path) == []
        await dockerd.do("Remove", Name="vol")


@pytest.mark.logs("volume vol: cannot be mounted: option 'source': '.*' does not exist")
async def test_a_missing_source_fails_mount_only(tmp_path: Path, source: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol", Opts={"source": str(source)})
        source.rmdir()
        refused = await dockerd.call("Mount", Name="vol", ID="a")
        assert f"option 'source': '{source}' does not exist" in refused.error
        assert await dockerd.names() == {"vol"}
        assert (await dockerd.volume("vol"))["Status"]["error"] == refused.error
        source.mkdir()
        await dockerd.do("Mount", Name="vol", ID="a")
        assert "error" not in (await dockerd.volume("vol"))["Status"]


@pytest.mark.logs("volume vol: cannot be mounted: cannot use .*/volumes/vol, ")
async def test_a_missing_directory_of_a_volume_is_never_made_again(
    tmp_path: Path, own: Path
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        (own / "vol").rmdir()
        assert (await dockerd.call("Mount", Name="vol", ID="a")).status == 500
        assert not (own / "vol").exists()
        await dockerd.do("Remove", Name="vol")


@pytest.mark.logs("volume vol: mount lost: worker [0-9]+ was killed by SIGKILL")
@pytest.mark.logs("volume vol: its mount is not whole, making a new one")
async def test_a_dead_worker_is_in_the_status_and_replaced_by_the_next_mount(
    tmp_path: Path,
) -> None:
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol")
        await dockerd.do("Mount", Name="vol", ID="a")
        kill_all((await dockerd.volume("vol"))["Status"]["worker_pid"])
        with trio.fail_after(10):
            while (status := (await dockerd.volume("vol"))["Status"])["mounted"]:
                await trio.lowlevel.checkpoint()
        assert status["error"] == "its worker was killed by SIGKILL"
        assert (status["worker_pid"], status["references"]) == (0, 1)

        target = Path((await dockerd.do("Mount", Name="vol", ID="b"))["Mountpoint"])
        assert await trio.to_thread.run_sync(os.listdir, target) == []
        assert mounted(tmp_path) == ["vol"]
        assert await dockerd.references("vol") == 2
        for mount_id in "ab":
            await dockerd.do("Unmount", Name="vol", ID=mount_id)
        assert mounted(tmp_path) == []


async def test_two_volumes_on_one_source_work_at_once(tmp_path: Path, source: Path) -> None:
    async with plugin(tmp_path) as dockerd:
        targets = []
        for name, cache in (("one", "never"), ("two", "always")):
            await dockerd.do("Create", Name=name, Opts={"source": str(source), "cache": cache})
            reply = await dockerd.do("Mount", Name=name, ID="i")
            targets.append(Path(reply["Mountpoint"]))
        await trio.to_thread.run_sync((targets[0] / "file").write_text, "one")
        assert await trio.to_thread.run_sync((targets[1] / "file").read_text) == "one"


@pytest.mark.parametrize("verb", ["Get", "Path", "Remove"])
async def test_an_unknown_volume_is_not_found(tmp_path: Path, verb: str) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        refused = await dockerd.call(verb, Name="vol")
        assert (refused.status, refused.error) == (404, "no such volume: 'vol'")


@pytest.mark.parametrize("verb", ["Mount", "Unmount"])
async def test_an_unknown_volume_is_not_mounted(tmp_path: Path, verb: str) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        assert (await dockerd.call(verb, Name="vol", ID="a")).status == 404


async def test_the_directory_of_a_volume_gets_its_mode_and_owner(tmp_path: Path, own: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do(
            "Create", Name="vol", Opts={"mode": "2770", "uid": "41001", "gid": "41002"}
        )
        status = (await dockerd.volume("vol"))["Status"]

    made = (own / "vol").stat()
    assert (made.st_mode & 0o7777, made.st_uid, made.st_gid) == (0o2770, 41_001, 41_002)
    assert {name: status["options"][name] for name in ("mode", "uid", "gid")} == {
        "mode": "2770",
        "uid": "41001",
        "gid": "41002",
    }


# Get, List, Path.


async def test_status_shows_source_options_and_mount_point(tmp_path: Path, source: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol", Opts={"source": str(source), "ro": ""})
        volume = await dockerd.volume("vol")
        assert "Mountpoint" not in volume
        assert volume["Status"]["source"] == str(source)
        assert "data" not in volume["Status"]
        assert volume["Status"]["options"]["readonly"] == "true"
        assert volume["Status"]["options"]["cache"] == "auto"
        assert volume["Status"]["options"]["attr_timeout"] == "1s"
        assert volume["Status"]["options"]["session"] == automatic(RELEASE).session
        # test_source_check.py tests the note on the mounts of this machine.
        assert [note for note in volume["Status"]["notes"] if "is private" not in note] == []
        assert (await dockerd.do("Path", Name="vol")) == {"Mountpoint": ""}

        await dockerd.do("Mount", Name="vol", ID="a")
        target = str(tmp_path / "mounts" / "vol")
        volume = await dockerd.volume("vol")
        assert volume["Mountpoint"] == target
        assert volume["Status"]["worker_pid"] > 1
        assert (await dockerd.do("Path", Name="vol")) == {"Mountpoint": target}
        assert (await dockerd.do("List"))["Volumes"] == [volume]


async def test_status_omits_a_path_that_may_be_another_on_the_host(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
        status = (await dockerd.volume("vol"))["Status"]
        assert status["data"] == str(tmp_path / "data" / "volumes" / "vol")
    async with plugin(tmp_path, SERVE, PASSFS_HOST_ROOT=str(tmp_path / "host")) as dockerd:
        status = (await dockerd.volume("vol"))["Status"]
        assert status["data"] == "own directory"
        assert str(tmp_path) not in str(status)


@pytest.mark.logs(r"volume vol: writeback is false: with cache=never no data may wait")
async def test_an_overruled_option_is_logged_at_create_and_noted_in_the_status(
    tmp_path: Path,
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol", Opts={"writeback": "", "cache": "never"})
        status = (await dockerd.volume("vol"))["Status"]

    assert status["options"]["writeback"] == "false"
    assert status["notes"] == [
        "writeback is false: with cache=never no data may wait in the kernel"
    ]


async def test_an_option_that_the_source_cannot_serve_is_noted_while_it_is_mounted(
    tmp_path: Path,
) -> None:
    async with plugin(tmp_path, command("serve without handles")) as dockerd:
        await dockerd.do("Create", Name="vol")
        before = (await dockerd.volume("vol"))["Status"]
        await dockerd.do("Mount", Name="vol", ID="a")
        while_mounted = (await dockerd.volume("vol"))["Status"]
        await dockerd.do("Unmount", Name="vol", ID="a")
        after = (await dockerd.volume("vol"))["Status"]

    for status in (before, after):
        assert (status["options"]["inode_file_handles"], status["notes"]) == ("prefer", [])
    assert while_mounted["options"]["inode_file_handles"] == "never"
    assert while_mounted["notes"] == ["inode_file_handles is never: there are none"]


async def test_create_refuses_a_source_without_file_handles_if_they_are_mandatory(
    tmp_path: Path, source: Path
) -> None:
    wanted = {"source": str(source), "inode-file-handles": "mandatory"}
    async with plugin(tmp_path, SERVE) as dockerd:
        with mounted_on(source, "ramfs"):
            refusal = (await dockerd.call("Create", Name="vol", Opts=wanted)).error
        assert (await dockerd.do("List"))["Volumes"] == []
        await dockerd.do("Create", Name="vol", Opts=wanted)
    assert refusal.startswith(
        "option 'inode_file_handles': 'mandatory' cannot be had: the file system has no file"
    )
    assert refusal.endswith("; expected prefer or never")


async def test_get_describes_a_volume_with_options_of_another_version(tmp_path: Path) -> None:
    """If Get answered with an error, dockerd would forget the volume."""
    async with composed(settings(tmp_path), SERVE) as (driver, _, _):
        await insert(driver, "vol", {"later": "1"})
    async with plugin(tmp_path, SERVE) as dockerd:
        status = (await dockerd.volume("vol"))["Status"]
        assert status["options"] == {"later": "1"}
        assert "option 'later'" in status["error"]
        await dockerd.do("Remove", Name="vol")


async def insert(driver: Driver, name: str, options: dict[str, str]) -> None:
    """Create a volume as a later version may do."""
    await trio.to_thread.run_sync(driver._inventory.add, record(name, **options), effective())


async def test_requests_for_unknown_names_leave_no_locks(tmp_path: Path) -> None:
    async with composed(settings(tmp_path), SERVE) as (driver, _, _):
        for number in range(50):
            with pytest.raises(PluginError):
                await driver.remove(VolumeRequest(name=f"v{number}"))
        assert not len(driver.locks)


async def test_io_uring_is_refused_without_the_kernel_s_support_and_status_shows_the_transport(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_features, "io_uring_obstacle", lambda: "they are switched off")
    async with plugin(tmp_path, SERVE) as dockerd:
        opts = {"session": "kernel", "transport": "io_uring"}
        refused = await dockerd.call("Create", Name="vol", Opts=opts)
        assert refused.status == 400
        assert "option 'transport': 'io_uring' cannot be had" in refused.error
        assert "they are switched off" in refused.error

        await dockerd.do("Create", Name="vol", Opts={"session": "kernel"})
        status = (await dockerd.volume("vol"))["Status"]
        assert status["transport"].startswith("dev: the default, because io_uring is slower")
        assert status["options"]["transport"] == "dev"
        monkeypatch.setattr(kernel_features, "io_uring_obstacle", str)
        await dockerd.do("Create", Name="vol2", Opts=opts)
        monkeypatch.setattr(kernel_features, "io_uring_obstacle", lambda: "they are switched off")
        assert (await dockerd.volume("vol2"))["Status"]["transport"] == "io_uring: as asked for"


async def test_a_change_to_io_uring_is_refused_without_the_kernel_s_support(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a volume with a directory of its own."""
    monkeypatch.setattr(kernel_features, "io_uring_obstacle", lambda: "they are switched off")
    async with plugin(tmp_path, SERVE) as dockerd:
        (tmp_path / "source").mkdir()
        for name, opts in (("vol", {}), ("other", {"source": str(tmp_path / "source")})):
            await dockerd.do("Create", Name=name, Opts={"session": "kernel"} | opts)
            with pytest.raises(CommandError, match="they are switched off"):
                await trio.to_thread.run_sync(change, tmp_path, name)


def change(directory: Path, name: str) -> None:
    """Let a volume have io_uring."""
    plugin_there = Plugin(str(directory / "data"))
    changes.change(plugin_there, name, ["transport=io_uring"], [], dry_run=False)
