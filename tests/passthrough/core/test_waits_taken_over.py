"""Many requests that wait for a lock when their worker dies, and wait on in the next worker."""

import fcntl
from pathlib import Path

from passthrough.options.choices import SessionKind
from passthrough.session.abi import Init, Opcode
from tests.support.fakes.kernel import message
from tests.support.tools.callers import ROOT
from tests.support.tools.options import effective
from tests.support.tools.processes import wait_until
from tests.support.tools.successors import Successors, flock, waits

CONFIG = effective(session=SessionKind.KERNEL)
FEATURES = int(Init.HANDLE_KILLPRIV_V2 | Init.FLOCK_LOCKS)
FIRST = 100
MANY = 260  # more than MAX_THREADS, crew.pxd


class Counting(Successors):
    """Successors in which a request in hand counts before a thread resumes it.

    Otherwise the first thread would take itself for the only one, and not wait for a RELEASE.
    """

    def take_over(self) -> None:
        assert self.core.take_over() == self.core.threads()


def test_more_waits_than_threads_serve_go_on(source: Path) -> None:
    (source / "file").touch()

    def run() -> None:
        with (source / "file").open("r+b") as held, Counting(source, CONFIG, FEATURES) as volume:
            nodeid, fh = volume.open()
            fcntl.flock(held, fcntl.LOCK_EX)
            for unique in range(FIRST, FIRST + 2 * MANY, 2):
                volume.kernel.send(message(Opcode.SETLKW, flock(fh), nodeid, unique))
            wait_until(lambda: waits(source / "file") == MANY)
            volume.kill()
            volume.start()
            # Before it has taken over, the worker might take a descriptor opened here for lost.
            assert volume.ask(message(Opcode.STATFS, unique=8)).error == 0
            wait_until(lambda: waits(source / "file") == MANY)
            assert volume.ask(message(Opcode.STATFS, unique=6)).error == 0
            fcntl.flock(held, fcntl.LOCK_UN)
            assert {volume.reply().error for _ in range(MANY)} == {0}

    ROOT.run(run)
