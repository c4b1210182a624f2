"""source_check.py: after a start Get reports missing sources, and no request waits for that."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from passthrough.linux import syscalls
from plugin.admin.source import HostView
from plugin.errors import InvalidOption
from plugin.volumes.source_check import CONCURRENT_CHECKS
from plugin.volumes.volume_locks import SOURCE_DEADLINE_S
from tests.support.fakes.dockerd import Dockerd, plugin
from tests.support.fakes.worker import command
from tests.support.tools.mounts import mounted_on

MS_PRIVATE, MS_SHARED = 1 << 18, 1 << 20  # mount(2)
SERVE = command("serve")


async def error_of(dockerd: Dockerd, name: str) -> str:
    """Return the error in the status of a volume."""
    return str((await dockerd.volume(name))["Status"].get("error", ""))


async def until(dockerd: Dockerd, name: str, words: str) -> None:
    """Wait until the error in the status of a volume has *words*."""
    while words not in await error_of(dockerd, name):
        await trio.lowlevel.checkpoint()


async def create(directory: Path, sources: dict[str, Path]) -> None:
    """Run a plugin that creates volumes with *sources*, and ends."""
    async with plugin(directory, SERVE) as dockerd:
        for name, source in sources.items():
            source.mkdir()
            await dockerd.do("Create", Name=name, Opts={"source": str(source)})


@pytest.mark.logs("volume gone: cannot be mounted: option 'source': '.*' does not exist")
async def test_status_reports_a_source_that_is_missing_after_a_restart(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    await create(tmp_path, {"gone": gone, "there": tmp_path / "there"})
    gone.rmdir()
    async with plugin(tmp_path, SERVE) as dockerd:
        with trio.fail_after(10):
            await until(dockerd, "gone", f"option 'source': '{gone}' does not exist")
        assert await error_of(dockerd, "there") == ""
        assert (await dockerd.call("Mount", Name="gone", ID="a")).status == 400
        gone.mkdir()
        await dockerd.do("Mount", Name="gone", ID="a")
        assert await error_of(dockerd, "gone") == ""


async def test_status_reports_a_volume_s_directory_that_is_missing_after_a_restart(
    tmp_path: Path,
) -> None:
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Create", Name="vol")
    (tmp_path / "data" / "volumes" / "vol").rmdir()
    async with plugin(tmp_path, SERVE) as dockerd:
        with trio.fail_after(10):
            await until(dockerd, "vol", "No such file or directory")
        await dockerd.do("Remove", Name="vol")


async def test_status_reports_a_lost_mount_beside_a_missing_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    await create(tmp_path, {"vol": source})
    async with plugin(tmp_path, SERVE) as dockerd:
        await dockerd.do("Mount", Name="vol", ID="a")
    source.rmdir()
    async with plugin(tmp_path, SERVE) as dockerd:
        with trio.fail_after(10):
            await until(dockerd, "vol", "does not exist")
        assert "the plugin ended while the volume was mounted" in await error_of(dockerd, "vol")


class SilentSource:
    """A check that blocks until `ended` is set."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.checked: list[str] = []

    def check(self, source: str) -> None:
        self.checked.append(source)
        self.ended.wait()
        raise InvalidOption("it has been away for too long")


@pytest.fixture
def silent() -> Iterator[SilentSource]:
    silent = SilentSource()
    yield silent
    silent.ended.set()


async def test_status_reports_a_source_that_does_not_answer_and_requests_do_not_wait(
    tmp_path: Path,
    silent: SilentSource,
    mock_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources = {f"v{number}": tmp_path / f"s{number}" for number in range(CONCURRENT_CHECKS + 3)}
    await create(tmp_path, sources)
    monkeypatch.setattr(HostView, "check", lambda _, source, __: silent.check(source))
    async with plugin(tmp_path, SERVE) as dockerd:
        while len(silent.checked) < CONCURRENT_CHECKS:
            await trio.lowlevel.checkpoint()
        assert await dockerd.names() == set(sources)
        mock_clock.jump(SOURCE_DEADLINE_S)
        for name in list(sources)[:CONCURRENT_CHECKS]:
            await until(dockerd, name, "its source has not answered within 10 s")
        # Their threads hang, and no other check has started.
        paths = [str(source) for source in sources.values()]
        assert sorted(silent.checked) == paths[:CONCURRENT_CHECKS]

        await dockerd.do("Create", Name="own")
        await dockerd.do("Mount", Name="own", ID="a")
        await dockerd.do("Remove", Name="v0")
        silent.ended.set()
        for name in list(sources)[1:]:
            await until(dockerd, name, "it has been away for too long")


async def test_status_notes_a_private_source_until_its_mount_is_shared(tmp_path: Path) -> None:
    """Create, Mount and each start check the source."""
    source = tmp_path / "disk"
    source.mkdir()

    async def private(dockerd: Dockerd) -> list[str]:
        notes = (await dockerd.volume("vol"))["Status"]["notes"]
        return [note for note in notes if "mount is private on the host" in note]

    with mounted_on(source, "tmpfs"):
        syscalls.mount(b"none", os.fsencode(source), b"none", MS_PRIVATE, b"")
        async with plugin(tmp_path, SERVE) as dockerd:
            await dockerd.do("Create", Name="vol", Opts={"source": str(source)})
            assert len(await private(dockerd)) == 1
            syscalls.mount(b"none", os.fsencode(source), b"none", MS_SHARED, b"")
            await dockerd.do("Mount", Name="vol", ID="a")
            assert await private(dockerd) == []
            await dockerd.do("Unmount", Name="vol", ID="a")
            syscalls.mount(b"none", os.fsencode(source), b"none", MS_PRIVATE, b"")
        async with plugin(tmp_path, SERVE) as dockerd:
            while not await private(dockerd):
                await trio.lowlevel.checkpoint()
