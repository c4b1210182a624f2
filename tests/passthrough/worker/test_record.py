"""record.py: what another program needs, and the version of the memory that goes with it."""

import fcntl
import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from passthrough.session.kernel import Begun
from passthrough.session.negotiation import Offer
from passthrough.worker import record
from passthrough.worker.record import RecordError

CORE = Path(record.__file__).parents[1] / "core"
# The declarations that say where things lie in shared memory; "" are the constants of a file.
SHARED = {
    "layout.pxd": (
        "",
        "FileHandle",
        "Limits",
        "Offsets",
        "Refusal",
        "Header",
        "Inode",
        "OpenFile",
        "Place",
        "Mount",
    ),
    "journal.pxd": ("", "Journal"),
    "lock_records.pxd": ("", "Kept", "FewKept", "Record", "Named", "Shared"),
    "held.pxd": ("Lock",),
    "stream_marks.pxd": ("", "KeptMark", "Opener", "Kept"),
    "device.pxd": ("", "Head"),
    "state.pxd": ("Ids",),
}
CONSTANTS = {"crew.pxd": ("MAX_SLOTS", "MAX_PLACES")}
COMPUTED = {
    "memory.pyx": ("_pages", "_handle_size", "_lay_out"),
    "lock_records.pyx": ("_areas_at", "_size", "_area"),
    "stream_marks.pyx": ("_size", "_opener"),
}
# If the test below fails, raise record.VERSION and add a line; programs of both versions exist.
LAYOUTS = {1: "ea212e7b8777a52f"}
BEGUN = Begun(
    offered=Offer(7, 45, 131072, 1 << 40),
    minor=45,
    flags=1 << 33,
    without_passthrough="a reason",
    memory=(3, 4, 5, 6),
)
MFD_NOEXEC_SEAL, F_SEAL_EXEC = 8, 0x20  # of Linux 6.3


def declarations() -> str:
    found = []
    for name, wanted in SHARED.items():
        text = (CORE / name).read_text()
        for kind in wanted:
            head = rf"cdef struct {kind}:" if kind else "cdef enum:"
            blocks = re.findall(rf"^{head}\n((?:    .*\n|\n)+)", text, re.MULTILINE)
            assert blocks, (name, kind)
            found += blocks
    for name, functions in COMPUTED.items():
        text = (CORE / name).read_text()
        for function in functions:
            blocks = re.findall(
                rf"^cdef [^\n]*\b{function}\((?:.+\n|\n(?!\n))+", text, re.MULTILINE
            )
            assert blocks, (name, function)
            found += blocks
    for name, constants in CONSTANTS.items():
        text = (CORE / name).read_text()
        found += [line for each in constants for line in re.findall(rf"{each} = .*", text)]
    return re.sub(r"\s+", " ", re.sub(r"#.*", "", "\n".join(found)))


def test_a_new_layout_has_a_new_version() -> None:
    digest = hashlib.sha256(declarations().encode()).hexdigest()[:16]

    assert LAYOUTS[record.VERSION] == digest
    assert len({*LAYOUTS.values()}) == len(LAYOUTS)


def test_a_record_is_read_as_it_was_stored() -> None:
    fd = record.store(BEGUN, "no handles")

    found = record.load(fd)

    assert (found.begun, found.without_handles) == (BEGUN, "no handles")
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    os.close(fd)


def test_a_record_in_memory_that_no_program_may_execute_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With vm.memfd_noexec=1 the kernel seals all memory so."""
    try:
        os.close(os.memfd_create("probe", MFD_NOEXEC_SEAL))
    except OSError:
        pytest.skip("before Linux 6.3 there is no such memory")
    real = os.memfd_create
    monkeypatch.setattr(os, "memfd_create", lambda name, flags: real(name, flags | MFD_NOEXEC_SEAL))
    fd = record.store(BEGUN, "")

    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & F_SEAL_EXEC
    assert record.load(fd).begun == BEGUN
    os.close(fd)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"version":7,"more":[]}', "version 7, not 1"),
        (b'{"version":1}', "cannot be read"),
        (b"", "cannot be read"),
        (b"[" * 60_000, "cannot be read"),
    ],
)
def test_another_record_is_refused(text: bytes, said: str) -> None:
    fd = sealed(text)

    with pytest.raises(RecordError, match=said):
        record.load(fd)
    os.close(fd)


def sealed(text: bytes) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, text)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("without_handles", "x" * 501),
        ("without_handles", "\x1b[2J"),
        ("begun.without_passthrough", "two\nlines"),
        ("begun.minor", 1 << 32),
        ("begun.minor", -1),
        ("begun.flags", 1 << 64),
        ("begun.offered", [7, 45, 1 << 32, 0]),
        ("begun.memory", [3, 4, 5, 1 << 31]),
    ],
)
def test_a_record_with_a_value_that_cannot_be_is_refused(place: str, value: object) -> None:
    """A worker that is compromised may have written it."""
    stored = record.store(BEGUN, "")
    found = json.loads(os.pread(stored, 4096, 0))
    *outer, name = place.split(".")
    (found[outer[0]] if outer else found)[name] = value
    fd = sealed(json.dumps(found).encode())

    with pytest.raises(RecordError, match="has a value that cannot be"):
        record.load(fd)
    os.close(fd)
    os.close(stored)


def test_what_can_change_is_no_record_and_no_memory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for fd in (os.memfd_create("test"), os.open(tmp_path / "file", os.O_RDONLY)):
        with pytest.raises(RecordError):
            record.load(fd)
        with pytest.raises(RecordError):
            record.check_memory(fd)
        os.close(fd)
