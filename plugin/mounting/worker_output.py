"""The output of worker processes: lines of text, and their log lines for the plugin's log."""

import logging
from collections.abc import AsyncGenerator, Callable
from typing import Final

import trio

LINE_LIMIT_BYTES: Final = 8192

LEVELS: Final = {
    logging.getLevelName(level): level
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
}


async def lines(stream: trio.abc.ReceiveStream) -> AsyncGenerator[str, None]:
    """Yield the lines of *stream* as text; a line over LINE_LIMIT_BYTES is cut into pieces."""
    unfinished = b""
    async for chunk in stream:
        *complete, unfinished = (unfinished + chunk).split(b"\n")
        if len(unfinished) > LINE_LIMIT_BYTES:
            complete.append(unfinished)
            unfinished = b""
        for line in complete:
            yield line.decode(errors="replace")
    if unfinished:
        yield unfinished.decode(errors="replace")


async def forward_log(stream: trio.abc.ReceiveStream, log: Callable[[int, str], object]) -> None:
    """Call *log* with the level and text of each line until *stream* ends, then close the stream.

    A line without a level, as in a traceback, has the level of the line before it.
    """
    level = logging.WARNING  # of lines before the first one with a level
    async with stream:
        async for line in lines(stream):
            word, _, text = line.partition(" ")
            level = LEVELS.get(word, level)
            log(level, text if word in LEVELS else line)
