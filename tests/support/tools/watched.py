"""`python -m passthrough` with a worker that counts its inodes, open files and locks.

Standard input is a socket. For each byte, the worker answers with a line: a JSON object with the
counts of probe_counts.pyx, and the number of memory blocks that the interpreter has allocated,
which is about the number of objects. A thread answers; it starts with the service, inside the
sandbox. Nothing else differs from the real worker.
"""

import gc
import json
import os
import sys
import threading
from collections.abc import Callable
from unittest import mock

from passthrough.__main__ import app
from passthrough.options.effective import Effective
from passthrough.session.kernel import Served
from passthrough.worker import process
from passthrough.worker.handover import Handover, Report
from tests.passthrough.core.probe_counts import held

STDIN = 0
_serve = process.serve
_prepare = Served.__init__
_prepared: list[Served] = []


def _prepare_noted(served: Served, config: Effective, source_fd: int) -> None:
    """Note the volume: a guard hides its objects from gc.get_objects()."""
    _prepare(served, config, source_fd)
    _prepared.append(served)


def _answer() -> None:
    core = _prepared[0].core
    while os.read(STDIN, 1):
        gc.collect()
        answer = {"held": held(core), "blocks": sys.getallocatedblocks()}
        os.write(STDIN, json.dumps(answer).encode() + b"\n")


def _serve_watched(
    handover: Handover, serving: Callable[[Report], object], keeper_fd: int | None
) -> int:
    def watched(report: Report) -> object:
        threading.Thread(target=_answer, daemon=True).start()
        return serving(report)

    return _serve(handover, watched, keeper_fd)


if __name__ == "__main__":
    with (
        mock.patch.object(process, "serve", _serve_watched),
        mock.patch.object(Served, "__init__", _prepare_noted),
    ):
        app(prog_name="python -m passthrough")
