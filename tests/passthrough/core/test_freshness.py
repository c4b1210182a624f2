"""freshness.py: what a listing leaves out, because the kernel was just told of it."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthrough.core import freshness
from passthrough.core.filesystem import PassthroughFs
from passthrough.core.freshness import NEVER, Freshness
from passthrough.core.inodes import ROOT
from passthrough.core.listing import KIND_SHIFT
from passthrough.options.choices import CachePolicy
from passthrough.options.timeouts import timeouts
from tests.support.tools.direct import number_of
from tests.support.tools.options import effective

Answers = dict[bytes, tuple[int, int, bool]]


class Clock:
    """Stands still unless it is told."""

    def __init__(self) -> None:
        self.now_s = 5_000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(freshness, "time", clock)
    return clock


def one_second(**given: float) -> Freshness:
    """Of a policy that remembers for a second, but for what is *given* in place of it."""
    return Freshness(timeouts(effective(cache=CachePolicy.AUTO))._replace(**given))


def test_what_was_told_is_fresh_for_a_quarter_of_the_time_and_never_for_more_than_half(
    clock: Clock,
) -> None:
    fresh = one_second()
    for start in (0.0, 0.1, 0.2, 0.24):
        clock.now_s = 5_000 + start
        told = fresh.moment()
        clock.now_s = 5_000 + start + 0.25
        assert fresh.lasts(told)
        clock.now_s = 5_000 + start + 0.5
        assert not fresh.lasts(told)


def test_the_shortest_timeout_counts(clock: Clock) -> None:
    fresh = one_second(dir_attr_timeout=0.1)
    told = fresh.moment()

    clock.now_s += 0.06

    assert not fresh.lasts(told)


@pytest.mark.parametrize("timeout", ["entry_timeout", "attr_timeout", "dir_entry_timeout"])
@pytest.mark.usefixtures("clock")
def test_nothing_is_fresh_that_the_kernel_does_not_remember(timeout: str) -> None:
    fresh = one_second(**{timeout: 0.0})

    assert not fresh.lasts(fresh.moment())
    assert not Freshness(timeouts(effective(cache=CachePolicy.NEVER))).lasts(0)


def test_what_was_never_told_is_not_fresh_even_in_the_first_moment_of_a_machine(
    clock: Clock,
) -> None:
    clock.now_s = 0.0

    assert not Freshness(timeouts(effective(cache=CachePolicy.ALWAYS))).lasts(NEVER)


def test_a_moment_is_one_object(clock: Clock) -> None:
    fresh = one_second()
    first = fresh.moment()
    clock.now_s += 0.1

    assert fresh.moment() is first


@pytest.fixture
def files(tmp_path: Path) -> Path:
    source = tmp_path / "files"
    source.mkdir()
    (source / "file").touch()
    (source / "dir").mkdir()
    (source / "link").symlink_to("file")
    return source


@pytest.fixture(params=[CachePolicy.AUTO, CachePolicy.NEVER])
def served(request: pytest.FixtureRequest, files: Path, clock: Clock) -> Iterator[PassthroughFs]:
    del clock
    fs = PassthroughFs(effective(cache=request.param), os.open(files, os.O_PATH))
    yield fs
    fs.close()


def listed(fs: PassthroughFs) -> Answers:
    """Number, kind, and whether there was an entry, of each name."""
    handle = fs.opendir(ROOT)
    answers = {
        record.name: (
            record.number if entry is None else entry.inode_number,
            record.kind if entry is None else entry.stat.st_mode >> KIND_SHIFT,
            entry is not None,
        )
        for record, entry in fs.readdirplus(handle, 0, known=False)
        if record.name not in {b".", b".."}
    }
    fs.releasedir(handle)
    return answers


def expected(files: Path, *, entries: set[bytes]) -> Answers:
    names = {os.fsencode(path.name): path.lstat() for path in files.iterdir()}
    return {
        name: (found.st_ino, stat.S_IFMT(found.st_mode) >> KIND_SHIFT, name in entries)
        for name, found in names.items()
    }


def test_a_listing_leaves_out_what_the_kernel_knows_and_counts_no_lookup_for_it(
    served: PassthroughFs, files: Path, clock: Clock
) -> None:
    remembers = served.config.cache is CachePolicy.AUTO
    everything = {b"file", b"dir", b"link"}
    number = number_of(served, b"file")

    assert listed(served) == expected(
        files, entries=everything - ({b"file"} if remembers else set())
    )
    lookups = served.inodes[number].lookups
    assert listed(served) == expected(files, entries=set() if remembers else everything)
    assert served.inodes[number].lookups == lookups + (not remembers)

    clock.now_s += 0.5
    assert listed(served) == expected(files, entries=everything)
    (files / "new").touch()
    known = everything if remembers else set()
    assert listed(served) == expected(files, entries=everything - known | {b"new"})


def test_a_file_that_was_replaced_is_told_of(served: PassthroughFs, files: Path) -> None:
    number_of(served, b"file")
    (files / "other").write_bytes(b"other")
    (files / "other").rename(files / "file")

    number, _, told = listed(served)[b"file"]

    assert (number, told) == ((files / "file").stat().st_ino, True)


def test_only_who_wants_to_is_left_out(served: PassthroughFs) -> None:
    """The session of libfuse has no way to say a name alone."""
    listed(served)
    handle = served.opendir(ROOT)

    assert sum(entry is not None for _, entry in served.readdirplus(handle, 0)) == 3
    served.releasedir(handle)
