"""The one table from opcode to handler. What is not in it is answered with ENOSYS."""

from collections.abc import Mapping
from typing import Final

from passthrough.session.handlers import (
    control,
    directories,
    entries,
    extended,
    files,
    locking,
    metadata,
    ranges,
)
from passthrough.session.session import Handler

HANDLERS: Final[Mapping[int, Handler]] = {
    **control.HANDLERS,
    **entries.HANDLERS,
    **metadata.HANDLERS,
    **files.HANDLERS,
    **directories.HANDLERS,
    **extended.HANDLERS,
    **locking.HANDLERS,
    **ranges.HANDLERS,
}
