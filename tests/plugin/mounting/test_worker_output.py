"""worker_output.py: messages in the lines of other processes."""

import logging

import pytest
from trio.testing import memory_stream_one_way_pair

from plugin.mounting.worker_output import Message, forward_log

WARNING, ERROR, DEBUG = logging.WARNING, logging.ERROR, logging.DEBUG


async def messages(*parts: bytes) -> list[Message]:
    """Return the messages in *parts*, which arrive one after the other."""
    found: list[Message] = []
    sends, receives = memory_stream_one_way_pair()
    for part in parts:
        await sends.send_all(part)
    await sends.aclose()
    await forward_log(receives, found.append)
    return found


@pytest.mark.parametrize("parts", [(b"DEBUG a: b\n", b"of C\n"), (b"DEBUG a: b\nof C\n",)])
async def test_a_line_without_a_level_is_at_least_a_warning(parts: tuple[bytes, ...]) -> None:
    """A library in C has written it; it is no traceback of the line before."""
    assert await messages(*parts) == [Message(DEBUG, "a: b", ""), Message(WARNING, "of C", "")]


async def test_a_traceback_belongs_to_the_line_before() -> None:
    text = b"DEBUG a: b\nERROR c: d\nTraceback:\n  line\nINFO e: f\n"
    assert await messages(text) == [
        Message(DEBUG, "a: b", ""),
        Message(ERROR, "c: d", "Traceback:\n  line"),
        Message(logging.INFO, "e: f", ""),
    ]


async def test_a_first_line_without_a_level_is_a_warning() -> None:
    assert await messages(b"of C\nand more\n") == [Message(WARNING, "of C", "and more")]
