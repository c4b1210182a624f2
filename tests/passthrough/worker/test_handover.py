import msgspec
import pytest
from hypothesis import given, strategies as st

from passthrough.options.choices import Atime, CachePolicy
from passthrough.options.table import Requested
from passthrough.worker.handover import Handover, Report, decode_handover, decode_report, encode

timeouts = st.none() | st.floats(0, 315_360_000)
configs = st.builds(
    Requested,
    cache=st.sampled_from(CachePolicy),
    entry_timeout=timeouts,
    dir_attr_timeout=timeouts,
    readonly=st.booleans(),
    atime=st.sampled_from(Atime),
    fsname=st.text(),
)
handovers = st.builds(
    Handover,
    volume=st.text(),
    config=configs,
    fuse_fd=st.integers(0, 1 << 20),
    source_fd=st.integers(0, 1 << 20),
)


@given(handovers)
def test_a_handover_survives_encoding(handover: Handover) -> None:
    assert decode_handover(encode(handover)) == handover


@given(st.builds(Report, serving=st.booleans(), error=st.text()))
def test_a_report_survives_encoding(report: Report) -> None:
    assert decode_report(encode(report)) == report


@given(handovers | st.builds(Report, serving=st.booleans(), error=st.text()))
def test_a_message_is_one_line(message: Handover | Report) -> None:
    """The reader stops at the first newline, so a name or an error must not add one."""
    line = encode(message)

    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


DEEP = b'{"later":' + b"[" * 10_000

BROKEN = {
    "nothing": b"",
    "half": b'{"volume": "v", "config"',
    "another message": b'{"serving": true}',
    "a wrong type": b'{"volume":"v","config":{},"fuse_fd":"3","source_fd":4}',
    "a config of another version": (
        b'{"volume":"v","config":{"cache":"sometimes"},"fuse_fd":3,"source_fd":4}'
    ),
    "an option of another version": (
        b'{"volume":"v","config":{"turbo":true},"fuse_fd":3,"source_fd":4}'
    ),
    "no text": b"\xff\n",
    "nested too deeply": DEEP,
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_a_malformed_handover_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_handover(line)


@pytest.mark.parametrize("line", [b"", b"Traceback\n", b"{}", b'{"serving":"yes"}', b"[]", DEEP])
def test_a_malformed_report_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_report(line)
