"""Random work on the tables, beside a model in Python."""

import errno
from dataclasses import dataclass, field

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.passthrough.core.probe_tables import Probe
from tests.support.tools.core_tables import DIRECTORIES, FILES, check, named

BUDGET = 4
# Up to 24 bytes lie in one table, longer ones in another.
HANDLES = st.sampled_from([b"", b"first", b"x" * 24, b"x" * 25, b"second" * 6, b"x" * 41])
LONGEST = 40


@dataclass
class Known:
    """An inode of the model."""

    ino: int
    fd: int
    handle: bytes
    shown: int
    lookups: int = 1
    opens: list[tuple[int, int]] = field(default_factory=list)
    backing: int = 0


class Work(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.probe = Probe(inodes=128, opens=8, budget=BUDGET, handle_bytes=LONGEST, places=8)
        self.known: dict[int, Known] = {}
        self.current: dict[int, int] = {}
        self.opens: dict[tuple[int, int], tuple[int, int]] = {}
        self.counted = 0
        self.fds = 100
        self.past: set[int] = set()

    def descriptor(self) -> int:
        self.fds += 1
        return self.fds

    @rule(ino=st.integers(3, 8), handle=HANDLES)
    def grant(self, ino: int, handle: bytes) -> None:
        fd = self.descriptor()
        answer = self.probe.grant(ino, fd)
        held = self.known.get(self.current.get(ino, 0))
        by_descriptor = sum(not inode.handle for inode in self.known.values())
        if held is None and by_descriptor < BUDGET:
            self.made(ino, fd, b"", named(answer), "taken")
        elif held is not None and not held.handle:
            held.lookups += 1
            assert answer == ("known", self.current[ino], held.shown)
        else:
            assert answer == "needs handle"
            self.grant_by_handle(ino, fd, handle, held)

    def grant_by_handle(self, ino: int, fd: int, handle: bytes, held: Known | None) -> None:
        answer = named(self.probe.grant(ino, fd, handle=handle))
        if len(handle) > LONGEST:
            handle = b""
        if held is not None and held.handle == handle:
            held.lookups += 1
            assert answer == ("known", self.current[ino], held.shown)
        elif handle:
            self.made(ino, -1, handle, answer, "by handle")
        else:
            self.made(ino, fd, b"", answer, "taken")

    def made(
        self, ino: int, fd: int, handle: bytes, answer: tuple[str, int, int], how: str
    ) -> None:
        result, nodeid, shown = answer
        assert result == how
        assert nodeid not in self.past
        self.past.add(nodeid)
        if ino in {inode.shown for inode in self.known.values()}:
            self.counted += 1
            assert shown == 1 << 55 | self.counted
        else:
            assert shown == ino
        self.known[nodeid] = Known(ino, fd, handle, shown)
        self.current[ino] = nodeid

    @precondition(lambda self: self.known)
    @rule(data=st.data(), count=st.integers(1, 3))
    def forget(self, data: st.DataObject, count: int) -> None:
        nodeid = data.draw(st.sampled_from(sorted(self.known)))
        inode = self.known[nodeid]
        inode.lookups = max(0, inode.lookups - count)
        assert self.probe.forget(nodeid, count) == self.left(nodeid)

    def left(self, nodeid: int) -> tuple[int, int] | None:
        inode = self.known[nodeid]
        if inode.lookups or inode.opens:
            return None
        del self.known[nodeid]
        if self.current.get(inode.ino) == nodeid:
            del self.current[inode.ino]
        return inode.fd, -1

    @precondition(lambda self: self.known)
    @rule(
        data=st.data(),
        table=st.sampled_from([FILES, DIRECTORIES]),
        backing=st.integers(-1, 3),
    )
    def open(self, data: st.DataObject, table: int, backing: int) -> None:
        nodeid = data.draw(st.sampled_from(sorted(self.known)))
        inode = self.known[nodeid]
        fd = self.descriptor()
        wanted = 0
        if not inode.opens and backing == -1:
            wanted = errno.EAGAIN
        elif sum(of == table for of, _ in self.opens) == 7:
            wanted = errno.ENFILE
        if wanted:
            with pytest.raises(OSError) as caught:
                self.probe.open(nodeid, fd, table=table, backing=backing)
            assert caught.value.errno == wanted
            return
        fh, given = self.probe.open(nodeid, fd, table=table, backing=backing)
        if not inode.opens:
            inode.backing = backing
        assert given == inode.backing
        assert (table, fh) not in self.opens
        self.opens[table, fh] = (nodeid, fd)
        inode.opens.append((table, fh))

    @precondition(lambda self: self.opens)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table, fh = data.draw(st.sampled_from(sorted(self.opens)))
        nodeid, fd = self.opens.pop((table, fh))
        inode = self.known[nodeid]
        inode.opens.remove((table, fh))
        backing = 0 if inode.opens else inode.backing
        assert self.probe.release(fh, table) == (fd, -1, backing, self.left(nodeid))

    @rule(ino=st.integers(3, 8), handle=HANDLES)
    def pin(self, ino: int, handle: bytes) -> None:
        fd = self.descriptor()
        inode = self.known.get(self.current.get(ino, 0))
        taken = inode is not None and handle != b"" and inode.handle == handle and inode.fd < 0
        assert self.probe.pin(ino, fd, handle) == taken
        if inode is not None and taken:
            inode.fd = fd

    @rule(spoil=st.booleans())
    def rebuild(self, spoil: bool) -> None:
        if spoil:
            self.probe.spoil_hash()
        self.probe.rebuild_hash()

    @rule()
    def recover(self) -> None:
        self.probe.recover()

    @invariant()
    def as_in_the_model(self) -> None:
        for nodeid, inode in self.known.items():
            found = self.probe.inode(nodeid)
            assert found is not None
            assert found["ino"] == inode.ino
            assert found["shown_ino"] == inode.shown
            assert found["lookups"] == inode.lookups
            assert found["opens"] == len(inode.opens)
            assert found["descriptor"] == inode.fd
            assert found.get("handle", b"") == inode.handle
            if inode.opens:
                assert found["backing_id"] == inode.backing
        for (table, fh), (nodeid, fd) in self.opens.items():
            assert self.probe.opened(fh, table) == (fd, -1, 2, 5, nodeid)
        for ino in range(3, 9):
            named_now = self.probe.find(ino)
            assert (named_now[1] if named_now else None) == self.current.get(ino)

    @invariant()
    def consistent(self) -> None:
        check(self.probe)


def test_random_work_is_as_in_the_model() -> None:
    run_state_machine_as_test(
        Work,
        settings=settings(
            max_examples=100, stateful_step_count=60, derandomize=True, database=None
        ),
    )
