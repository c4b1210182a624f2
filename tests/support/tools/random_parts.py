"""Parts of random requests: inodes, names, open files, callers."""

import os
import random
import stat
from collections.abc import Callable, Sequence
from typing import Final

from passthrough.session.abi import Opcode
from tests.support.tools.random_world import Build, Ids, Node, Numbers, Open, Step, World

# A nodeid and an fh that no session has given, with a slot's index in the lower half.
UNKNOWN: Final = (1 << 44) | 7
MISSING: Final = (b"absent", b"gone")
COMMON: Final = (
    *(b"file", b"dir", b"a", b"b", b"c", b"link", b"suid", b"sgid", b"team", b"sticky", b"mount"),
)
BELOW: Final = (b"inner", b"below", b"a", b"b", b"empty")
ODD: Final = (
    *(b"", b".", b"..", b"a/b", b"/", b"x" * 255, b"y" * 256, b"\xff\xfe name", b"fifo"),
    *(b"device", b"socket", b"private", b"dangling"),
)
MODES: Final = (
    *(0o600, 0o644, 0o666, 0o755, 0o777, 0o000, 0o1777, 0o2755, 0o2644, 0o4755, 0o6755, 0o2770),
    *(0o100644, 0o40755, 0o106711),
)
OPEN_FLAGS: Final = (
    *(os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR, os.O_RDWR | os.O_TRUNC),
    *(os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_SYNC, os.O_RDWR | os.O_DIRECT),
    *(os.O_RDONLY | 0x20, os.O_RDONLY | os.O_NOATIME, os.O_RDONLY | os.O_TRUNC, 3),
    *(os.O_RDWR | os.O_NOFOLLOW | os.O_NOCTTY, os.O_RDWR | os.O_EXCL | os.O_CREAT),
)


class Parts:
    """Random parts in a world, by *seed*."""

    def __init__(
        self, world: World, seed: int, callers: Sequence[Ids], *, unopened: bool = False
    ) -> None:
        """With *unopened*, some requests have no fh, as with no_open and no_opendir."""
        self.random = random.Random(seed)  # noqa: S311 - reproducible
        self._world = world
        self._callers = callers
        self._unopened = unopened

    def _make(
        self, opcode: Opcode, node: Node | None, build: Build | bytes, **more: object
    ) -> Step:
        if isinstance(build, bytes):
            fixed = build

            def build(_: int) -> bytes:
                return fixed

        caller = self.random.choice(self._callers)
        nodeids = (UNKNOWN, UNKNOWN) if node is None else node.nodeids
        body = build(0)
        shown = body if len(body) < 150 else body[:150]
        label = f"{opcode.name} {node.label if node else 'unknown'} {caller} {shown.hex()}"
        return Step(opcode, nodeids, build, caller, label, **more)  # type: ignore[arg-type]

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    def _node(self, *kinds: int) -> Node | None:
        if self._chance(0.01):
            return None
        fitting = [node for node in self._world.nodes if not kinds or node.kind in kinds]
        if not fitting or self._chance(0.1):
            if self._chance(0.6) or not self._world.nodes:
                return self._world.root
            return self.random.choice(self._world.nodes)
        return self.random.choice(fitting)

    def _directory(self) -> Node | None:
        return self._world.root if self._chance(0.5) else self._node(stat.S_IFDIR)

    def _regular(self) -> Node | None:
        return self._node(stat.S_IFREG)

    def _name(self, node: Node | None = None) -> bytes:
        draw = self.random.random()
        if draw < 0.08:
            return self.random.choice(ODD)
        if draw < 0.2:
            return self.random.choice(MISSING)
        return self.random.choice(COMMON if node is self._world.root else BELOW)

    def _file(self) -> tuple[Node | None, Numbers, int]:
        """Return an inode, an fh and open flags, which belong together most of the time."""
        return self._of(self._world.files, self._regular)

    def _stream(self) -> tuple[Node | None, Numbers, int]:
        return self._of(self._world.directories, self._directory)

    def _of(
        self, table: list[Open], other: Callable[[], Node | None]
    ) -> tuple[Node | None, Numbers, int]:
        usable = [opened for opened in table if not opened.forgotten]
        if self._unopened and self._chance(0.5):
            return other(), (0, 0), 0
        if not usable or self._chance(0.03):
            return other(), (UNKNOWN, UNKNOWN), 0
        opened = self.random.choice(usable)
        return opened.node, opened.fhs, opened.flags

    def caller(self) -> Ids:
        """Return one of the callers."""
        return self.random.choice(self._callers)
