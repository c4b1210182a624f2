"""Workers that are killed with requests in hand, and their successors."""

import errno
import fcntl
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from passthrough.options.choices import SessionKind
from passthrough.session.abi import Init, Opcode
from tests.passthrough.core.probe_journal import blame, memory
from tests.support.fakes.kernel import entry, listed, message, text
from tests.support.tools import abi, wire
from tests.support.tools.callers import ROOT
from tests.support.tools.options import effective
from tests.support.tools.processes import wait_until
from tests.support.tools.successors import Successors, flock

CONFIG = effective(session=SessionKind.KERNEL)
FEATURES = int(Init.HANDLE_KILLPRIV_V2 | Init.DO_READDIRPLUS | Init.FLOCK_LOCKS)
# In struct Journal
DONE_AT, STAGE_AT = 0, 16
WAITING = 100
LIMIT_S = 5.0
MANY = 30
Held = Callable[[Successors, int, int], None]


def with_a_request_in_hand(source: Path, work: Held) -> None:
    """Call *work* while a request of a dead worker waits for a lock, with its place and nodeid."""
    (source / "file").write_bytes(bytes(100))

    def run() -> None:
        with (source / "file").open("r+b") as held, Successors(source, CONFIG, FEATURES) as volume:
            nodeid, fh = volume.open()
            fcntl.flock(held, fcntl.LOCK_EX)
            body = flock(fh, fcntl.F_WRLCK)
            volume.kernel.send(message(Opcode.SETLKW, body, nodeid, WAITING))
            place = volume.await_in_hand(WAITING)
            volume.kill()
            fcntl.flock(held, fcntl.LOCK_UN)
            work(volume, place, nodeid)

    ROOT.run(run)


def test_a_request_in_hand_is_answered_by_the_next_worker(source: Path) -> None:
    def work(volume: Successors, _place: int, nodeid: int) -> None:
        volume.start()
        assert volume.reply_to(WAITING).error == 0
        assert volume.ask(message(Opcode.STATFS, b"", nodeid, 8)).error == 0
        while volume.places():  # the reply comes before the note that it has been sent
            os.sched_yield()

    with_a_request_in_hand(source, work)


def test_a_worker_that_takes_over_may_be_killed(source: Path) -> None:
    def work(volume: Successors, _place: int, _nodeid: int) -> None:
        for _ in range(20):
            volume.start()
            volume.kill()
        volume.start()
        assert volume.reply_to(WAITING).error == 0

    with_a_request_in_hand(source, work)


def test_a_request_that_has_crashed_two_workers_is_refused(source: Path) -> None:
    def work(volume: Successors, place: int, nodeid: int) -> None:
        blame(volume.core, place, 2)
        volume.start()
        assert volume.reply_to(WAITING).error == errno.EIO
        assert volume.ask(message(Opcode.STATFS, b"", nodeid, 8)).error == 0

    with_a_request_in_hand(source, work)


def test_a_request_that_has_crashed_one_worker_is_tried_again(source: Path) -> None:
    def work(volume: Successors, place: int, _nodeid: int) -> None:
        blame(volume.core, place, 1)
        volume.start()
        assert volume.reply_to(WAITING).error == 0

    with_a_request_in_hand(source, work)


def test_a_complete_reply_is_sent_again(source: Path) -> None:
    """The kernel may have it already, and then drops it."""
    (source / "file").touch()

    def run() -> None:
        with Successors(source, CONFIG, FEATURES) as volume:
            first = volume.ask(message(Opcode.LOOKUP, text(b"file"), unique=2))
            fd, places, _ = memory(volume.core)
            found: list[int] = []
            while not found:  # the reply comes before the note that it has been sent
                found = [place for place in places if done_at(fd, place) == 2]
            volume.kill()
            volume.write(found[0] + DONE_AT, 0, 8)
            volume.start()
            assert volume.reply_to(2) == first
            forgetting = wire.FORGET_IN.pack(1)
            volume.kernel.send(message(Opcode.FORGET, forgetting, entry(first.body)["nodeid"], 4))
            await_known(volume, 1)

    ROOT.run(run)


def await_known(volume: Successors, count: int) -> None:
    """Wait until so many inodes are known: FORGET has no answer."""
    deadline = time.monotonic() + LIMIT_S
    while volume.core.inodes != count and time.monotonic() < deadline:
        os.sched_yield()
    assert volume.core.inodes == count


def done_at(fd: int, place: int) -> int:
    return int.from_bytes(os.pread(fd, 8, place), "little")


def test_a_caller_gets_no_second_estale_after_a_death(source: Path) -> None:
    """The kernel repeats a call by path once, and the file that it then finds may be removed."""
    numbers = (2, 6)
    for number in numbers:  # later, a worker might take a descriptor of this process for a lost one
        (source / f"{number}").touch()

    def run() -> None:
        errors = []
        with Successors(source, CONFIG, FEATURES) as volume:
            for number in numbers:
                looked_up = volume.ask(message(Opcode.LOOKUP, text(b"%d" % number), unique=number))
                (source / f"{number}").unlink()
                body, nodeid = wire.OPEN_IN.pack(os.O_RDWR, 0), entry(looked_up.body)["nodeid"]
                errors.append(volume.ask(message(Opcode.OPEN, body, nodeid, number + 2)).error)
                volume.kill()
                volume.start()

        assert errors == [errno.ESTALE, 0]

    ROOT.run(run)


def test_a_descriptor_that_the_tables_lack_is_closed(source: Path) -> None:
    def run() -> None:
        with Successors(source, CONFIG, FEATURES) as volume:
            volume.ask(message(Opcode.STATFS, unique=2))
            lost = [os.open(source, os.O_PATH) for _ in range(3)]
            volume.kill()
            volume.start()
            volume.ask(message(Opcode.STATFS, unique=4))
            while any(os.path.exists(f"/proc/self/fd/{fd}") for fd in lost):
                time.sleep(0.001)

    ROOT.run(run)


class _Replaced(Successors):
    """Successors that find a descriptor lost, of which the number then gets another file."""

    numbers: tuple[int, int] | None = None

    def take_over(self) -> None:
        super().take_over()
        if self.numbers is not None:
            os.dup2(*self.numbers)


def test_a_number_that_leads_elsewhere_meanwhile_stays(source: Path) -> None:
    (source / "other").touch()

    def run() -> None:
        with _Replaced(source, CONFIG, FEATURES) as volume:
            volume.ask(message(Opcode.STATFS, unique=2))
            lost = [os.open(source, os.O_PATH) for _ in range(2)]
            other = os.open(source / "other", os.O_PATH)
            volume.kill()
            volume.numbers = other, lost[0]
            volume.start()
            volume.ask(message(Opcode.STATFS, unique=4))
            while os.path.exists(f"/proc/self/fd/{lost[1]}"):
                time.sleep(0.001)
            assert os.path.samestat(os.fstat(lost[0]), (source / "other").stat())

    ROOT.run(run)


def test_a_burst_before_a_death_leaves_no_pages(source: Path) -> None:
    (source / "file").write_bytes(bytes(100))

    def run() -> None:
        with (source / "file").open("r+b") as held, Successors(source, CONFIG, FEATURES) as volume:
            nodeid, fh = volume.open()
            fcntl.flock(held, fcntl.LOCK_EX)
            for number in range(MANY):
                volume.kernel.send(message(Opcode.SETLKW, flock(fh), nodeid, WAITING + 2 * number))
            volume.await_in_hand(WAITING + 2 * (MANY - 1))
            fcntl.flock(held, fcntl.LOCK_UN)
            while volume.places():
                os.sched_yield()
            volume.kill()
            volume.start()
            volume.ask(message(Opcode.STATFS, unique=8))
            fd, places, present = memory(volume.core)
            assert len(places) > MANY
            # A page each of the head and of the last reply, beside what the places have.
            limit = 3 * (present + 16_384) + 4096 * (len(places) + 2)
            assert os.fstat(fd).st_blocks * 512 <= limit

    ROOT.run(run)


def test_an_idle_volume_has_pages_for_its_readers_alone(source: Path) -> None:
    """68 KiB each and what replies have used, and a page for each other place."""

    def run() -> None:
        with Successors(source, CONFIG, FEATURES) as volume:
            volume.ask(message(Opcode.STATFS, unique=2))
            fd, places, present = memory(volume.core)
            assert os.fstat(fd).st_blocks * 512 <= 2 * (present + 16_384) + 4096 * len(places)

    ROOT.run(run)


class Storm:
    """Sends many requests at a time for a few files, and counts as the kernel does."""

    def __init__(self, volume: Successors, seed: int) -> None:
        self._volume = volume
        self._random = random.Random(seed)  # noqa: S311
        self._unique = 10
        self._asked: dict[int, tuple[Opcode, int]] = {}
        self.lookups: Counter[int] = Counter()
        self._opened: list[tuple[Opcode, int, int]] = []
        self._listing = 0

    def send(self, opcode: Opcode, body: bytes, nodeid: int = abi.ROOT_ID) -> None:
        self._unique += 2
        if opcode not in {Opcode.FORGET, Opcode.BATCH_FORGET}:
            self._asked[self._unique] = (opcode, nodeid)
        self._volume.kernel.send(message(opcode, body, nodeid, self._unique))

    def some(self) -> None:
        """Send one of the requests that may be sent now."""
        draw = self._random
        choice = draw.randrange(8)
        known = [nodeid for nodeid, count in self.lookups.items() if count > 0]
        if choice < 3 or not known:
            self.send(Opcode.LOOKUP, text(b"%d" % draw.randrange(20)))
        elif choice == 3:
            nodeid = draw.choice(known)
            self.lookups[nodeid] -= 1  # this one is not forgotten before the reply
            self.send(Opcode.OPEN, wire.OPEN_IN.pack(os.O_RDWR, 0), nodeid)
        elif choice == 4 and self._opened:
            opcode, nodeid, fh = self._opened.pop(draw.randrange(len(self._opened)))
            self.send(opcode, wire.RELEASE_IN.pack(fh, 0, 0, 0), nodeid)
        elif choice == 5:
            self.send(Opcode.READDIRPLUS, wire.READ_IN.pack(self._listing, 0, 4096, 0, 0, 0))
        elif choice == 6:
            nodeid = draw.choice(known)
            self.lookups[nodeid] -= 1
            self.send(Opcode.FORGET, wire.FORGET_IN.pack(1), nodeid)
        else:
            self.forget([draw.choice(known)])

    def forget(self, nodeids: list[int]) -> None:
        """Forget one lookup of each at once."""
        rows = b"".join(wire.FORGET_ONE.pack(nodeid, 1) for nodeid in nodeids)
        self.lookups.subtract(nodeids)
        self.send(Opcode.BATCH_FORGET, wire.BATCH_FORGET_IN.pack(len(nodeids)) + rows)

    def take(self) -> None:
        """Take a reply; a second one to the same request counts for nothing."""
        reply = self._volume.reply()
        opcode, nodeid = self._asked.pop(reply.unique, (None, 0))
        if opcode is None:
            return
        # A file may be closed already; the kernel drops the error.
        allowed = {0, errno.EBADF} if opcode in {Opcode.RELEASE, Opcode.RELEASEDIR} else {0}
        assert reply.error in allowed, (opcode, reply.error)
        if opcode is Opcode.LOOKUP:
            self.lookups[entry(reply.body)["nodeid"]] += 1
        elif opcode is Opcode.OPEN:
            self.lookups[nodeid] += 1
            self._opened.append((Opcode.RELEASE, nodeid, wire.OPEN_OUT.unpack(reply.body)[0]))
        elif opcode is Opcode.OPENDIR:
            self._listing = wire.OPEN_OUT.unpack(reply.body)[0]
        elif opcode is Opcode.READDIRPLUS:
            rows = listed(reply.body, plus=True).values()
            self.lookups.update(nodeid for nodeid, *_ in rows if nodeid)

    @property
    def in_flight(self) -> int:
        return len(self._asked)

    def settle(self) -> None:
        """Wait for all replies."""
        while self._asked:
            self.take()

    def begin(self) -> None:
        self.send(Opcode.OPENDIR, wire.OPEN_IN.pack(0, 0))
        self.settle()

    def end(self) -> None:
        """Give all back, and wait until that is done."""
        self.settle()
        for opcode, nodeid, fh in self._opened:
            self.send(opcode, wire.RELEASE_IN.pack(fh, 0, 0, 0), nodeid)
        self._opened.clear()
        self.send(Opcode.RELEASEDIR, wire.RELEASE_IN.pack(self._listing, 0, 0, 0))
        self.settle()
        self.forget(list(self.lookups.elements()))
        await_known(self._volume, 1)


KILLS = 30
AT_ONCE = 8


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_counted_twice(source: Path, seed: int) -> None:
    for number in range(20):
        (source / str(number)).touch()

    def run() -> None:
        drawn = random.Random(seed)  # noqa: S311
        before = descriptors()
        with Successors(source, CONFIG, FEATURES) as volume:
            # Before it has taken over, the worker might take that of the listing for a lost one.
            volume.ask(message(Opcode.STATFS, unique=2))
            at_rest = descriptors()
            storm = Storm(volume, seed)
            storm.begin()
            for _ in range(KILLS):
                until = time.monotonic() + drawn.uniform(0.0005, 0.02)
                while time.monotonic() < until:
                    while storm.in_flight < AT_ONCE:
                        storm.some()
                    storm.take()
                volume.kill()
                volume.start()
            storm.end()
            assert (volume.core.inodes, volume.core.files, volume.core.directories) == (1, 0, 0)
            volume.kill()
            volume.start()
            storm.begin()
            storm.end()
            wait_until(lambda: descriptors() == at_rest)
        assert before <= at_rest

    ROOT.run(run)


def descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            continue  # that of the listing
    return found


def test_a_descriptor_that_was_open_before_the_first_worker_stays(source: Path) -> None:
    """But its number may belong to another file since."""

    def run() -> None:
        stays, closed = (os.open(source, os.O_PATH) for _ in range(2))
        with Successors(source, CONFIG, FEATURES) as volume:
            volume.ask(message(Opcode.STATFS, unique=2))
            os.close(closed)
            lost = os.open("/", os.O_PATH)
            assert lost == closed
            volume.kill()
            volume.start()
            volume.ask(message(Opcode.STATFS, unique=4))
            while os.path.exists(f"/proc/self/fd/{lost}"):
                time.sleep(0.001)
            os.fstat(stays)

    ROOT.run(run)
