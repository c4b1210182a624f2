"""The messages between the keeper of a mount and its worker: one line of JSON each way.

The keeper writes a Handover to the worker's standard input, and keeps that pipe open while the
worker shall live. The worker answers with one Report on its standard output.
"""

from typing import TypeVar

import msgspec

from passthrough.options.table import Requested

T = TypeVar("T")


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """The mount that a worker serves, with descriptors that it inherits and then owns."""

    volume: str
    """The volume in log texts: the name of its directory, or without Docker the source's path."""
    config: Requested
    fuse_fd: int
    """The descriptor of /dev/fuse that the mount was made with."""
    source_fd: int
    """An O_PATH descriptor of the directory to serve."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The worker's only answer: it serves, or the reason why not."""

    serving: bool
    error: str = ""
    config: Requested | None = None
    """The options that the worker serves with, until it ends; None if it does not serve.

    After a restart of the plugin, other defaults of the administrator may hold for later mounts of
    the volume.
    """
    without_handles: str = ""
    """The reason why the worker holds no file handles, although the options ask for them."""
    without_passthrough: str = ""
    """The reason why reads and writes do not pass through, although the options ask for that."""


def encode(message: Handover | Report) -> bytes:
    """Return *message* as one line of JSON, with its newline."""
    return msgspec.json.encode(message) + b"\n"


def decode_handover(line: bytes) -> Handover:
    """Return the Handover in *line*.

    Raises:
        msgspec.DecodeError: *line* is no Handover.
    """
    return _decode(line, Handover)


def decode_report(line: bytes) -> Report:
    """Return the Report in *line*.

    Raises:
        msgspec.DecodeError: *line* is no Report.
    """
    return _decode(line, Report)


def _decode(line: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(line, type=kind)
    except RecursionError as error:  # nested deeper than Python's recursion limit
        raise msgspec.DecodeError(str(error)) from error
