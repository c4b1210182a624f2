"""The administrator's restrictions at Create, at Mount, and after a change of settings."""

from pathlib import Path

import pytest

from tests.support.fakes.dockerd import plugin
from tests.support.fakes.worker import command

SERVE = command("serve")
NOT_ALLOWED = "lies in none of the directories that the administrator of this plugin allows"
FORBIDDEN = "is forbidden by the administrator of this plugin"


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    """Make the directory that sources may lie in, and another one beside it, `other/app`."""
    (tmp_path / "other" / "app").mkdir(parents=True)
    (tmp_path / "other" / "app" / "file").write_text("theirs")
    directory = tmp_path / "allowed"
    (directory / "app").mkdir(parents=True)
    return directory


@pytest.mark.logs("volume vol: cannot be mounted: option 'source'")
async def test_a_source_that_leads_elsewhere_after_create_is_not_mounted(
    tmp_path: Path, allowed: Path
) -> None:
    link = allowed / "link"
    link.symlink_to(allowed)
    source = str(link / "app")
    async with plugin(tmp_path, SERVE, PASSFS_ALLOWED_SOURCES=str(allowed)) as dockerd:
        await dockerd.do("Create", Name="vol", Opts={"source": source})
        link.unlink()
        link.symlink_to(tmp_path / "other")
        refused = await dockerd.call("Mount", Name="vol", ID="a")
        assert refused.status == 400
        assert refused.error == (
            f"option 'source': {source!r} {NOT_ALLOWED}; expected a directory in {allowed}"
        )
        assert await dockerd.references("vol") == 0
        assert NOT_ALLOWED in (await dockerd.volume("vol"))["Status"]["error"]
        assert (
            NOT_ALLOWED
            in (await dockerd.call("Create", Name="vol2", Opts={"source": source})).error
        )
        await dockerd.do("Remove", Name="vol")
    assert (tmp_path / "other" / "app" / "file").read_text() == "theirs"


async def test_a_volume_without_a_source_is_always_allowed(tmp_path: Path, allowed: Path) -> None:
    async with plugin(tmp_path, SERVE, PASSFS_ALLOWED_SOURCES=str(allowed)) as dockerd:
        await dockerd.do("Create", Name="vol")
        await dockerd.do("Mount", Name="vol", ID="a")
        await dockerd.do("Unmount", Name="vol", ID="a")


@pytest.mark.logs("volume (vol|vol2): cannot be mounted: option ")
async def test_new_settings_apply_to_existing_volumes(tmp_path: Path, allowed: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol", Opts={"suid": ""})
        await dockerd.do("Create", Name="vol2", Opts={"source": str(tmp_path / "other")})
        await dockerd.do("Create", Name="vol3", Opts={"source": str(allowed), "fsname": "x"})
    decided = {"PASSFS_FORBIDDEN_OPTIONS": "suid", "PASSFS_ALLOWED_SOURCES": str(allowed)}
    async with plugin(tmp_path, SERVE, **decided) as dockerd:
        assert await dockerd.names() == {"vol", "vol2", "vol3"}
        for name, reason in (("vol", FORBIDDEN), ("vol2", NOT_ALLOWED)):
            assert reason in (await dockerd.call("Mount", Name=name, ID="a")).error
            assert reason in (await dockerd.volume(name))["Status"]["error"]
        await dockerd.do("Mount", Name="vol3", ID="a")
        await dockerd.do("Unmount", Name="vol3", ID="a")
        again = await dockerd.call("Create", Name="vol", Opts={})
        assert (
            "volume 'vol' exists with options that are not accepted: option 'suid'" in again.error
        )
        for name in ("vol", "vol2", "vol3"):
            await dockerd.do("Remove", Name=name)
    assert (tmp_path / "other" / "app" / "file").read_text() == "theirs"


async def test_a_volume_with_a_forbidden_option_is_not_created(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE, PASSFS_FORBIDDEN_OPTIONS="suid,sandbox=none") as dockerd:
        for options in ({"Suid": "1"}, {"sandbox": "NONE"}):
            refused = await dockerd.call("Create", Name="vol", Opts=options)
            assert refused.status == 400
            assert FORBIDDEN in refused.error
        assert await dockerd.names() == set()


async def test_a_new_default_applies_at_the_next_mount(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol", Opts={"cache": "auto"})
        await dockerd.do("Mount", Name="vol", ID="a")
        assert "rw" in mount_flags(tmp_path / "mounts" / "vol")
    async with plugin(tmp_path, SERVE, PASSFS_DEFAULT_OPTIONS="ro,cache=never") as dockerd:
        options = (await dockerd.volume("vol"))["Status"]["options"]
        assert (options["readonly"], options["cache"]) == ("true", "auto")
        await dockerd.do("Mount", Name="vol", ID="a")
        assert "ro" in mount_flags(tmp_path / "mounts" / "vol")
    async with plugin(tmp_path, SERVE) as dockerd:
        assert (await dockerd.volume("vol"))["Status"]["options"]["readonly"] == "false"


@pytest.mark.logs("volume v1: cannot be mounted: option 'no_readdir'")
@pytest.mark.logs("volume y1: no_readdir is true: an engine takes the volume for empty")
async def test_a_default_of_no_readdir_hides_no_files_of_a_source_from_an_engine(
    tmp_path: Path, allowed: Path
) -> None:
    """Docker copies the image's files over those of the host if a volume looks empty."""
    source = {"source": str(allowed)}
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v1", Opts=source)
        refused = await dockerd.call("Create", Name="w1", Opts={"no_readdir": "", **source})
        assert refused.status == 400
        assert "an engine copies an image's over them" in refused.error
    async with plugin(tmp_path, SERVE, PASSFS_DEFAULT_OPTIONS="no_readdir") as dockerd:
        refused = await dockerd.call("Mount", Name="v1", ID="a")
        assert refused.status == 400
        assert "expected readonly beside it, or false" in refused.error
        assert refused.error.endswith("(defaults of this plugin: no_readdir=true)")
        assert "no_readdir" in (await dockerd.volume("v1"))["Status"]["error"]
        await dockerd.do("Create", Name="x1", Opts={"ro": "", **source})
        await dockerd.do("Mount", Name="x1", ID="a")
        assert "ro" in mount_flags(tmp_path / "mounts" / "x1")
        await dockerd.do("Unmount", Name="x1", ID="a")
        await dockerd.do("Create", Name="y1")


@pytest.mark.logs("volume v1: cannot be mounted: option 'source'")
async def test_no_user_learns_of_files_outside_of_the_allowed_directories(
    tmp_path: Path, allowed: Path
) -> None:
    """Create, Mount and Status refuse existing and missing sources with the same sentence."""
    (tmp_path / "other" / "link").symlink_to(tmp_path / "other" / "app")
    (allowed / "out").symlink_to(tmp_path / "other")
    there = tmp_path / "other" / "app"
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v1", Opts={"source": str(there)})
    sentences = set()
    async with plugin(tmp_path, SERVE, PASSFS_ALLOWED_SOURCES=str(allowed)) as dockerd:
        for source in (there, there / "file", there / "none", there.parent / "link"):
            for path in (source, allowed / "out" / source.relative_to(there.parent)):
                refused = await dockerd.call("Create", Name="w1", Opts={"source": str(path)})
                sentences.add(refused.error.replace(str(path), "PATH"))
        refused = await dockerd.call("Mount", Name="v1", ID="a")
        sentences.add(refused.error.replace(str(there), "PATH"))
        there.rename(tmp_path / "moved")
        refused = await dockerd.call("Mount", Name="v1", ID="a")
        sentences.add(refused.error.replace(str(there), "PATH"))
        status = (await dockerd.volume("v1"))["Status"]["error"]
        sentences.add(status.replace(str(there), "PATH"))
    assert sentences == {
        f"option 'source': 'PATH' {NOT_ALLOWED}; expected a directory in {allowed}"
    }


async def test_a_repeated_create_is_compared_with_defaults(tmp_path: Path) -> None:
    async with plugin(tmp_path, SERVE, PASSFS_DEFAULT_OPTIONS="cache=never") as dockerd:
        await dockerd.do("Create", Name="vol")
        for same in ({}, {"cache": "never"}, {"Cache": "NEVER", "rw": ""}):
            await dockerd.do("Create", Name="vol", Opts=same)
        assert (await dockerd.call("Create", Name="vol", Opts={"cache": "auto"})).error == (
            "volume 'vol' exists with other options: cache is 'never' and 'auto' was asked for"
        )


def mount_flags(target: Path) -> list[str]:
    """Return the options of the mount at *target*."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    ((flags),) = [fields[5].split(",") for fields in lines if fields[4] == str(target)]
    return flags


@pytest.mark.logs("volume v1: cannot be mounted: option 'source'")
async def test_a_setting_with_invalid_utf8_hides_no_volume(tmp_path: Path, allowed: Path) -> None:
    """JSON has no bytes, and dockerd forgets a volume if its Get fails."""
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="v1", Opts={"source": str(allowed)})
    async with plugin(tmp_path, SERVE, PASSFS_ALLOWED_SOURCES=f"{tmp_path}/\udcff") as dockerd:
        refused = await dockerd.call("Mount", Name="v1", ID="a")
        assert refused.status == 400
        assert refused.error.count(r"/\udcff") == 1
        assert (await dockerd.volume("v1"))["Status"]["error"] == refused.error
        assert await dockerd.names() == {"v1"}
