"""The record of a volume, as Create makes it."""

from datetime import UTC, datetime

from plugin.volume import FileName, Record, VolumeName


def record(name: str, **options: str) -> Record:
    """Return the record of a new volume *name*, with a directory of the same name."""
    return Record(
        name=VolumeName(name),
        directory=FileName(name),
        options=options,
        created_at=datetime.now(UTC),
    )
