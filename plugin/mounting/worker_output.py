"""The output of worker processes: lines of text, and their log lines for the plugin's log."""

import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from itertools import pairwise
from typing import Final, NamedTuple

import trio

LINE_LIMIT_BYTES: Final = 8192

LEVELS: Final = {
    logging.getLevelName(level): level
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
}


class Message(NamedTuple):
    """A record in the log of another process."""

    level: int
    text: str
    traceback: str
    """The lines after the first; empty without any."""


async def lines(stream: trio.abc.ReceiveStream) -> AsyncGenerator[str, None]:
    """Yield the lines of *stream* as text; a line over LINE_LIMIT_BYTES is cut into pieces."""
    async with aclosing(_batches(stream)) as batches:
        async for batch in batches:
            for line in batch:
                yield line


async def forward_log(stream: trio.abc.ReceiveStream, log: Callable[[Message], object]) -> None:
    """Call *log* with each message until *stream* ends, then close the stream.

    A process writes a traceback together with the line before it. Other lines without a level have
    the level of the message before, and at least WARNING: a library in C has written them.
    """
    level = logging.WARNING  # of lines before the first one with a level
    async with stream, aclosing(_batches(stream)) as batches:
        async for batch in batches:
            for message in _messages(batch, level):
                log(message)
                level = max(message.level, logging.WARNING)


async def _batches(stream: trio.abc.ReceiveStream) -> AsyncGenerator[list[str], None]:
    """Yield the lines that arrive together."""
    unfinished = b""
    async for chunk in stream:
        *complete, unfinished = (unfinished + chunk).split(b"\n")
        if len(unfinished) > LINE_LIMIT_BYTES:
            complete.append(unfinished)
            unfinished = b""
        yield [line.decode(errors="replace") for line in complete]
    if unfinished:
        yield [unfinished.decode(errors="replace")]


def _messages(batch: Sequence[str], level: int) -> Iterator[Message]:
    """Yield the messages in the lines *batch*; *level* is that of the message before."""
    starts = [at for at in range(len(batch)) if _begins(batch, at)]
    for at, end in pairwise([*starts, len(batch)]):
        word, _, text = batch[at].partition(" ")
        level = LEVELS.get(word, max(level, logging.WARNING))
        first = text if word in LEVELS else batch[at]
        yield Message(level, first, "\n".join(batch[at + 1 : end]))


def _begins(batch: Sequence[str], at: int) -> bool:
    """Return whether a message begins there; lines below WARNING have no traceback."""
    if not at or _level_of(batch[at]) is not None:
        return True
    before = _level_of(batch[at - 1])
    return before is not None and before < logging.WARNING


def _level_of(line: str) -> int | None:
    return LEVELS.get(line.partition(" ")[0])
