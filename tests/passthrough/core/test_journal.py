"""The journal of a request in hand."""

import os
import socket
from pathlib import Path

import pytest

from passthrough.core.face import Core
from passthrough.options.choices import SessionKind
from passthrough.session.abi import Opcode
from passthrough.session.rare import Rare
from tests.passthrough.core.probe_journal import SIZES, call, journal
from tests.support.tools import abi, wire
from tests.support.tools.callers import ROOT
from tests.support.tools.options import effective

CONFIG = effective(session=SessionKind.KERNEL)
BEGUN, CALLED, ANSWERED = range(3)


def request(opcode: Opcode, unique: int, body: bytes = b"") -> bytes:
    size = wire.IN_HEADER.size + len(body)
    return wire.IN_HEADER.pack(size, opcode, unique, abi.ROOT_ID, 0, 0, 1, 0) + body


def test_the_journal_ends_where_a_request_begins() -> None:
    journal_size, request_at = SIZES

    assert journal_size == request_at


@pytest.mark.parametrize("opcode", [Opcode.STATFS, Opcode.FORGET], ids=["answered", "silent"])
def test_a_request_is_done_when_it_needs_nothing_more(source: Path, opcode: Opcode) -> None:
    def run() -> None:
        core = Core(CONFIG, os.open(source, os.O_PATH | os.O_DIRECTORY), Rare(CONFIG))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            core.use_device(theirs.fileno())
            ours.send(request(opcode, 6, bytes(8)))
            assert core.serve_one()
            noted = journal(core)
            assert (noted["unique"], noted["done"]) == (6, 6)
            assert noted["stage"] == (ANSWERED if opcode is Opcode.STATFS else BEGUN)
        core.close()

    ROOT.run(run)


def test_the_time_of_a_call_is_that_of_the_first_one(source: Path) -> None:
    def run() -> None:
        core = Core(CONFIG, os.open(source, os.O_PATH | os.O_DIRECTORY), Rare(CONFIG))
        core.answer(request(Opcode.STATFS, 2))
        assert journal(core)["stage"] == BEGUN
        call(core)
        first = journal(core)
        assert (first["stage"], first["called_s"] > 0) == (CALLED, True)
        call(core)
        assert journal(core) == first
        core.answer(request(Opcode.STATFS, 4))
        assert (journal(core)["stage"], journal(core)["unique"]) == (BEGUN, 4)
        core.close()

    ROOT.run(run)
