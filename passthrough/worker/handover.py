"""What passes between the keeper of a mount and its worker process, one JSON line each way.

The keeper writes a Handover to the worker's standard input and keeps that pipe open for as long as
the worker shall live; the worker answers with one Report on its standard output.
"""

from typing import TypeVar

import msgspec

from passthrough.options.config import Config

T = TypeVar("T")


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker needs to serve: the numbers are descriptors that it inherits and then owns."""

    volume: str
    """The name of the volume's directory, for the log."""
    config: Config
    fuse_fd: int
    """/dev/fuse, on which the mount was made."""
    source_fd: int
    """O_PATH descriptor of the directory to serve."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The worker's one answer: it serves, or why it does not."""

    serving: bool
    error: str = ""
    config: Config | None = None
    """What it goes by, if it serves, for as long as it does; what applies may change meanwhile."""
    without_handles: str = ""
    """Why files of the source are not held by handle, although that was wished for."""
    without_passthrough: str = ""
    """Why the kernel does not pass reads and writes on by itself, although that was wished for."""


def encode(message: Handover | Report) -> bytes:
    """One line of JSON, with its newline."""
    return msgspec.json.encode(message) + b"\n"


def decode_handover(line: bytes) -> Handover:
    """Read a Handover.

    Raises:
        msgspec.DecodeError: *line* is none.
    """
    return _decode(line, Handover)


def decode_report(line: bytes) -> Report:
    """Read a Report.

    Raises:
        msgspec.DecodeError: *line* is none.
    """
    return _decode(line, Report)


def _decode(line: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(line, type=kind)
    except RecursionError as error:  # lists or objects in each other, beyond Python's own depth
        raise msgspec.DecodeError(str(error)) from error
