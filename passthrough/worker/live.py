"""Timeouts that change while a volume is served: words in the control page (control.py).

The plugin writes them. All workers of the volume read them at each reply (core/timeouts.pxd): the
one that serves, and those that follow it. A word of 0 stands for the timeout that the options of
the mount give. If another program goes on with the volume, its options have the timeouts, and its
page has none.

The plugin reads none of the words, because a worker that is compromised can write the page.
"""

import mmap
import os
from struct import Struct
from typing import Final

from passthrough.options.timeouts import Timeouts, words

VERSION: Final = 1
"""Of the layout."""
VERSION_AT: Final = 86
"""Where the page has it. There is a zero if an older program has made the page."""
AT: Final = 768

_WORD_BYTES: Final = 8
_WORDS: Final = Struct("<5Q")
END: Final = AT + _WORDS.size


def exist(memory: bytes | mmap.mmap) -> bool:
    """Return whether workers read words of this version in *memory*, a control page."""
    return len(memory) >= END and memory[VERSION_AT] == VERSION


def can_change(fd: int) -> bool:
    """Return whether workers read words of this version in the control page *fd*.

    Raises:
        OSError: *fd* cannot be read.
    """
    return exist(os.pread(fd, END, 0))


def change(fd: int, timeouts: Timeouts) -> None:
    """Let *timeouts* be in force for all replies from now on.

    *fd* is a control page for which `can_change` is true.

    Raises:
        OSError: the page cannot be mapped.
    """
    with mmap.mmap(fd, END) as memory, memoryview(memory).cast("Q") as page:
        # Each is one store of 8 bytes. write(2) would promise less.
        for at, word in enumerate(words(timeouts), AT // _WORD_BYTES):
            page[at] = word
