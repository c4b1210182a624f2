"""Requests that have crashed two workers, and what they would have freed."""

import errno
import os
from pathlib import Path

import pytest

from passthrough.options.choices import SessionKind
from passthrough.session.abi import Init, Opcode
from tests.passthrough.core.probe_journal import blame
from tests.support.fakes.kernel import entry, message, text
from tests.support.tools import wire
from tests.support.tools.callers import ROOT
from tests.support.tools.options import effective
from tests.support.tools.processes import wait_until
from tests.support.tools.successors import Retiring
from tests.support.tools.workers import descriptors

CONFIG = effective(session=SessionKind.KERNEL)
FEATURES = int(Init.HANDLE_KILLPRIV_V2)
REFUSED = 300


def refused(volume: Retiring, request: bytes) -> None:
    """Have a worker take a request that has crashed two workers."""
    volume.readers_first()  # one that has just replied would end without another request
    volume.retire()
    volume.send(request)
    place = volume.await_in_hand(REFUSED)
    volume.kill()
    blame(volume.core, place, 2)
    volume.start_successor()


def descriptors_at_rest(volume: Retiring) -> set[int]:
    """Return the open descriptors; the first worker must not take that of the listing for lost."""
    volume.ask(message(Opcode.STATFS, unique=8))
    return descriptors()


def test_a_refused_release_closes_its_file(source: Path) -> None:
    (source / "file").touch()

    def run() -> None:
        with Retiring(source, CONFIG, FEATURES) as volume:
            nodeid, fh = volume.open()
            before = descriptors_at_rest(volume)
            body = wire.RELEASE_IN.pack(fh, 0, 0, 0)
            refused(volume, message(Opcode.RELEASE, body, nodeid, REFUSED))

            assert volume.reply_to(REFUSED).error == errno.EIO
            assert volume.core.files == 0
            wait_until(lambda: len(descriptors()) == len(before) - 1)

    ROOT.run(run)


def test_a_refused_release_closes_its_directory(source: Path) -> None:
    def run() -> None:
        with Retiring(source, CONFIG, FEATURES) as volume:
            before = descriptors_at_rest(volume)
            opened = volume.ask(message(Opcode.OPENDIR, wire.OPEN_IN.pack(os.O_RDONLY, 0)))
            body = wire.RELEASE_IN.pack(wire.OPEN_OUT.unpack(opened.body)[0], 0, 0, 0)
            refused(volume, message(Opcode.RELEASEDIR, body, unique=REFUSED))

            assert volume.reply_to(REFUSED).error == errno.EIO
            assert volume.core.directories == 0
            wait_until(lambda: descriptors() == before)

    ROOT.run(run)


@pytest.mark.parametrize("opcode", [Opcode.FORGET, Opcode.BATCH_FORGET])
def test_a_refused_forget_gives_its_lookups_back(source: Path, opcode: int) -> None:
    (source / "file").touch()

    def run() -> None:
        with Retiring(source, CONFIG, FEATURES) as volume:
            before = descriptors_at_rest(volume)
            looked_up = volume.ask(message(Opcode.LOOKUP, text(b"file"), unique=2))
            nodeid = entry(looked_up.body)["nodeid"]
            body = wire.FORGET_IN.pack(1)
            if opcode == Opcode.BATCH_FORGET:
                body = wire.BATCH_FORGET_IN.pack(1) + wire.FORGET_ONE.pack(nodeid, 1)
            refused(volume, message(opcode, body, nodeid, REFUSED))

            assert volume.ask(message(Opcode.STATFS, unique=4)).error == 0
            assert volume.core.inodes == 1
            wait_until(lambda: descriptors() == before)

    ROOT.run(run)
