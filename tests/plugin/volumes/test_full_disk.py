"""A full disk: volumes can be mounted, unmounted and removed, but not created."""

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

import pytest

from plugin import reserve
from plugin.reserve import HiddenReserve, LastingReserve
from tests.support.tools.disks import ext4
from tests.support.tools.mounts import bound, mounted_on
from tests.support.tools.service import Service

pytestmark = pytest.mark.full

SMALL_BYTES = 24 << 20
SMALL_INODES = 400
LIMIT_S = 20.0


@pytest.fixture(params=["ext4", "tmpfs"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Mount a small file system for all directories of a plugin."""
    directory = tmp_path / "small"
    directory.mkdir()
    with (
        ext4(directory, size=SMALL_BYTES, inodes=SMALL_INODES, busy=True)
        if request.param == "ext4"
        else mounted_on(directory, "tmpfs", f"size={SMALL_BYTES},nr_inodes={SMALL_INODES}")
    ):
        yield directory


@pytest.fixture
def service(small: Path, tmp_path: Path) -> Iterator[Service]:
    """Run a plugin with three volumes, none mounted; its socket and log are on another disk."""
    service = Service(tmp_path / "plugin")
    with ExitStack() as undo:
        for name in ("data", "mounts", "source"):
            (small / name).mkdir()
            undo.enter_context(bound(small / name, service.directory / name))
        service.start()
        undo.callback(end, service)
        expect(service, "Create", "aa")
        expect(service, "Create", "bb")
        expect(service, "Create", "given", Opts={"source": str(service.directory / "source")})
        yield service


def end(service: Service) -> None:
    if service.process is not None:
        service.end(signal.SIGTERM)


def expect(service: Service, verb: str, name: str, **fields: object) -> None:
    answer = service.call(f"VolumeDriver.{verb}", Name=name, **fields)
    assert not answer.get("Err"), (verb, name, answer)


def names(service: Service) -> set[str]:
    return {volume["Name"] for volume in service.call("VolumeDriver.List")["Volumes"]}


def repeat_until_full(take: Callable[[], object]) -> None:
    """Call *take* until the disk is full."""
    try:
        while True:
            take()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def take_all_inodes(directory: Path) -> None:
    free = count()
    repeat_until_full(lambda: (directory / f"empty{next(free)}").touch(exist_ok=False))


def take_all_bytes(directory: Path) -> None:
    fd = os.open(directory / "big", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_SYNC)
    try:
        for size in (1 << 20, 1 << 12, 1):
            repeat_until_full(lambda size=size: os.write(fd, b"x" * size))  # type: ignore[misc]
    finally:
        os.close(fd)


def take_everything(directory: Path) -> None:
    take_all_bytes(directory)
    with suppress(FileExistsError):
        take_all_inodes(directory)


FILL = pytest.mark.parametrize("fill", [take_everything, take_all_inodes, take_all_bytes])
Fill = Callable[[Path], None]


def own(service: Service, name: str) -> Path:
    return service.directory / "data" / "volumes" / name


def pieces(service: Service) -> int:
    return len(list((service.directory / "data" / reserve.NAME).iterdir()))


def becomes_empty(directory: Path) -> bool:
    limit = time.monotonic() + LIMIT_S
    while list(directory.iterdir()) and time.monotonic() < limit:
        time.sleep(0.01)
    return not list(directory.iterdir())


@FILL
def test_volumes_can_be_mounted_unmounted_and_removed_on_a_full_disk(
    service: Service, fill: Fill
) -> None:
    fill(own(service, "bb"))
    for _ in "12":
        for name in ("aa", "bb", "given"):
            expect(service, "Mount", name, ID="i")
            expect(service, "Mount", name, ID="j")
        assert service.mounted() == ["aa", "bb", "given"]
        for name in ("aa", "bb", "given"):
            expect(service, "Unmount", name, ID="i")
            expect(service, "Unmount", name, ID="j")
        assert service.mounted() == []
    for name in ("given", "aa", "bb"):
        expect(service, "Remove", name)
    assert names(service) == set()
    assert becomes_empty(service.directory / "data" / "trash")
    expect(service, "Create", "again")
    expect(service, "Mount", "again", ID="i")
    expect(service, "Unmount", "again", ID="i")
    assert pieces(service) == reserve.PIECES, "the reserve is whole again"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_the_plugin_starts_on_a_full_disk(service: Service, end: signal.Signals) -> None:
    """Also if another program takes the room that the end of the plugin has freed."""
    take_everything(own(service, "bb"))
    expect(service, "Mount", "aa", ID="i")
    service.end(end)
    take_everything(service.directory / "source")
    service.start()
    assert names(service) == {"aa", "bb", "given"}
    expect(service, "Mount", "aa", ID="i")
    expect(service, "Mount", "bb", ID="i")
    for name in ("aa", "bb"):
        expect(service, "Unmount", name, ID="i")
        expect(service, "Remove", name)


@pytest.mark.parametrize("lost", [0, 5])
def test_the_plugin_starts_on_a_full_disk_with_a_part_of_the_reserve(
    service: Service, lost: int
) -> None:
    """An earlier plugin has freed a piece, and another program has taken the room."""
    take_everything(own(service, "bb"))
    service.end(signal.SIGKILL)
    (service.directory / "data" / reserve.NAME / str(lost)).unlink()
    take_everything(service.directory / "source")
    service.start()
    assert pieces(service) == reserve.PIECES - 1
    for name in ("aa", "bb"):
        expect(service, "Mount", name, ID="i")
        expect(service, "Unmount", name, ID="i")
        expect(service, "Remove", name)


@FILL
def test_create_is_refused_on_a_full_disk_and_leaves_no_files(service: Service, fill: Fill) -> None:
    """Both with a directory of its own and with a source."""
    fill(own(service, "bb"))
    sourced = {"source": str(service.directory / "source")}
    before = set(os.listdir(service.directory / "data"))
    for options in (*[{}, sourced] * 4,):
        answer = service.call("VolumeDriver.Create", Name="more", Opts=options)
        assert "No space left" in answer["Err"] or "no room is left" in answer["Err"], answer
    assert names(service) == {"aa", "bb", "given"}
    assert set(os.listdir(service.directory / "data")) == before
    assert set(os.listdir(service.directory / "data" / "volumes")) == {"aa", "bb"}
    assert os.listdir(service.directory / "data" / "trash") == []
    assert pieces(service) == reserve.PIECES, "Create does not use the reserve"
    expect(service, "Mount", "aa", ID="i")
    expect(service, "Unmount", "aa", ID="i")


# The reserve.


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_reserve_frees_pieces_until_the_call_succeeds(tmp_path: Path, number: int) -> None:
    """A full quota counts as a full disk."""
    kept = LastingReserve(tmp_path)
    left: list[int] = []

    def call() -> str:
        left.append(len(list((tmp_path / reserve.NAME).iterdir())))
        if len(left) < 4:
            raise OSError(number, os.strerror(number))
        return "done"

    assert kept.run(call) == "done"
    assert left == [8, 7, 6, 5]
    assert len(list((tmp_path / reserve.NAME).iterdir())) == 8


def test_an_error_other_than_a_full_disk_frees_no_piece(tmp_path: Path) -> None:
    kept = LastingReserve(tmp_path)
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise OSError(errno.EROFS, "Read-only")

    with pytest.raises(OSError, match="Read-only"):
        kept.run(call)
    assert len(calls) == 1


def test_a_call_fails_once_all_pieces_are_freed(tmp_path: Path) -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise OSError(errno.ENOSPC, "No space")

    with HiddenReserve(tmp_path) as kept, pytest.raises(OSError, match="No space"):
        kept.run(call)
    assert len(calls) == 1 + reserve.HIDDEN_PIECES
    assert os.listdir(tmp_path) == []
