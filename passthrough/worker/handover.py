"""The messages between the keeper of a mount and its worker: one line of JSON each way.

The keeper writes a Handover to the worker's standard input, and keeps that pipe open while the
worker shall live. The worker answers with one Report on its standard output. With a predecessor the
report says that everything is ready, and the worker serves once the keeper writes KEEP. If that
pipe ends before, the predecessor serves on.
"""

from typing import Final, TypeVar

import msgspec

from passthrough.options.table import Requested

T = TypeVar("T")

KEEP: Final = b"k"
"""The keeper writes it to the standard input of a process with a predecessor, after the Report."""


class Predecessor(msgspec.Struct, frozen=True, kw_only=True):
    """The guards of another program, which this program replaces (predecessor.py)."""

    group: int
    """Their process group."""
    control_fd: int
    """Their control page."""


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """The mount that a worker serves, with descriptors that it inherits and then owns."""

    volume: str
    """The volume in log texts: the name of its directory, or without Docker the source's path."""
    config: Requested
    fuse_fd: int
    """The descriptor of /dev/fuse that the mount was made with."""
    source_fd: int = -1
    """An O_PATH descriptor of the directory to serve; with a predecessor none."""
    control_fd: int | None = None
    """The control page (control.py); None: no plugin reads it."""
    predecessor: Predecessor | None = None
    """The guards to replace, which have served with the same `config`; the page is a new one."""


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
    offered: int = 0
    """The flags of INIT that the kernel offers; 0 if they are unknown (negotiation.py)."""
    used: int = 0
    """The flags that INIT has agreed on; 0 if they are unknown."""


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
