"""creating.py: names of users and new sources, as Create and later requests see them."""
# ruff: noqa: ASYNC240 - calls on local directories, while no other task has work

import os
from pathlib import Path

import pytest

from plugin.errors import RegistryFailed
from plugin.volumes.inventory import Inventory
from tests.support.fakes.dockerd import plugin
from tests.support.fakes.worker import command

SERVE = command("serve")


async def test_names_are_looked_up_once_when_the_volume_is_created(tmp_path: Path) -> None:
    etc = tmp_path / "host" / "etc"
    etc.mkdir(parents=True)
    (etc / "passwd").write_text("alice:x:1000:1100::/:/bin/sh\n")
    (etc / "group").write_text("staff:x:50:\n")
    seen = {"PASSFS_HOST_ROOT": str(tmp_path / "host")}
    opts = {"uid": "alice", "gid": "staff", "anon_uid": "alice"}
    async with plugin(tmp_path, SERVE, **seen) as dockerd:
        await dockerd.do("Create", Name="vol", Opts=opts)
        await dockerd.do("Create", Name="vol", Opts=opts)
        refused = await dockerd.call("Create", Name="other", Opts={"uid": "bob"})
        (etc / "passwd").write_text("alice:x:7:7::/:/bin/sh\n")
        options = (await dockerd.volume("vol"))["Status"]["options"]
        again = await dockerd.call("Create", Name="vol", Opts=opts)
    made = (tmp_path / "data" / "volumes" / "vol").stat()

    assert (options["uid"], options["gid"], options["anon_uid"]) == ("1000", "50", "1000")
    assert (made.st_uid, made.st_gid) == (1000, 50)
    assert "option 'uid': 'bob' is no user in the host's /etc/passwd" in refused.error
    assert "uid is '1000' and '7' was asked for" in again.error


@pytest.mark.logs("volume vol: cannot be mounted: option 'source': '.*' does not exist")
async def test_a_missing_source_is_made_by_create_alone(tmp_path: Path) -> None:
    source = tmp_path / "sources" / "app"
    source.parent.mkdir()
    opts = {"source": str(source), "create": "", "mode": "0750", "uid": "5", "gid": "6"}
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol", Opts=opts)
        made = source.stat()
        source.rmdir()
        await dockerd.do("Create", Name="vol", Opts=opts)
        refused = await dockerd.call("Mount", Name="vol", ID="1")
        assert not source.exists()
        await dockerd.do("Remove", Name="vol")

    assert (made.st_mode & 0o7777, made.st_uid, made.st_gid) == (0o750, 5, 6)
    assert f"{str(source)!r} does not exist" in refused.error


async def test_a_refused_create_leaves_no_new_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "app"
    opts = {"source": str(source), "create": ""}

    def fail(*_: object) -> None:
        assert source.is_dir()
        raise RegistryFailed("the disk is full")

    async with plugin(tmp_path, SERVE) as dockerd:
        with monkeypatch.context() as patch:
            patch.setattr(Inventory, "add", fail)
            refused = await dockerd.call("Create", Name="vol", Opts=opts)
        assert (refused.error, source.exists()) == ("the disk is full", False)
        await dockerd.do("Create", Name="vol", Opts=opts)
    assert source.is_dir()


async def test_defaults_for_a_new_directory_apply_to_a_new_source(tmp_path: Path) -> None:
    source = tmp_path / "app"
    defaults = {"PASSFS_DEFAULT_OPTIONS": "mode=0750,uid=5"}
    async with plugin(tmp_path, SERVE, **defaults) as dockerd:
        opts = {"source": str(source), "create": "", "uid": "7"}
        await dockerd.do("Create", Name="vol", Opts=opts)
    assert (source.stat().st_mode & 0o7777, source.stat().st_uid) == (0o750, 7)


async def test_a_forbidden_option_does_not_tell_whether_a_user_exists(tmp_path: Path) -> None:
    (tmp_path / "host" / "etc").mkdir(parents=True)
    (tmp_path / "host" / "etc" / "passwd").write_text("alice:x:1000:1100::/:/bin/sh\n")
    given = {"PASSFS_HOST_ROOT": str(tmp_path / "host"), "PASSFS_FORBIDDEN_OPTIONS": "uid"}
    async with plugin(tmp_path, SERVE, **given) as dockerd:
        refusals = [
            (await dockerd.call("Create", Name="vol", Opts={"uid": name})).error.replace(name, "X")
            for name in ("alice", "bob")
        ]
    assert refusals[0] == refusals[1]
    assert "is forbidden by the administrator" in refusals[0]


@pytest.mark.parametrize(
    ("options", "owner"),
    [({}, (0, 0)), ({"map_uid": "0:5000:10"}, (5000, 0)), ({"squash": "all"}, (65534, 65534))],
)
async def test_a_new_source_belongs_to_the_containers_root(
    tmp_path: Path, options: dict[str, str], owner: tuple[int, int]
) -> None:
    source = tmp_path / "app"
    async with plugin(tmp_path, SERVE) as dockerd:
        opts = {"source": str(source), "create": "true", **options}
        await dockerd.do("Create", Name="vol", Opts=opts)

    assert (source.stat().st_uid, source.stat().st_gid) == owner


@pytest.mark.logs("volume vol: cannot be mounted: option 'subpath': 'current' leads out of ")
async def test_a_part_of_a_source_is_served_as_it_is_at_each_mount(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("one", "two"):
        (source / name).mkdir(parents=True)
        (source / name / name).touch()
    current = source / "current"
    current.symlink_to("one")
    opts = {"source": str(source), "subpath": "current"}
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol", Opts=opts)
        seen = Path((await dockerd.do("Mount", Name="vol", ID="1"))["Mountpoint"])
        listed = [[path.name for path in seen.iterdir()]]
        status = (await dockerd.volume("vol"))["Status"]
        await dockerd.do("Unmount", Name="vol", ID="1")
        current.unlink()
        current.symlink_to("two")
        await dockerd.do("Mount", Name="vol", ID="1")
        listed.append([path.name for path in seen.iterdir()])
        await dockerd.do("Unmount", Name="vol", ID="1")
        current.unlink()
        current.symlink_to("/etc")
        refused = await dockerd.call("Mount", Name="vol", ID="1")

    assert listed == [["one"], ["two"]]
    assert (status["source"], status["options"]["subpath"]) == (str(current), "current")
    assert "option 'subpath': 'current' leads out of the source" in refused.error


@pytest.mark.logs("volume vol: cannot be mounted: option 'owner': .* because the source belongs ")
async def test_the_owner_of_the_source_is_found_at_each_mount(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    opts = {"source": str(source), "owner": "7:8"}
    shown: list[tuple[str, str]] = []
    async with plugin(tmp_path) as dockerd:
        as_root = await dockerd.call("Create", Name="vol", Opts=opts)
        for uid in (1000, 1001):
            os.chown(source, uid, uid)
            await dockerd.do("Create", Name="vol", Opts=opts)
            seen = Path((await dockerd.do("Mount", Name="vol", ID="1"))["Mountpoint"])
            (seen / str(uid)).touch()
            assert ((source / str(uid)).stat().st_uid, seen.stat().st_uid) == (uid, 7)
            options = (await dockerd.volume("vol"))["Status"]["options"]
            shown.append((options["owner"], options["anon_uid"]))
            await dockerd.do("Unmount", Name="vol", ID="1")
        options = (await dockerd.volume("vol"))["Status"]["options"]
        shown.append((options["owner"], options["anon_uid"]))
        os.chown(source, 0, 1001)
        refused = await dockerd.call("Mount", Name="vol", ID="1")

    assert shown[:2] == [("7:8", "1000"), ("7:8", "1001")]
    assert shown[2] == ("7:8", "65534, or with owner the source's owner")
    for answer in (as_root, refused):
        assert "'7:8' would let any user of a container act as root" in answer.error


@pytest.mark.parametrize(
    ("given", "owner"), [({}, (65534, 65534)), ({"uid": "5", "gid": "6"}, (5, 6))]
)
@pytest.mark.parametrize("has_source", [True, False])
async def test_a_new_directory_with_an_owner_is_not_root_s(
    tmp_path: Path, given: dict[str, str], owner: tuple[int, int], *, has_source: bool
) -> None:
    source = tmp_path / "source"
    options = {"source": str(source), "create": ""} if has_source else {}
    async with plugin(tmp_path) as dockerd:
        await dockerd.do("Create", Name="vol", Opts={"owner": "7:8", **given, **options})
        seen = Path((await dockerd.do("Mount", Name="vol", ID="1"))["Mountpoint"])
        (seen / "file").touch()
        os.chown(seen / "file", 33, 33)
        made = (source if has_source else tmp_path / "data" / "volumes" / "vol") / "file"
        found = (made.stat().st_uid, made.stat().st_gid), (seen / "file").stat().st_uid
        await dockerd.do("Unmount", Name="vol", ID="1")

    assert found == (owner, 7)
