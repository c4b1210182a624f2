"""podman as a client of the volume plugin: it uses the same protocol in another way.

- podman has no daemon: each command activates the plugin and ends.
- The mount id is the same for all containers, because podman counts the users of a volume itself.
- It mounts once for the copy of an image's content, and once more for the container.
- Each call has a timeout of 5 s, and of an answer podman reads only the status.

The plugin is `passfs serve`, as on a host.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.linux import mountinfo
from tests.support.tools.driver import Service
from tests.support.tools.podman import DRIVER, IMAGE, Podman
from tests.support.tools.processes import children

pytestmark = pytest.mark.usefixtures("service")
PROCESSES_END_S = 10.0


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Provide the directory of all files; at the end nothing may be mounted below it."""
    directory = Path(tempfile.mkdtemp(prefix="passfs-podman-", dir="/var/tmp"))
    yield directory
    assert mounts_below(directory) == []
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def podman(directory: Path) -> Iterator[Podman]:
    if shutil.which("podman") is None:
        pytest.fail("there is no podman; `make test` installs it")
    podman = Podman(directory, directory / "p.sock")
    podman.import_image(directory)
    yield podman
    podman.do("rm", "--all", "--force", "--time=0")
    podman.do("rmi", "--all", "--force")


@pytest.fixture(autouse=True)
def nothing_left_behind(podman: Podman, directory: Path) -> Iterator[None]:
    """Check that no container, volume, mount or process outlives a test.

    This check replaces that for Docker, which needs an engine. The processes by which podman cleans
    up after a container become children of this process.
    """
    processes = children()
    yield
    deadline = time.monotonic() + PROCESSES_END_S
    while (left := children() - processes) and time.monotonic() < deadline:
        for pid in left:
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)

    assert children() - processes == set()
    assert podman.do("ps", "--all", "--quiet") == ""
    assert podman.volumes() == set()
    assert mounts_below(directory) == []


@pytest.fixture
def service(directory: Path) -> Iterator[Service]:
    service = Service(directory / "p.sock", directory)
    service.start()
    yield service
    service.stop()


@pytest.fixture
def source(directory: Path, request: pytest.FixtureRequest) -> Path:
    """Provide a directory of the host's that all users may write to."""
    directory.chmod(0o711)
    source = directory / f"source-of-{request.node.name}"
    source.mkdir()
    source.chmod(0o777)
    return source


def mounts_below(directory: Path) -> list[str]:
    return [
        os.fsdecode(mount.target)
        for mount in mountinfo.read()
        if mountinfo.is_below(mount.target, os.fsencode(directory))
    ]


def test_a_volume_is_created_mounted_and_removed(podman: Podman, source: Path) -> None:
    podman.create("vol", source=str(source), cache="never")
    volume = podman.inspect("vol")
    assert volume["Driver"] == DRIVER
    assert volume["Options"] == {"source": str(source), "cache": "never"}
    assert volume["Status"]["options"]["cache"] == "never"
    assert volume["Status"]["source"] == str(source)
    assert podman.volumes() == {"vol"}

    assert podman.run("vol", "id -u; echo from-podman > /data/file", "--user=1234:2345") == "1234\n"
    written = (source / "file").stat()
    assert (written.st_uid, written.st_gid) == (1234, 2345)
    assert (source / "file").read_text() == "from-podman\n"
    assert podman.inspect("vol")["Status"]["mounted"] is False

    podman.do("volume", "rm", "vol")
    assert podman.volumes() == set()
    assert (source / "file").exists()


def test_two_containers_share_one_mount(podman: Podman, directory: Path, source: Path) -> None:
    podman.create("vol", source=str(source))
    podman.do("run", "--detach", "--name=a", "--volume=vol:/data", IMAGE, "sleep", "infinity")
    podman.do("exec", "a", "sh", "-c", "echo from-a > /data/a")
    assert podman.run("vol", "cat /data/a; echo from-b > /data/b") == "from-a\n"
    # The end of the second container has left the mount to the first.
    assert podman.do("exec", "a", "cat", "/data/b") == "from-b\n"
    assert mounts_below(directory / "mounts") == [str(directory / "mounts" / "vol")]
    assert "being used" in podman.refused("volume", "rm", "vol")

    podman.do("rm", "--force", "--time=0", "a")
    assert mounts_below(directory) == []
    podman.do("volume", "rm", "vol")


def test_an_empty_volume_gets_the_content_of_the_image(podman: Podman, directory: Path) -> None:
    podman.create("vol")
    assert podman.run("vol", "cat /seed/file", at="/seed") == "seeded\n"
    copied = directory / "data" / "volumes" / "vol" / "file"
    assert (copied.stat().st_uid, copied.stat().st_gid) == (1234, 2345)
    podman.do("volume", "rm", "vol")
    assert not copied.exists()


def test_podman_shows_a_refusal(podman: Podman, source: Path) -> None:
    """Refusals at creation and at the start of a container; a later container starts."""
    refused = podman.refused("volume", "create", f"--driver={DRIVER}", "--opt=cash=never", "vol")
    assert "option 'cash': is not known, given here as 'never'; expected cache, perhaps" in refused
    assert podman.volumes() == set()

    podman.create("vol", source=str(source))
    source.rename(source.with_suffix(".away"))
    refused = podman.refused("run", "--rm", "--volume=vol:/data", IMAGE, "id")
    assert f"option 'source': '{source}' does not exist" in refused
    source.with_suffix(".away").rename(source)
    assert podman.run("vol", "echo served > /data/file; cat /data/file") == "served\n"
    podman.do("rm", "--all", "--force", "--time=0")
    podman.do("volume", "rm", "vol")


def test_volumes_outlive_a_restart_of_the_plugin(podman: Podman, service: Service) -> None:
    podman.create("vol", cache="metadata")
    podman.run("vol", "echo kept > /data/file")
    service.stop()
    service.start()

    assert podman.inspect("vol")["Status"]["options"]["cache"] == "metadata"
    assert podman.run("vol", "cat /data/file") == "kept\n"
    podman.do("volume", "rm", "vol")
