"""Return of unused memory to the kernel."""

import subprocess
import sys
from pathlib import Path

from passthrough.linux import memory
from tests.support.tools.mounted import REPOSITORY

PIECE = 4000  # bytes: the C library allocates them, without mmap(2)
PIECES = 20_000


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise LookupError


def report() -> None:
    """Print the resident memory of this process: in use, freed, and returned to the kernel."""
    memory.use_one_arena()
    pieces = [bytearray(PIECE) for _ in range(PIECES)]
    kept = pieces[-1]  # keeps the end of the heap in use
    full = resident()
    del pieces
    before = resident()
    memory.return_freed()
    assert kept
    sys.stdout.write(f"{full} {before} {resident()}")


def test_freed_pages_are_returned_to_the_kernel() -> None:
    program = "from tests.passthrough.linux.test_memory import report; report()"
    words = [sys.executable, "-c", program]
    printed = subprocess.run(words, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE).stdout
    full, before, after = map(int, printed.split())

    assert before > full - PIECE * PIECES / 2  # the C library keeps them
    assert after < before - PIECE * PIECES / 2
