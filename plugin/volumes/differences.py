"""The options that differ between a mount and another one of the same volume; no I/O."""

from typing import Final, NamedTuple

from passthrough.options.effective import Effective
from passthrough.options.table import OPTIONS, Requested, as_text

# With `owner` each mount reads these from its source, and before the mount they are not known.
_FROM_SOURCE: Final = ("anon_uid", "anon_gid")


class Difference(NamedTuple):
    """An option that has another value."""

    option: str
    before: str
    after: str


def differences(before: Effective | None, after: Effective) -> list[Difference]:
    """Return the options of *after* that have another value than in *before*.

    If *before* is None, these are the options that are not at their defaults, with an empty text.
    """
    old = as_text(Requested() if before is None else before)
    new = as_text(after if before is not None else after.requested)
    return [
        Difference(option, "" if before is None else old[option], new[option])
        for option in OPTIONS
        if old[option] != new[option]
        and (option not in _FROM_SOURCE or getattr(after, option) is not None)
    ]
