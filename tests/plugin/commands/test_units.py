"""units.py: numbers as text."""

from collections.abc import Callable

import pytest

from plugin.commands import units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7200, "2 h"), (90_061, "1 d 1 h")],
)
def test_a_duration_has_two_units(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        (units.time, 0.2561, "256 ns"),
        (units.time, 1.0, "1 us"),
        (units.time, 4.096, "4.1 us"),
        (units.time, 128_400.0, "128 ms"),
        (units.time, 1e6, "1 s"),
        (units.time, 0.0, "0 ns"),
        (units.size, 0.0, "0 B"),
        (units.size, 1536.0, "1.5 KiB"),
        (units.size, 8 * 2**40, "8 TiB"),
        (units.number, 0.04, "0.0"),
        (units.number, 12.0, "12"),
        (units.number, 99.44, "99.4"),
        (units.number, 12_345.6, "12346"),
        (units.percent, 0.123, "12.3 %"),
        (units.percent, 2.0, "200 %"),
    ],
)
def test_a_number_has_the_decimals_that_matter(
    unit: Callable[[float | None], str], value: float, text: str
) -> None:
    assert unit(value) == text
    assert unit(None) == ""
