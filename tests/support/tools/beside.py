"""The session in Python and the compiled core, side by side: the same requests, the same answers.

Each has a source of its own, filled alike. Numbers that differ by nature are not compared as such:
a nodeid, an fh and a st_ino of one session must always stand for the same of the other. Times
within the test, and blocks on the disk, are not compared either.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from passthrough.identity import credentials
from passthrough.linux import privileges
from passthrough.options.choices import Squash
from passthrough.options.effective import Effective
from passthrough.session import abi, wire
from passthrough.session.abi import Init, Notification, Opcode
from tests.support.fakes.kernel import ATTR_FIELDS, ENTRY_FIELDS, EVERYTHING
from tests.support.tools.implementations import IMPLEMENTATIONS, ByteSession
from tests.support.tools.random_requests import Generator
from tests.support.tools.random_world import SIDES, Ids, Node, Open, Step, World

NAMES: Final = ("python", "core")
OFFERED: Final = EVERYTHING & ~Init.PASSTHROUGH
_TIMES: Final = ("atime", "mtime", "ctime")
_STATX_FIELDS: Final = (
    *("attr_valid", "attr_valid_nsec", "flags", "mask", "blksize", "attributes", "nlink", "uid"),
    *("gid", "mode", "ino", "size", "blocks", "attributes_mask", "atime", "atimensec", "btime"),
    *("btimensec", "ctime", "ctimensec", "mtime", "mtimensec", "rdev_major", "rdev_minor"),
    *("dev_major", "dev_minor"),
)
# Both find out by times and size if others may have changed the file, which the kernel then has to
# know, but not from the same moment on: the core remembers them only where its own users write.
_OF_LOCKS: Final = {"SETLK", "SETLKW"}
_WORD: Final = 8
Fields = dict[str, int]


class DifferenceError(AssertionError):
    """Both sessions answer, and not alike."""


class Beside:
    """Both sessions, and the world that a kernel would know of them."""

    def __init__(
        self, sources: tuple[Path, Path], options: Effective, offered: int = OFFERED
    ) -> None:
        self.world = World()
        self.trace: list[str] = []
        self._since = int(time.time()) - 2
        self._unique = 2
        self._readonly = options.readonly
        self._squashes = options.squash is not Squash.NONE
        self._threads = [ThreadPoolExecutor(1, name) for name in NAMES]
        self._sessions: list[ByteSession] = []
        for name, thread, source in zip(NAMES, self._threads, sources, strict=True):
            thread.submit(_prepare).result()
            self._sessions.append(thread.submit(IMPLEMENTATIONS[name], source, options).result())
        flags = (offered & 0xFFFF_FFFF, offered >> 32)
        body = wire.INIT_IN.pack(abi.MAJOR, abi.MINOR, 131_072, *flags)
        self._compare("INIT", *self._ask(Opcode.INIT, (1, 1), (body, body), (0, 0)))

    def close(self) -> None:
        """End both sessions."""
        for session, thread in zip(self._sessions, self._threads, strict=True):
            thread.submit(session.close).result()
            thread.shutdown()

    def run(self, generator: Generator, steps: int) -> None:
        """Send random requests.

        Raises:
            DifferenceError: with the last requests.
        """
        try:
            for _ in range(steps):
                if self.world.directories and generator.random.random() < 1 / 20:
                    self.list_directory(generator)
                else:
                    self.do(generator.step())
            self._end(generator)
        except DifferenceError as error:
            last = "\n".join(self.trace[-12:])
            raise DifferenceError(f"{error}\nafter {len(self.trace)} requests:\n{last}") from None

    def _end(self, generator: Generator) -> None:
        """Close all that is open, and forget all that is known."""
        for opcode, table in (
            (Opcode.RELEASE, self.world.files),
            (Opcode.RELEASEDIR, self.world.directories),
        ):
            for opened in [*table]:
                self.do(generator.release(opcode, opened))
        for node in [*self.world.nodes]:
            self.do(generator.forget(node))

    # One request

    def do(self, step: Step) -> None:
        """Send a step to both, and compare what comes back."""
        self.trace.append(step.label)
        bodies = (step.build(0) + step.extensions, step.build(1) + step.extensions)
        words = len(step.extensions) // _WORD
        answers = self._ask(step.opcode, step.nodeids, bodies, step.caller, words)
        replies = self._compare(step.opcode.name, *answers, malformed=step.malformed)
        if replies is None:
            return
        if step.released is not None:
            for table in (self.world.files, self.world.directories):
                if step.released in table:
                    table.remove(step.released)
        compare = _REPLIES.get(step.opcode)
        if compare is None:
            self._same("the body", *replies)
        else:
            compare(self, step, *replies)

    def _ask(
        self,
        opcode: int,
        nodeids: tuple[int, int],
        bodies: tuple[bytes, bytes],
        caller: Ids,
        words: int = 0,
    ) -> list[list[bytes]]:
        """Send one request to both; return the messages of each."""
        self._unique += 2
        messages = []
        for side in SIDES:
            length = wire.IN_HEADER.size + len(bodies[side])
            head = (length, opcode, self._unique, nodeids[side], *caller, 1, words)
            request = wire.IN_HEADER.pack(*head) + bodies[side]
            future = self._threads[side].submit(self._sessions[side].send, request)
            messages.append(future.result(60))
        return messages

    def _compare(
        self, name: str, one: list[bytes], two: list[bytes], *, malformed: bool = False
    ) -> tuple[bytes, bytes] | None:
        """Compare answers up to their bodies; return these, or None if there is no success."""
        replies: tuple[list[bytes], list[bytes]] = ([], [])
        notes: tuple[list[object], list[object]] = ([], [])
        for side, messages in enumerate((one, two)):
            for message in messages:
                length, error, unique = wire.OUT_HEADER.unpack_from(message)
                self._same("the length", length, len(message))
                body = message[wire.OUT_HEADER.size :]
                if unique:
                    replies[side].append(message)
                else:
                    notes[side].append(self._notification(side, error, body))
        self._same(f"the number of answers to {name}", *map(len, replies))
        errors = [-wire.OUT_HEADER.unpack_from(reply[0])[1] if reply else 0 for reply in replies]
        if all(errors) and self._may_differ(name, errors, malformed=malformed):
            return None
        if name == "OPEN" and malformed:
            notes = ([], [])
        if name not in _OF_LOCKS:
            self._same(f"notifications of {name}", *notes)
        self._same(f"the errno of {name}", *(os.strerror(error) for error in errors))
        if not replies[0]:
            return None
        self.trace[-1:] = [f"{line} -> {errors[0]}" for line in self.trace[-1:]]
        if errors[0]:
            return None
        return replies[0][0][wire.OUT_HEADER.size :], replies[1][0][wire.OUT_HEADER.size :]

    def _may_differ(self, name: str, errors: list[int], *, malformed: bool) -> bool:
        """Return whether two failures may have different errnos, or notifications."""
        if self._readonly and errors[1] == errno.EROFS:
            return True  # the core refuses before it looks at the request
        if malformed and self._squashes and errors[0] == errno.EIO:
            return True  # the core asks first if the caller can reach the inode
        # After an OPEN that has cleared no bits, the session in Python notifies all the same.
        return name == "OPEN" and errors[0] == errors[1]

    def _notification(self, side: int, code: int, body: bytes) -> object:
        if code == Notification.INVAL_INODE:
            nodeid, *rest = wire.NOTIFY_INVAL_INODE_OUT.unpack(body)
            node = self.world.by_nodeid[side].get(nodeid)
            return code, node.label if node else "unknown", *rest
        return code, body

    def _same(self, what: str, one: object, two: object) -> None:
        if one != two:
            raise DifferenceError(f"{what}: python has {one!r}, core has {two!r}")

    # Nodeids, st_ino, attributes

    def _node(self, fields: list[Fields], label: str) -> Node | None:
        """Count a lookup of the inode of two entries; return it, None for a negative entry."""
        nodeids = (fields[0]["nodeid"], fields[1]["nodeid"])
        self._same("a negative entry", not nodeids[0], not nodeids[1])
        if not nodeids[0]:
            return None
        known = [self.world.by_nodeid[side].get(nodeids[side]) for side in SIDES]
        node = known[0]
        if node is None and known[1] is None:
            label = f"{label}#{nodeids[1] & 0xFFFF_FFFF}"
            node = Node(nodeids, (fields[0]["ino"], fields[1]["ino"]), label)
            self.world.nodes.append(node)
            for side in SIDES:
                self.world.by_nodeid[side][nodeids[side]] = node
        self._same("a known inode", *(found and found.label for found in (node, known[1] or node)))
        assert node is not None
        if node is not self.world.root:
            node.lookups = [count + 1 for count in node.lookups]
        return node

    def _attributes(self, fields: list[Fields], node: Node | None) -> None:
        """Compare attributes; the numbers of *node* must be those of before."""
        if node is not None:
            node.mode = fields[0]["mode"]
        if node is self.world.root and node.inos == (0, 0) and "nodeid" not in fields[0]:
            node.inos = (fields[0]["ino"], fields[1]["ino"])
        # An entry of the root has its nodeid for a st_ino in the session in Python.
        if node is not None and (node is not self.world.root or "nodeid" not in fields[0]):
            self._same("st_ino", [found["ino"] for found in fields], [*node.inos])
        self._same("attributes", *(self._comparable(found) for found in fields))

    def _comparable(self, fields: Fields) -> Fields:
        left = {
            name: value
            for name, value in fields.items()
            if name not in {"nodeid", "ino", "blocks", "dev_major", "dev_minor"}
        }
        for name in (*_TIMES, "btime"):
            if left.get(name, 0) >= self._since:
                left[name] = left[f"{name}nsec"] = -1
        return left

    # Replies by opcode

    def _entry(self, step: Step, *bodies: bytes) -> Node | None:
        fields = [
            dict(zip(ENTRY_FIELDS, wire.ENTRY_OUT.unpack_from(body), strict=True))
            for body in bodies
        ]
        node = self._node(fields, step.opcode.name.lower())
        self._attributes(fields, node)
        return node

    def _lone_entry(self, step: Step, *bodies: bytes) -> None:
        self._same("the length", *(len(body) for body in bodies))
        self._entry(step, *bodies)

    def _attr(self, step: Step, *bodies: bytes) -> None:
        names = ("attr_valid", "attr_valid_nsec", *ATTR_FIELDS)
        fields = [dict(zip(names, wire.ATTR_OUT.unpack(body), strict=True)) for body in bodies]
        self._same("padding", *(body[12:16] for body in bodies))
        self._attributes(fields, self.world.by_nodeid[0].get(step.nodeids[0]))

    def _statx(self, step: Step, *bodies: bytes) -> None:
        fields = [
            dict(zip(_STATX_FIELDS, wire.STATX_OUT.unpack(body), strict=True)) for body in bodies
        ]
        cut = [wire.STATX_OUT.pack(*found.values()) for found in fields]
        self._same("padding", cut, [*bodies])
        self._attributes(fields, self.world.by_nodeid[0].get(step.nodeids[0]))

    def _statfs(self, _step: Step, *bodies: bytes) -> None:
        fields = [wire.STATFS_OUT.unpack(body) for body in bodies]
        cut = [wire.STATFS_OUT.pack(*found) for found in fields]
        self._same("padding", cut, [*bodies])
        # blocks, files, bsize, namelen, frsize; what is free changes meanwhile
        self._same("statfs", *(found[:1] + found[3:4] + found[5:] for found in fields))

    def _opened(self, step: Step, *bodies: bytes) -> None:
        node, flags = step.opened
        self._keep(self.world.files if step.opcode == Opcode.OPEN else None, node, flags, *bodies)

    def _created(self, step: Step, *bodies: bytes) -> None:
        size = wire.ENTRY_OUT.size
        node = self._entry(step, *bodies)
        self._keep(self.world.files, node, step.opened[1], *(body[size:] for body in bodies))

    def _keep(
        self, table: list[Open] | None, node: Node | None, flags: int, *bodies: bytes
    ) -> None:
        fields = [wire.OPEN_OUT.unpack(body) for body in bodies]
        self._same("open flags and backing id", *(found[1:] for found in fields))
        assert node is not None
        table = self.world.directories if table is None else table
        table.append(Open(node, (fields[0][0], fields[1][0]), flags))

    # Listings

    def list_directory(self, generator: Generator) -> None:
        """List an open directory in parts, from its begin or from an offset that was given."""
        usable = [opened for opened in self.world.directories if not opened.forgotten]
        if not usable:
            return
        opened = generator.random.choice(usable)
        plus = generator.random.random() < 2 / 3
        size = generator.random.choice((8, 160, 300, 1000, 4096, 1 << 20))
        caller = generator.caller()
        self.trace.append(f"list {opened.node.label} {caller} plus={plus} size={size}")
        self._same(
            "listings", *(sorted(names) for names in self._listings(opened, caller, size, plus))
        )

    def _listings(
        self, opened: Open, caller: Ids, size: int, plus: bool
    ) -> list[dict[bytes, tuple[int, Fields | None]]]:
        opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
        found: list[dict[bytes, tuple[int, Fields | None]]] = [{}, {}]
        offsets = [0, 0]
        done = [False, False]
        while not all(done):
            bodies = [
                wire.READ_IN.pack(opened.fhs[side], offsets[side], size, 0, 0, 0) for side in SIDES
            ]
            answers = self._ask(opcode, opened.node.nodeids, (bodies[0], bodies[1]), caller)
            replies = self._compare(opcode.name, *answers)
            if replies is None:
                break
            for side in SIDES:
                before = len(found[side])
                for name, offset, kind, fields in _parts(replies[side], plus=plus):
                    offsets[side] = offset
                    found[side][name] = (kind, fields)
                done[side] = len(found[side]) == before
        both = found[0].keys() & found[1].keys()
        for name in sorted(both, key=lambda name: _lone(found[0][name][1])):
            kinds = [rows[name][0] for rows in found]
            self._same(f"the type of {name!r}", *kinds)
            self._listed(name, [rows[name][1] for rows in found])
        return found

    def _listed(self, name: bytes, rows: list[Fields | None]) -> None:
        """Compare two entries of READDIRPLUS, or count the lone one.

        The session in Python leaves out entries that the kernel has been told of a moment ago.
        """
        fields = [found for found in rows if found is not None]
        given = [bool(found["nodeid"]) for found in fields]
        if all(given) and len(fields) == len(NAMES):
            self._attributes(fields, self._node(fields, os.fsdecode(name)))
        elif any(given):
            self._same(f"an entry of {name!r}", given[0], False)
            nodeid = fields[1]["nodeid"]
            node = self.world.by_nodeid[1].get(nodeid)
            self._same(f"an inode of {name!r}", node is not None, True)
            if node is not None and node is not self.world.root:
                node.lookups[1] += 1


def _lone(fields: Fields | None) -> bool:
    """Return whether the session in Python may have left an entry out: another name has it."""
    return fields is not None and not fields["nodeid"]


def _parts(body: bytes, *, plus: bool) -> Iterator[tuple[bytes, int, int, Fields | None]]:
    """Yield the name, offset, type and entry of each part of a listing."""
    position = 0
    while position < len(body):
        fields = None
        if plus:
            fields = dict(
                zip(ENTRY_FIELDS, wire.ENTRY_OUT.unpack_from(body, position), strict=True)
            )
            position += wire.ENTRY_OUT.size
        _, offset, length, kind = wire.DIRENT.unpack_from(body, position)
        position += wire.DIRENT.size
        yield body[position : position + length], offset, kind, fields
        position += -(-length // _WORD) * _WORD


_REPLIES: Final[dict[Opcode, Callable[..., object]]] = {
    **dict.fromkeys(
        (Opcode.LOOKUP, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK),
        Beside._lone_entry,
    ),
    **dict.fromkeys((Opcode.GETATTR, Opcode.SETATTR), Beside._attr),
    **dict.fromkeys((Opcode.CREATE, Opcode.TMPFILE), Beside._created),
    **dict.fromkeys((Opcode.OPEN, Opcode.OPENDIR), Beside._opened),
    Opcode.STATX: Beside._statx,
    Opcode.STATFS: Beside._statfs,
}


def _prepare() -> None:
    """Prepare a thread as the worker prepares its process."""
    privileges.unshare(privileges.CLONE_FS)
    os.umask(0)
    credentials.keep_capabilities()
    privileges.set_groups(())
