"""The inodes and open files that a kernel knows of two sessions at once, and requests to both."""

import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from passthrough.session import abi
from passthrough.session.abi import Opcode

SIDES: Final = (0, 1)
Numbers = tuple[int, int]
Ids = tuple[int, int]


@dataclass(eq=False)
class Node:
    """An inode that the kernel knows."""

    nodeids: Numbers
    inos: Numbers
    label: str
    lookups: list[int] = field(default_factory=lambda: [0, 0])
    mode: int = 0
    """st_mode, as the last answer has it."""

    @property
    def kind(self) -> int:
        """The type of the file, S_IF*."""
        return stat.S_IFMT(self.mode)


@dataclass(eq=False)
class Open:
    """An open file or directory."""

    node: Node
    fhs: Numbers
    flags: int
    forgotten: bool = False


Build = Callable[[int], bytes]


class Step(NamedTuple):
    """One request: `nodeids` and `build` say what each session gets of it."""

    opcode: Opcode
    nodeids: Numbers
    build: Build
    caller: Ids
    label: str
    extensions: bytes = b""
    released: Open | None = None
    opened: tuple[Node | None, int] = (None, 0)
    malformed: bool = False


ROOT: Final = (abi.ROOT_ID, abi.ROOT_ID)


class World:
    """What the kernel knows; both sessions must agree on it."""

    def __init__(self) -> None:
        self.root = Node(ROOT, (0, 0), "root", mode=stat.S_IFDIR)
        self.nodes: list[Node] = []
        self.files: list[Open] = []
        self.directories: list[Open] = []
        self.by_nodeid: tuple[dict[int, Node], dict[int, Node]] = ({1: self.root}, {1: self.root})

    def is_open(self, node: Node) -> bool:
        """Return whether the kernel has *node* open."""
        return any(opened.node is node for opened in (*self.files, *self.directories))

    def forget(self, node: Node) -> None:
        """Drop an inode without lookups."""
        self.nodes.remove(node)
        for side in SIDES:
            del self.by_nodeid[side][node.nodeids[side]]
