"""Listings with attributes that come right after another one, as bytes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough.options.choices import CachePolicy, SessionKind
from passthrough.session.abi import Opcode
from tests.support.fakes.kernel import Connect, Kernel, entry, listed, text
from tests.support.tools import abi, wire
from tests.support.tools.bodies import BODIES, READ
from tests.support.tools.options import effective

FILES = {b"%02d" % number for number in range(20)}
TRIES = 200
Rows = dict[bytes, tuple[int, int, int, int]]


@pytest.fixture
def files(source: Path) -> set[bytes]:
    for name in FILES:
        (source / os.fsdecode(name)).touch()
    (source / "directory").mkdir()
    return FILES | {b"directory"}


def rows(kernel: Kernel) -> Rows:
    """Open, list and close the root; return its names but the dots."""
    (handle, *_) = wire.OPEN_OUT.unpack(kernel.ask(Opcode.OPENDIR, BODIES["OPENDIR"]).body)
    reply = kernel.ask(Opcode.READDIRPLUS, READ.pack(handle, 0, 1 << 16, 0, 0, 0))
    assert reply.error == 0, os.strerror(reply.error)
    kernel.ask(Opcode.RELEASEDIR, wire.RELEASE_IN.pack(handle, 0, 0, 0))
    found = listed(reply.body, plus=True)
    return {name: row for name, row in found.items() if name not in {b".", b".."}}


def repeated(kernel: Kernel, between: Callable[[], object] = lambda: None) -> tuple[Rows, Rows]:
    """List twice within the window, with a call between; a machine under load may need tries."""
    for _ in range(TRIES):
        first = rows(kernel)
        between()
        second = rows(kernel)
        if not all(nodeid for nodeid, *_ in second.values()):
            return first, second
    pytest.fail("each listing had all entries")


def test_a_second_listing_leaves_entries_out_and_no_name(kernel: Kernel, files: set[bytes]) -> None:
    assert all(nodeid for nodeid, *_ in rows(kernel).values())
    first, second = repeated(kernel)

    assert first.keys() == second.keys() == files
    assert [row[1:] for row in first.values()] == [row[1:] for row in second.values()]


def test_a_file_opened_meanwhile_has_its_entry(kernel: Kernel, files: set[bytes]) -> None:
    """The kernel may know its size no more."""
    nodeid = kernel.lookup(b"07")

    _, second = repeated(kernel, lambda: kernel.release(kernel.open(nodeid)))
    assert second.keys() == files
    assert second[b"07"][0] == nodeid


def test_an_open_file_has_its_entry_in_each_listing(kernel: Kernel, files: set[bytes]) -> None:
    nodeid = kernel.lookup(b"07")
    handle = kernel.open(nodeid)

    _, second = repeated(kernel)
    kernel.release(handle)
    assert second.keys() == files
    assert second[b"07"][0] == nodeid


def test_a_file_looked_up_meanwhile_has_its_entry(kernel: Kernel, files: set[bytes]) -> None:
    _, second = repeated(kernel, lambda: kernel.lookup(b"07"))

    assert second.keys() == files
    assert second[b"07"][0]


def test_files_that_came_meanwhile_have_their_entries(
    kernel: Kernel, source: Path, files: set[bytes]
) -> None:
    """One made through the volume, one made on the host, and one in the place of another."""

    def change() -> None:
        for name in ("made", "new"):
            (source / name).unlink(missing_ok=True)
        body = BODIES["MKNOD"][: wire.MKNOD_IN.size] + text(b"made")
        assert entry(kernel.ask(Opcode.MKNOD, body).body)["nodeid"]
        (source / "new").touch()
        (source / "replacement").touch()
        (source / "replacement").rename(source / "07")

    first, second = repeated(kernel, change)
    assert second.keys() == files | {b"made", b"new"}
    assert second[b"made"][0]
    assert second[b"new"][0]
    assert second[b"07"][0] not in {0, first[b"07"][0]}
    assert second[b"07"][1] == (source / "07").stat().st_ino


def test_a_file_that_the_kernel_has_forgotten_has_its_entry(
    kernel: Kernel, files: set[bytes]
) -> None:
    def forget() -> None:
        known = [nodeid for nodeid in kernel.granted if nodeid != kept]
        for nodeid in known:
            kernel.tell(Opcode.FORGET, wire.FORGET_IN.pack(1), nodeid)
        kernel.granted[:] = [kept] * kernel.granted.count(kept)

    kept = kernel.lookup(b"07")
    _, second = repeated(kernel, forget)
    assert {name for name, row in second.items() if not row[0]} == {b"07"}
    assert second.keys() == files


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "options",
    [{"cache": CachePolicy.NEVER}, {"attr_timeout": 0.0}, {"dir_entry_timeout": 0.0}],
    ids=["never", "attributes", "directories"],
)
def test_what_the_kernel_keeps_for_no_time_is_always_given(
    connect: Connect, options: dict[str, object]
) -> None:
    kernel = connect(effective(session=SessionKind.KERNEL, **options))
    for _ in range(20):
        assert all(nodeid > abi.ROOT_ID for nodeid, *_ in rows(kernel).values())
    kernel.forget_all()
