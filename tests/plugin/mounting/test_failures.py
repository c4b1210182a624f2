"""failures.py: the line on requests that fail, from two readings of the counters."""

from passthrough.worker.counters import Counters, Operation
from plugin.mounting import failures


def counters(errors: dict[str, int], **requests: int) -> Counters:
    operations = {name: Operation(0, (number,)) for name, number in requests.items()}
    return Counters(operations, errors)


def test_the_line_has_what_is_new() -> None:
    before = counters({"EACCES": 1, "ENOENT": 2}, LOOKUP=5, READ=7)
    now = counters({"EACCES": 1, "EIO": 1, "ENOENT": 4}, LOOKUP=9, READ=7, WRITE=1)
    expected = "requests fail: EIO 1, ENOENT 2; of 5 requests: LOOKUP 4, WRITE 1"
    assert failures.between(before, now) == expected


def test_there_is_no_line_without_a_failure() -> None:
    before = counters({"ENOENT": 2}, LOOKUP=5)
    assert failures.between(before, counters({"ENOENT": 2}, LOOKUP=9)) == ""


def test_numbers_that_fall_are_no_failures() -> None:
    """A worker that is compromised may write any."""
    before = counters({"EIO": 1 << 63}, LOOKUP=1 << 63)
    assert failures.between(before, counters({"EIO": 1}, LOOKUP=1)) == ""
    found = failures.between(before, counters({"EIO": 0, "EPERM": 1}, LOOKUP=1))
    assert found == "requests fail: EPERM 1; of 0 requests: none"
