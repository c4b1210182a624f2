"""The checks of mounts, with mount tables of other machines; test_program.py has real mounts."""

from pathlib import Path

import pytest

from plugin.doctor import mounts
from plugin.doctor.finding import State
from tests.support.tools.doctor import PLUGIN_PID, facts, plugin, volume

HOST = """\
20 1 8:1 / / rw shared:1 - ext4 /dev/sda rw
21 20 8:2 / /srv rw shared:2 - ext4 /dev/sdb rw
30 20 0:52 / /run/m/db rw shared:7 - fuse.passfs passfs rw
"""
PRIVATE = "40 21 0:60 / /srv/disk rw - tmpfs none rw\n"
# The worker's root is /srv/db of the host.
WORKER = "70 69 8:2 /db / rw - ext4 /dev/sdb rw\n"
WORKER_PID = 9
SOURCE = "/srv/db"
STATUS = {
    "mounted": True,
    "worker_pid": WORKER_PID,
    "source": SOURCE,
    "options": {"sandbox": "namespace"},
}


def process(directory: Path, pid: int | str, table: str, *connections: int, fds: int = 0) -> None:
    """Make a process with a mount table, and descriptors of /dev/fuse."""
    own = directory / "proc" / str(pid)
    (own / "ns").mkdir(parents=True)
    (own / "ns/mnt").symlink_to(f"mnt:[{table.__hash__()}]")
    (own / "mountinfo").write_text(table)
    for kind in ("fd", "fdinfo"):
        (own / kind).mkdir()
    for number, connection in enumerate([*connections, *[None] * fds]):
        (own / "fd" / str(number)).symlink_to("/dev/fuse")
        text = "pos:\t0\n" + (f"fuse_connection:\t{connection}\n" if connection else "")
        (own / "fdinfo" / str(number)).write_text(text)


def test_a_mount_with_a_worker_is_alive(tmp_path: Path) -> None:
    process(tmp_path, "self", HOST)
    process(tmp_path, PLUGIN_PID, HOST, 52)
    found = mounts.dead(facts(tmp_path))
    assert (found.state, found.found) == (State.OK, "mounts: 1, all served")


@pytest.mark.parametrize("others", [(), (53,)])
def test_a_mount_without_a_worker_is_dead(tmp_path: Path, others: tuple[int, ...]) -> None:
    process(tmp_path, "self", HOST)
    process(tmp_path, PLUGIN_PID, HOST, *others)
    found = mounts.dead(facts(tmp_path))
    assert (found.state, found.found) == (State.WARNING, "without a worker: /run/m/db")
    assert "umount -l /run/m/db" in found.remedy
    assert "/sys/fs/fuse/connections/52/abort" in found.remedy


def test_a_dead_mount_in_a_container_is_named_by_a_process(tmp_path: Path) -> None:
    process(tmp_path, "self", "20 1 8:1 / / rw shared:1 - ext4 /dev/sda rw\n")
    process(tmp_path, 8, "50 40 0:52 / /data rw - fuse.passfs passfs rw\n")
    process(tmp_path, 11, "50 40 0:52 / /data rw - fuse.passfs passfs rw\n")
    found = mounts.dead(facts(tmp_path))
    assert found.found == "without a worker: /data (in the namespace of process 8)"


def test_a_kernel_that_tells_no_connections(tmp_path: Path) -> None:
    process(tmp_path, "self", HOST)
    process(tmp_path, PLUGIN_PID, HOST, fds=2)
    assert mounts.dead(facts(tmp_path)).state is State.NOTE


def test_a_machine_without_mounts_of_passfs(tmp_path: Path) -> None:
    process(tmp_path, "self", "20 1 8:1 / / rw shared:1 - ext4 /dev/sda rw\n")
    assert mounts.dead(facts(tmp_path)).found == "no mount of passfs"


@pytest.mark.parametrize(
    ("worker", "table", "state"),
    [
        (WORKER, HOST, State.OK),
        # A mount in the source does not hide the source.
        (WORKER, f"{HOST}40 21 0:60 / /srv/db/inner rw - tmpfs none rw\n", State.OK),
        (WORKER, f"{HOST}40 21 0:60 / /srv/db rw - tmpfs none rw\n", State.WARNING),
        # The source is a mount, and a later mount on a directory above hides it.
        ("70 69 8:2 / / rw - ext4 /dev/sdb rw\n", HOST.replace("/srv", SOURCE), State.OK),
        (
            "70 69 8:2 / / rw - ext4 /dev/sdb rw\n",
            f"{HOST.replace('/srv', SOURCE)}40 20 0:60 / /srv rw - tmpfs none rw\n",
            State.WARNING,
        ),
        ("70 69 8:2 /moved / rw - ext4 /dev/sdb rw\n", HOST, State.WARNING),
        ("70 69 8:2 /db//deleted / rw - ext4 /dev/sdb rw\n", HOST, State.WARNING),
    ],
)
def test_the_directory_at_the_path_of_a_source(
    tmp_path: Path, worker: str, table: str, state: State
) -> None:
    process(tmp_path, "self", table)
    process(tmp_path, WORKER_PID, worker)
    found = mounts.hidden(facts(tmp_path, plugin=plugin(volume("db", **STATUS))))
    assert found.state is state, found
    assert ("db (/srv/db)" in found.found) == (state is State.WARNING)


@pytest.mark.parametrize(
    "status",
    [
        STATUS | {"worker_pid": 12},
        STATUS | {"options": {"sandbox": "none"}},
        STATUS | {"source": "own directory"},
    ],
)
def test_a_volume_without_a_known_directory_is_named_as_not_checked(
    tmp_path: Path, status: dict[str, object]
) -> None:
    process(tmp_path, "self", HOST)
    process(tmp_path, WORKER_PID, WORKER)
    apart = volume("apart", **status)

    for others in ([], [volume("db", **STATUS)]):
        found = mounts.hidden(facts(tmp_path, plugin=plugin(apart, *others)))
        assert found.state is State.NOTE
        checked = "checked: 1, each with the directory at its path; " if others else ""
        assert found.found == f"{checked}not checked: apart"


@pytest.mark.parametrize("status", [{}, STATUS | {"mounted": False, "worker_pid": 0}])
def test_no_volume_is_mounted(tmp_path: Path, status: dict[str, object]) -> None:
    process(tmp_path, "self", HOST)
    found = mounts.hidden(facts(tmp_path, plugin=plugin(volume("db", **status))))
    assert (found.state, found.found) == (State.OK, "no volume is mounted")


@pytest.mark.parametrize(("source", "state"), [("/srv/db", State.OK), ("/srv/disk", State.WARNING)])
def test_a_private_mount_above_a_source(tmp_path: Path, source: str, state: State) -> None:
    process(tmp_path, "self", HOST + PRIVATE)
    found = mounts.propagation(facts(tmp_path, plugin=plugin(volume("db", source=source))))
    assert found.state is state
    assert ("mount --make-rshared /srv/disk" in found.remedy) == (state is State.WARNING)


@pytest.mark.parametrize(
    ("table", "state"), [(HOST, State.OK), (HOST.replace("0:52", "0:53"), State.ERROR)]
)
def test_mounts_of_the_plugin_are_on_the_host(tmp_path: Path, table: str, state: State) -> None:
    process(tmp_path, "self", HOST)
    process(tmp_path, PLUGIN_PID, table)
    assert mounts.visible(facts(tmp_path, plugin=plugin())).state is state
    assert mounts.visible(facts(tmp_path)).state is State.OK
