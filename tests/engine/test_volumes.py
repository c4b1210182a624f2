"""`docker volume`, `docker run -v` and `docker cp` with volumes, in both installations."""

import io
import os
import stat
import tarfile
import uuid
from pathlib import Path

import docker
import docker.errors
import pytest

from tests.support.tools.driver import Driver, execute
from tests.support.tools.files import archive


def test_two_commands_write_a_file_on_the_host(driver: Driver) -> None:
    """The first commands of the README make a file on the host that belongs to the caller."""
    with driver.volume() as demo:
        driver.run(demo, "echo hello > /data/x; id > /data/me")

        written = driver.own_directory(demo) / "x"
        assert written.read_text() == "hello\n"
        assert (written.stat().st_uid, written.stat().st_gid) == (0, 0)
        assert (driver.own_directory(demo) / "me").read_text().startswith("uid=0(root)")


def test_all_users_of_containers_work_in_a_tree_of_one_user_of_the_host(
    driver: Driver, source: Path
) -> None:
    """The engine is root: it copies files and changes owners."""
    os.chown(source, 1000, 1001)
    source.chmod(0o700)
    with driver.volume(source=str(source), owner="7:8") as volume:
        for user in ("0", "7:8", "33:33"):
            name = user.partition(":")[0]
            command = f"mkdir {name}; echo x > {name}/file; chown 5:5 {name}/file; stat -c %u:%g *"
            output = driver.run(volume, f"cd /data; {command}", user=user)
            assert set(output.split()) == {"7:8"}
        with driver.container(volume) as container:
            assert container.put_archive("/data", archive("copied", b"by docker cp"))
            assert execute(container, "cat /data/copied") == "by docker cp"
        assert {(path.stat().st_uid, path.stat().st_gid) for path in source.rglob("*")} == {
            (1000, 1001)
        }
    with driver.volume(owner="7:8") as volume:
        seeded = driver.run(volume, "cat /seed/link; stat -Lc %u:%g /seed/link", at="/seed")
        assert seeded.split() == ["seeded", "7:8"]


def test_a_volume_is_a_fuse_mount_of_a_worker(driver: Driver) -> None:
    """A container sees the volume as fuse.passfs, and one mount of the host serves it."""
    with driver.volume(fsname="named") as volume:
        with driver.container(volume) as container:
            assert "named /data fuse.passfs" in execute(container, "cat /proc/mounts")
            assert len(driver.file_systems(volume)) == 1
        assert driver.file_systems(volume) == set()


def test_inspect_shows_options_and_status(driver: Driver) -> None:
    with driver.volume(cache="always", entry_timeout="500ms") as volume:
        inspected = driver.client.api.inspect_volume(volume.name)
        assert inspected["Driver"] == driver.name
        assert inspected["CreatedAt"][:2] == "20"
        status = inspected["Status"]
        assert status["mounted"] is False
        with driver.container(volume):
            status = driver.status(volume)
            assert status["mounted"] is True
            assert status["references"] == 1
            assert Path(f"/proc/{status['worker_pid']}/comm").read_text().startswith("passfs:")
            assert status["data"] == str(driver.own_directory(volume))
            assert status["options"]["cache"] == "always"
            assert status["options"]["entry_timeout"] == "0.5s"


def test_list_names_every_volume(driver: Driver) -> None:
    with driver.volume() as one, driver.volume() as two:
        listed = {v.name for v in driver.client.volumes.list(filters={"driver": driver.name})}
        assert listed == {one.name, two.name}


def test_two_containers_share_one_mount(driver: Driver) -> None:
    """The end of the first container keeps the mount; the end of the last unmounts."""
    with driver.volume() as volume:
        with driver.container(volume) as first:
            with driver.container(volume) as second:
                execute(first, "echo one > /data/file")
                assert execute(second, "cat /data/file") == "one\n"
                assert len(driver.file_systems(volume)) == 1
                assert driver.status(volume)["references"] == 2
            assert execute(first, "cat /data/file") == "one\n"
        assert driver.file_systems(volume) == set()


def test_a_source_is_passed_through(driver: Driver, source: Path) -> None:
    """Host and container see each other's changes, with cache=never at once."""
    (source / "from-host").write_text("host")
    with (
        driver.volume(source=str(source), cache="never") as volume,
        driver.container(volume) as container,
    ):
        assert execute(container, "cat /data/from-host") == "host"
        execute(container, "echo container > /data/from-container")
        assert (source / "from-container").read_text() == "container\n"
        (source / "from-host").write_text("changed")
        assert execute(container, "cat /data/from-host") == "changed"


def test_a_user_of_the_container_owns_its_new_files(driver: Driver, source: Path) -> None:
    source.chmod(0o777)
    with driver.volume(source=str(source)) as volume:
        driver.run(
            volume, "touch /data/file; mkdir /data/dir; ln -s file /data/link", user="1234:2345"
        )

    owners = {path.name: (path.lstat().st_uid, path.lstat().st_gid) for path in source.iterdir()}
    assert owners == dict.fromkeys(("file", "dir", "link"), (1234, 2345))


def test_a_user_gets_no_more_than_the_host_grants(driver: Driver, source: Path) -> None:
    (source / "secret").write_text("for root")
    (source / "secret").chmod(0o600)
    with driver.volume(source=str(source)) as volume:
        with pytest.raises(docker.errors.ContainerError, match="Permission denied"):
            driver.run(volume, "cat /data/secret", user="1234:2345")
        with pytest.raises(docker.errors.ContainerError, match="Permission denied"):
            driver.run(volume, "touch /data/new", user="1234:2345")


def test_a_supplementary_group_may_create_in_its_team_directory(
    driver: Driver, source: Path
) -> None:
    team = source / "team"
    team.mkdir()
    os.chown(team, 0, 4321)
    team.chmod(0o2770)
    with driver.volume(source=str(source)) as volume:
        driver.run(volume, "touch /data/team/file", user="1234:2345", group_add=["4321"])

    created = (team / "file").stat()
    assert (created.st_uid, created.st_gid) == (1234, 4321)


def test_an_empty_volume_gets_the_content_of_the_image(driver: Driver) -> None:
    """The engine copies names, modes, owners and links, those of the volume's root too."""
    with driver.volume() as volume:
        assert driver.run(volume, "cat /seed/link", at="/seed") == "seeded\n"

        root = driver.own_directory(volume)
        seeded = (root / "sub" / "file").stat()
        assert (seeded.st_uid, seeded.st_gid, stat.S_IMODE(seeded.st_mode)) == (1234, 2345, 0o640)
        assert (root.stat().st_gid, stat.S_IMODE(root.stat().st_mode)) == (2345, 0o2775)


def test_ro_refuses_writes(driver: Driver) -> None:
    with driver.volume() as volume:
        driver.run(volume, "echo kept > /data/file")
        with pytest.raises(docker.errors.ContainerError, match="Read-only file system"):
            driver.run(volume, "echo lost > /data/file", mode="ro")
        assert driver.run(volume, "cat /data/file", mode="ro") == "kept\n"


def test_a_readonly_volume_refuses_writes(driver: Driver, source: Path) -> None:
    with (
        driver.volume(source=str(source), readonly="") as volume,
        pytest.raises(docker.errors.ContainerError, match="Read-only file system"),
    ):
        driver.run(volume, "touch /data/file")
    assert list(source.iterdir()) == []


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_docker_cp_in_and_out(driver: Driver, running: bool) -> None:
    """On a running container, dockerd mounts again with the container's mount id, and unmounts."""
    with driver.volume() as volume, driver.container(volume) as container:
        if not running:
            container.stop(timeout=0)
        assert container.put_archive("/data", archive("copied", b"in"))
        assert (driver.own_directory(volume) / "copied").read_bytes() == b"in"
        chunks, _ = container.get_archive("/data/copied")
        assert _content(b"".join(chunks)) == b"in"
        if running:
            assert execute(container, "cat /data/copied") == "in"


@pytest.mark.slow
def test_removal_deletes_the_volumes_own_data(driver: Driver) -> None:
    with driver.volume() as volume:
        driver.run(volume, "mkdir -p /data/a/b; echo x > /data/a/b/c; ln -s /etc /data/etc")
        directory = driver.own_directory(volume)
        assert directory.is_dir()
        driver.client.api.remove_volume(volume.name)
        assert not directory.exists()
        assert Path("/etc/passwd").exists()


@pytest.mark.slow
def test_removal_leaves_a_source_alone(driver: Driver, source: Path) -> None:
    (source / "kept").write_text("kept")
    with driver.volume(source=str(source)) as volume:
        driver.run(volume, "cat /data/kept")
        driver.client.api.remove_volume(volume.name)
    assert (source / "kept").read_text() == "kept"


def test_a_volume_in_use_is_not_removed(driver: Driver) -> None:
    with (
        driver.volume() as volume,
        driver.container(volume),
        pytest.raises(docker.errors.APIError, match="in use"),
    ):
        driver.client.api.remove_volume(volume.name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cahce": "auto"}, ["'cahce'", "not known", "cache"]),
        ({"cache": "sometimes"}, ["'cache'", "'sometimes'", "never, metadata, auto or always"]),
        ({"entry_timeout": "soon"}, ["'entry_timeout'", "'soon'", "seconds"]),
        ({"source": "/does/not/exist"}, ["'source'", "'/does/not/exist'", "does not exist"]),
        ({"source": "/etc/passwd"}, ["'source'", "'/etc/passwd'", "not a directory"]),
        ({"source": "relative/path"}, ["'source'", "'relative/path'", "absolute"]),
    ],
)
def test_a_refusal_names_the_option_and_stores_nothing(
    driver: Driver, options: dict[str, str], words: list[str]
) -> None:
    name = f"t-{uuid.uuid4().hex[:12]}"
    with pytest.raises(docker.errors.APIError) as refusal:
        driver.client.volumes.create(name, driver=driver.name, driver_opts=options)

    explanation = str(refusal.value.explanation)
    assert [word for word in words if word not in explanation] == [], explanation
    assert driver.client.volumes.list(filters={"driver": driver.name}) == []


def test_a_source_inside_a_volume_is_refused(driver: Driver) -> None:
    with driver.volume() as volume, driver.container(volume):
        mountpoint = driver.mountpoint(volume)
        with pytest.raises(docker.errors.APIError, match="lies in a volume of passfs"):
            driver.client.volumes.create(
                "t-inside", driver=driver.name, driver_opts={"source": mountpoint}
            )


@pytest.mark.parametrize("name", ["a b", "a/../b", "/abs", ".", "-leading", "x" * 201, "v"])
def test_a_name_that_docker_does_not_accept_is_refused(driver: Driver, name: str) -> None:
    with pytest.raises(docker.errors.APIError, match="is not accepted; expected 2 to 200 char"):
        driver.client.volumes.create(name, driver=driver.name)
    assert driver.client.volumes.list(filters={"driver": driver.name}) == []


def test_a_name_may_have_200_characters(driver: Driver) -> None:
    volume = driver.client.volumes.create("x" * 200, driver=driver.name)
    try:
        driver.run(volume, "echo kept > /data/file")
        assert (driver.own_directory(volume) / "file").read_text() == "kept\n"
    finally:
        driver.client.api.remove_volume(volume.name)


def _content(archive: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        member = members.extractfile(members.next() or pytest.fail("empty archive"))
        assert member is not None
        return member.read()
