"""Ranges that one owner holds, beside a model that has one entry for each byte."""

import fcntl
import random
import time

from tests.passthrough.core.probe_locks import Ranges
from tests.support.tools.host_calls import LAST_BYTE

READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
BYTES = 40


def test_neighbours_of_one_kind_become_one_range() -> None:
    held = Ranges()
    held.note(READ, 0, 9)
    held.note(READ, 20, 29)
    assert held.note(WRITE, 10, 14) == [(READ, 0, 9), (WRITE, 10, 14), (READ, 20, 29)]
    assert held.note(READ, 10, 19) == [(READ, 0, 29)]
    assert held.note(UNLOCK, 5, 5) == [(READ, 0, 4), (READ, 6, 29)]


def test_ranges_reach_from_the_first_byte_to_the_last() -> None:
    held = Ranges()
    assert held.note(WRITE, 0, LAST_BYTE) == [(WRITE, 0, LAST_BYTE)]
    assert held.note(UNLOCK, 0, 0) == [(WRITE, 1, LAST_BYTE)]
    assert held.note(READ, LAST_BYTE, LAST_BYTE) == [
        *((WRITE, 1, LAST_BYTE - 1), (READ, LAST_BYTE, LAST_BYTE))
    ]
    assert held.ask(READ, 0, LAST_BYTE) == (True, True, False, True)
    assert held.ask(READ, 1, LAST_BYTE) == (True, True, True, True)
    assert held.note(UNLOCK, 0, LAST_BYTE) == []
    assert held.ask(WRITE, 0, LAST_BYTE) == (False, False, False, False)


def test_ranges_are_those_of_single_bytes() -> None:
    draw = random.Random(5).randrange  # noqa: S311
    for _ in range(50):
        held, model = Ranges(), [UNLOCK] * BYTES
        for _ in range(200):
            start = draw(BYTES)
            end = min(start + draw(8), BYTES - 1)
            kind = (READ, WRITE, UNLOCK)[draw(3)]
            part = model[start : end + 1]
            assert held.ask(kind, start, end) == (
                kind != UNLOCK and kind in part,
                any(one == WRITE or (kind == WRITE and one == READ) for one in part),
                UNLOCK not in part,
                WRITE in model,
            )
            model[start : end + 1] = [kind] * (end - start + 1)
            assert held.note(kind, start, end) == ranges(model)


def test_many_ranges_of_one_owner_cost_each_as_much_as_few() -> None:
    """A search through all of them would make the ratio 256."""
    assert any(ratio() < 16 * 4 for _ in range(3))


def ratio() -> float:
    """Return how many times as long 16 times as many ranges take."""
    few, many = (min(seconds(count) for _ in range(3)) for count in (4_000, 64_000))
    return many / few


def seconds(count: int) -> float:
    """Return the processor time in which an owner comes to hold so many ranges."""
    held, began = Ranges(), time.thread_time()
    assert held.fill(count)
    return time.thread_time() - began


def ranges(model: list[int]) -> list[tuple[int, int, int]]:
    """Return the model's ranges: each as long as it can be."""
    found: list[tuple[int, int, int]] = []
    for at, kind in enumerate(model):
        if kind == UNLOCK:
            continue
        if found and found[-1][0] == kind and found[-1][2] == at - 1:
            found[-1] = (kind, found[-1][1], at)
        else:
            found.append((kind, at, at))
    return found
