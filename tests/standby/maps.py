"""Writers of shared maps: each byte is as stored, by read(2), by a new map, and on the host."""

import mmap
import os
from collections.abc import Callable, Sequence
from functools import partial

from tests.soak.model import expect
from tests.standby.load import Load, Task
from tests.support.tools.callers import Caller

PROCESSES = 2
SIZE = 128 * 1024
REMAPPED = 0.05


class Maps(Load):
    """Processes, each with a map of its own file."""

    def tasks(self) -> Sequence[tuple[Caller, Callable[[], Task]]]:
        """Return the processes."""
        return [(self.caller(n), partial(_Writer, self, n)) for n in range(PROCESSES)]

    def wrong(self, results: Sequence[object]) -> list[str]:
        """Compare the files on both sides with the stored bytes."""
        found = []
        for number, right in enumerate(results):
            for side in {self.place.seen, self.place.beneath}:
                seen = (side / f"map{number}").read_bytes()
                if seen != right:
                    found.append(f"{side}: map{number} differs from byte {_first(seen, right)} on")
        return found


def _first(seen: bytes, right: object) -> int:
    """Return the offset of the first byte that differs."""
    wanted = right if isinstance(right, bytes) else b""
    pairs = zip(seen, wanted, strict=False)
    return next(
        (n for n, (one, two) in enumerate(pairs) if one != two), min(map(len, (seen, wanted)))
    )


class _Writer:
    def __init__(self, load: Maps, number: int) -> None:
        self.steps = load.steps(number)
        path = load.place.seen / f"map{number}"
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        os.ftruncate(self._fd, SIZE)
        self._right = bytearray(SIZE)
        self._map = mmap.mmap(self._fd, SIZE)

    def step(self) -> None:
        """Store some bytes, or write them by write(2), and compare a part."""
        rng = self.steps.rng
        offset = rng.randrange(SIZE)
        data = rng.randbytes(rng.choice((1, 100, 9_000)))[: SIZE - offset]
        written = rng.random() < 0.2
        self.steps.note("write" if written else "store", offset, len(data))
        if written:
            expect("written", os.pwrite(self._fd, data, offset), len(data))
        else:
            self._map[offset : offset + len(data)] = data
        self._right[offset : offset + len(data)] = data
        if rng.random() < 0.1:
            self._map.flush()
        if rng.random() < REMAPPED:
            self._map.close()
            self._map = mmap.mmap(self._fd, SIZE)
        start = rng.randrange(SIZE)
        right = bytes(self._right[start : start + 10_000])
        expect(f"read at {start}", os.pread(self._fd, 10_000, start), right)
        expect(f"mapped at {start}", self._map[start : start + 10_000], right)

    def end(self) -> bytes:
        """Flush the map and close the file; return the expected bytes."""
        self._map.flush()
        self._map.close()
        os.fsync(self._fd)
        os.close(self._fd)
        return bytes(self._right)
