"""`python -m passthrough` with a worker that counts its inodes, open files and locks.

Standard input is a socket. For each byte, the worker answers with a line: a JSON object with a
count for each row of HELD, and the number of memory blocks that the interpreter has allocated,
which is about the number of objects. A thread answers; it starts with the service, inside the
sandbox. Nothing else differs from the real worker.
"""

import gc
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar
from unittest import mock

from passthrough.__main__ import app
from passthrough.core.filesystem import PassthroughFs
from passthrough.session.backing import Backings
from passthrough.worker import process
from passthrough.worker.handover import Handover, Report

T = TypeVar("T")

STDIN = 0
_serve = process.serve


def every(kind: type[T]) -> list[T]:
    """Return all objects of *kind*."""
    return [thing for thing in gc.get_objects() if isinstance(thing, kind)]


def total(count: Callable[[PassthroughFs], int]) -> int:
    """Sum *count* over the file systems served, of which there is one."""
    return sum(map(count, every(PassthroughFs)))


HELD: Mapping[str, Callable[[], int]] = {
    "inodes": lambda: total(lambda fs: len(fs.inodes)),
    "lookups of the root": lambda: total(lambda fs: fs.inodes.root.lookups),
    "open files": lambda: total(lambda fs: len(fs.files)),
    "open directories": lambda: total(lambda fs: len(fs.directories)),
    "files open without OPEN": lambda: total(lambda fs: len(fs._unopened)),
    "directories open without OPENDIR": lambda: total(lambda fs: len(fs._streams)),
    "owners of locks": lambda: total(lambda fs: len(fs.locks)),
    "waits for locks": lambda: total(lambda fs: len(fs.waits)),
    "files that the kernel reads and writes": lambda: sum(map(len, every(Backings))),
}
"""By name, the number of objects that a worker may fail to release."""


def _answer() -> None:
    while os.read(STDIN, 1):
        gc.collect()
        counts = {name: count() for name, count in HELD.items()}
        answer = {"held": counts, "blocks": sys.getallocatedblocks()}
        os.write(STDIN, json.dumps(answer).encode() + b"\n")


def _serve_watched(
    handover: Handover, serving: Callable[[Report], object], keeper_fd: int | None
) -> None:
    def watched(report: Report) -> object:
        threading.Thread(target=_answer, daemon=True).start()
        return serving(report)

    _serve(handover, watched, keeper_fd)


if __name__ == "__main__":
    with mock.patch.object(process, "serve", _serve_watched):
        app(prog_name="python -m passthrough")
