"""The managed plugin as it is installed: the size of its root file system, and its start."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.support.tools.driver import Driver
from tests.support.tools.starting import STARTS, limit_s, waited_s

pytestmark = pytest.mark.parametrize("driver", ["managed"], indirect=True)

LIMIT_MB = 120
SHOWN = 25
DEPTH = 4
SOCKET = "run/docker/plugins/passfs.sock"


def files(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield what lies on the file system of *directory*; of hard links the first."""
    seen = set()
    device = directory.stat().st_dev
    for parent, names, others in os.walk(directory):
        names[:] = [name for name in names if os.lstat(os.path.join(parent, name)).st_dev == device]
        for name in others:
            path = Path(parent, name)
            entry = path.lstat()
            if entry.st_ino not in seen:
                seen.add(entry.st_ino)
                yield path, entry


def test_the_root_file_system_has_less_than_120_mb(
    client: docker.DockerClient, driver: Driver
) -> None:
    root = root_of(client, driver)
    parts = Counter[Path]()
    for path, entry in files(root):
        parts[Path(*path.relative_to(root).parts[:DEPTH])] += entry.st_size

    assert any(path.name == "passfs" for path in root.glob("opt/passfs/bin/*"))
    largest = [f"{size / 1e6:6.1f} MB  {path}" for path, size in parts.most_common(SHOWN)]
    assert parts.total() / 1e6 < LIMIT_MB, "\n".join(largest)


def test_the_plugin_listens_within_half_a_second(
    client: docker.DockerClient, driver: Driver
) -> None:
    """From the start of its process until its socket is there, without waits for a processor."""
    for _ in range(STARTS):
        limit = limit_s()
        driver.restart()
        root = root_of(client, driver)
        pid = min(int(path.name) for path in Path("/proc").glob("[0-9]*") if has_root(path, root))
        socket = Path(f"/proc/{pid}/root", SOCKET)
        seconds = socket.stat().st_ctime - started_at(pid) - waited_s(pid)
        if seconds < limit:
            return
    pytest.fail(f"the last start took {seconds:.2f} s, and the limit is {limit:.2f} s")


def root_of(client: docker.DockerClient, driver: Driver) -> Path:
    identity = client.api.inspect_plugin(driver.name)["Id"]
    return Path(client.info()["DockerRootDir"], "plugins", identity, "rootfs")


def has_root(process: Path, root: Path) -> bool:
    try:
        return (process / "root").samefile(root)
    except OSError:  # it has ended
        return False


def started_at(pid: int) -> float:
    """Return the time of the start, which /proc counts in 10 ms from the boot: proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot
