"""Durations, times, rates and sizes as text; no I/O."""

from typing import Final

_DURATIONS: Final = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
_TIMES: Final = (("s", 1e6), ("ms", 1e3), ("us", 1.0), ("ns", 1e-3))
_SIZES: Final = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
_WHOLE: Final = 100
"""Numbers from here on have no decimals."""


def duration(seconds: float) -> str:
    """Return *seconds* in the two largest units, such as "3 h 5 min"."""
    parts, left = [], int(seconds)
    for name, size in _DURATIONS:
        if left >= size:
            parts.append(f"{left // size} {name}")
            left %= size
    return " ".join(parts[:2]) or "0 s"


def time(us: float | None) -> str:
    """Return a time of *us* microseconds, such as "4.1 us"; empty if it is None."""
    if us is None:
        return ""
    name, size = next((each for each in _TIMES if us >= each[1]), _TIMES[-1])
    return f"{number(us / size)} {name}"


def size(amount: float | None) -> str:
    """Return an *amount* of bytes, such as "1.5 MiB"; empty if it is None."""
    if amount is None:
        return ""
    name, unit = next((each for each in _SIZES if amount >= each[1]), ("B", 1))
    return f"{number(amount / unit)} {name}"


def number(value: float | None) -> str:
    """Return *value* with one decimal if it is small and no whole number; empty if it is None."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= _WHOLE or value == int(value) else f"{value:.1f}"


def percent(share: float | None) -> str:
    """Return *share*, 1 for the whole, in percent; empty if it is None."""
    return "" if share is None else f"{number(100 * share)} %"
