"""live.py: timeouts that change while a volume is served, as its replies have them."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from passthrough.core.face import Core
from passthrough.core.timeouts import live_in
from passthrough.options.choices import SessionKind
from passthrough.options.timeouts import Timeouts
from passthrough.session.abi import Opcode
from passthrough.session.rare import Rare
from passthrough.worker import control, live
from passthrough.worker.control import Page
from tests.support.fakes.kernel import entry, text
from tests.support.tools import abi
from tests.support.tools.options import effective

GIVEN = Timeouts(1.5, 2.25, 3.125, 4.0625, 5.0)
OTHERS = Timeouts(0.0, 315_360_000.0, 0.000000001, 86_400.999999999, 0.0)
ABSENT = text(b"absent")


@pytest.fixture
def page() -> Iterator[int]:
    """Yield a control page, from which this process takes its timeouts."""
    fd = control.make()
    mapped = Page(fd)
    live_in(mapped.memory, live.AT)
    yield fd
    live_in(bytearray(live.END), live.AT)
    mapped.close()
    os.close(fd)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    return tmp_path


@contextmanager
def answering(source: Path) -> Iterator[Callable[[], Timeouts]]:
    """Have a thread serve a volume with the timeouts GIVEN; yield what asks for those in replies.

    Serving takes capabilities from a thread.
    """
    config = effective(session=SessionKind.KERNEL, **GIVEN._asdict())
    core = Core(config, os.open(source, os.O_PATH | os.O_DIRECTORY), Rare(config))
    with ThreadPoolExecutor(1) as thread:
        yield lambda: thread.submit(timeouts, core).result()
        assert thread.submit(core.close).result()


def timeouts(core: Core) -> Timeouts:
    """Return the timeouts in the replies to requests for a file, a directory and no file."""
    found: dict[str, float] = {}
    for name, before in ((b"file", ""), (b"directory", "dir_")):
        reply = core.call(Opcode.LOOKUP, abi.ROOT_ID, 0, 0, 1, text(name))
        looked_up = entry(reply)
        found[f"{before}entry_timeout"] = (
            looked_up["entry_valid"] + looked_up["entry_valid_nsec"] / 1e9
        )
        found[f"{before}attr_timeout"] = (
            looked_up["attr_valid"] + looked_up["attr_valid_nsec"] / 1e9
        )
    absent = core.ask(Opcode.LOOKUP, abi.ROOT_ID, 0, 0, 1, ABSENT)
    if isinstance(absent, bytes):
        fields = entry(absent)
        found["negative_timeout"] = fields["entry_valid"] + fields["entry_valid_nsec"] / 1e9
    return Timeouts(**{"negative_timeout": 0.0} | found)


@pytest.mark.usefixtures("page")
def test_a_page_without_words_leaves_the_timeouts_of_the_options(source: Path) -> None:
    with answering(source) as replies:
        assert replies() == GIVEN


def test_changed_timeouts_are_in_the_next_reply(page: int, source: Path) -> None:
    with answering(source) as replies:
        assert live.can_change(page)
        live.change(page, OTHERS)
        assert replies() == OTHERS
        live.change(page, GIVEN)
        assert replies() == GIVEN


def test_any_word_is_taken(page: int, source: Path) -> None:
    """A worker that is compromised may have written it, for its own volume."""
    os.pwrite(page, b"\xff" * (live.END - live.AT), live.AT)
    with answering(source) as replies:
        assert replies().entry_timeout > GIVEN.entry_timeout


def test_the_words_lie_behind_the_last_death(page: int) -> None:
    mapped = Page(page)
    for number in range(control.RECENT):
        mapped.add_death(control.Death(1.0, 1.0, 1, 9, 1, number))
    mapped.close()
    assert os.pread(page, live.END - live.AT, live.AT) == bytes(live.END - live.AT)
    live.change(page, OTHERS)
    assert control.read(page).recent[-1].nodeid == control.RECENT - 1


def test_workers_of_an_older_program_take_no_timeouts(page: int) -> None:
    os.pwrite(page, b"\0", live.VERSION_AT)
    assert not live.can_change(page)
