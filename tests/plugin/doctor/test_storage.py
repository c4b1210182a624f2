"""The checks of the data directory, on real file systems."""

from pathlib import Path

import pytest

from passthrough.linux import syscalls
from plugin.doctor import storage
from plugin.doctor.facts import EngineFacts, ServiceFacts
from plugin.doctor.finding import State
from tests.support.tools.doctor import facts, plugin
from tests.support.tools.mounts import mounted_on


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data directory of the plugin."""
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    return directory


def test_a_data_directory_has_a_file_system_and_space(tmp_path: Path, data: Path) -> None:
    with mounted_on(data, "tmpfs", "mode=700,size=1g,nr_inodes=5000"):
        found = storage.data_directory(facts(tmp_path))
    assert (found.state, found.found) == (
        State.OK,
        f"{data} on tmpfs, 1024 MiB and 4999 inodes free",
    )


def test_a_data_directory_may_be_a_symbolic_link(tmp_path: Path, data: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    data.rmdir()
    data.symlink_to(disk)
    with mounted_on(disk, "tmpfs", "mode=700,size=1g,nr_inodes=5000"):
        assert f"{data} on tmpfs, 1024 MiB" in storage.data_directory(facts(tmp_path)).found


@pytest.mark.parametrize(
    ("options", "state", "meaning"),
    [
        ("mode=755,size=1g", State.WARNING, "users of the host may reach the files"),
        ("mode=700,size=1g,nr_inodes=10", State.WARNING, "the disk is almost full"),
        ("mode=700,size=1g,nr_inodes=1", State.ERROR, "containers get ENOSPC"),
    ],
)
def test_a_data_directory_with_a_fault(
    tmp_path: Path, data: Path, options: str, state: State, meaning: str
) -> None:
    with mounted_on(data, "tmpfs", options):
        found = storage.data_directory(facts(tmp_path))
    assert (found.state, meaning in found.meaning) == (state, True)


def test_a_data_directory_of_another_user(tmp_path: Path, data: Path) -> None:
    with mounted_on(data, "tmpfs", "mode=700,uid=7,size=1g"):
        found = storage.data_directory(facts(tmp_path, plugin=plugin()))
        assert storage.data_directory(facts(tmp_path)).state is State.OK  # it may be a rootless one
    assert (found.state, found.remedy) == (State.WARNING, f"chown 0:0 {data}")


def test_a_full_disk(tmp_path: Path, data: Path) -> None:
    with mounted_on(data, "tmpfs", "mode=700,size=1m"):
        (data / "full").write_bytes(bytes(1 << 20))
        found = storage.data_directory(facts(tmp_path))
    assert (found.state, found.remedy) == (State.ERROR, f"free space in {data}")


def test_a_data_directory_that_is_read_only(tmp_path: Path, data: Path) -> None:
    with mounted_on(data, "tmpfs", "mode=700", flags=syscalls.MS_RDONLY):
        found = storage.data_directory(facts(tmp_path))
    assert (found.state, found.remedy.partition(";")[0]) == (
        State.ERROR,
        f"mount -o remount,rw {data}",
    )


def test_a_file_in_place_of_the_data_directory(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert storage.data_directory(facts(tmp_path)).state is State.ERROR


def test_a_missing_data_directory_is_an_error_if_passfs_is_installed(tmp_path: Path) -> None:
    assert storage.data_directory(facts(tmp_path)).state is State.NOTE
    for installed in (
        {"engine": EngineFacts(name="passfs:latest")},
        {"service": ServiceFacts(unit="/etc/systemd/system/passfs.service")},
    ):
        found = storage.data_directory(facts(tmp_path, **installed))
        assert (found.state, found.remedy.partition(",")[0]) == (
            State.ERROR,
            f"mkdir -m 0700 -p {tmp_path}/data",
        )


def test_a_file_system_with_file_handles_and_one_without(tmp_path: Path, data: Path) -> None:
    with mounted_on(data, "tmpfs"):
        assert storage.file_handles(facts(tmp_path)).state is State.OK
    with mounted_on(data, "ramfs"):
        found = storage.file_handles(facts(tmp_path))
    assert (found.state, "ext4, xfs or btrfs" in found.remedy) == (State.NOTE, True)


def test_file_handles_of_a_missing_directory_are_no_fault(tmp_path: Path) -> None:
    assert storage.file_handles(facts(tmp_path)).state is State.NOTE
