"""What our processes write: lines of text, and the log lines among them, for our own log."""

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
    """The lines of *stream* as text; overlong ones are cut into pieces."""
    rest = b""
    async for chunk in stream:
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_LIMIT_BYTES:
            whole.append(rest)
            rest = b""
        for line in whole:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


async def forward(stream: trio.abc.ReceiveStream, log: Callable[[int, str], object]) -> None:
    """Give each line of *stream* to *log*, with its level, until the stream ends; closes it.

    A line without a level, as in a traceback, belongs to the one before it.
    """
    level = logging.WARNING  # of what comes before any line of a logger
    async with stream:
        async for line in lines(stream):
            word, _, rest = line.partition(" ")
            level = LEVELS.get(word, level)
            log(level, rest if word in LEVELS else line)
