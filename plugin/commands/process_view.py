"""Processes as a table; no I/O."""

from collections.abc import Sequence
from typing import Final

from plugin.commands import units
from plugin.commands.document import Table
from plugin.commands.processes import Process

_COLUMNS: Final = (
    *("PROCESS", "PID", "PID IN PLUGIN", "UPTIME", "MEMORY", "DESCRIPTORS", "THREADS"),
)


def process_table(found: Sequence[Process]) -> Table:
    """Return the table of the processes *found*."""
    return Table("Processes", _COLUMNS, [_row(each) for each in found])


def _row(process: Process) -> tuple[str, ...]:
    return (
        process.role,
        str(process.pid or ""),
        str(process.pid_in_plugin or ""),
        "" if process.uptime_s is None else units.duration(process.uptime_s),
        units.size(process.memory_bytes or None),
        "" if process.descriptors is None else str(process.descriptors),
        "" if process.threads is None else str(process.threads),
    )
