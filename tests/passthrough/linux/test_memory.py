import subprocess
import sys

import pytest

from tests.support.tools.mounted import REPOSITORY

# Prints whether a thread's memory is in the heap, which is the arena of the main thread.
PROGRAM = """
import ctypes, sys, threading
from pathlib import Path
from passthrough.linux import memory
if sys.argv[1] == "one":
    memory.use_one_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_size_t
places = []
def run():
    places.append(libc.malloc(1000))
thread = threading.Thread(target=run)
thread.start()
thread.join()
(heap,) = (line for line in Path("/proc/self/maps").read_text().splitlines() if "[heap]" in line)
start, end = (int(word, 16) for word in heap.split()[0].split("-"))
print(start <= places[0] < end)
"""


@pytest.mark.parametrize(("arenas", "inside"), [("one", "True"), ("each", "False")])
def test_threads_share_the_arena_of_the_main_thread(arenas: str, inside: str) -> None:
    words = [sys.executable, "-c", PROGRAM, arenas]
    printed = subprocess.run(words, cwd=REPOSITORY, check=True, capture_output=True, text=True)

    assert printed.stdout.strip() == inside
