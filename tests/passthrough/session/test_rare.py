import errno

import pytest

from passthrough.options.choices import SessionKind
from passthrough.session import backing
from passthrough.session.abi import Init, Opcode
from passthrough.session.negotiation import ProtocolError
from passthrough.session.rare import Rare
from tests.support.fakes.kernel import EVERYTHING, READAHEAD
from tests.support.tools import abi, wire
from tests.support.tools.options import effective

OVERLAYFS, TMPFS, EXT4 = 0x794C_7630, 0x0102_1994, 0xEF53
WITHOUT_PASSTHROUGH = EVERYTHING & ~Init.PASSTHROUGH
DEPTH = -2
"""The field max_stack_depth of INIT_OUT."""


class Core:
    """A core that keeps what INIT has agreed on."""

    def __init__(self, source_type: int = TMPFS) -> None:
        self.source_type = source_type
        self.agreed: list[tuple[int, int, bool]] = []

    def agree(self, flags: int, minor: int, passthrough: bool) -> None:
        self.agreed.append((flags, minor, passthrough))


def init(offered: int = EVERYTHING, minor: int = abi.MINOR) -> bytes:
    words = offered & 0xFFFF_FFFF, offered >> 32
    return wire.INIT_IN.pack(abi.MAJOR, minor, READAHEAD, *words)


def rare(core: Core) -> Rare:
    made = Rare(effective(session=SessionKind.KERNEL))
    made.core = core
    return made


def test_the_core_gets_what_init_has_agreed_on() -> None:
    core = Core()
    made = rare(core)

    made.serve(Opcode.INIT, init(minor=41))

    ((flags, minor, passthrough),) = core.agreed
    assert passthrough is bool(flags & Init.PASSTHROUGH)
    assert passthrough
    assert minor == 41
    assert made.uses(Init.ASYNC_READ)


@pytest.mark.parametrize(
    ("kind", "offered", "depth"),
    [
        (TMPFS, EVERYTHING, 1),
        (OVERLAYFS, EVERYTHING, 2),
        (TMPFS, EVERYTHING & ~Init.PASSTHROUGH, 0),
    ],
)
def test_the_stack_depth_is_that_of_the_source(kind: int, offered: int, depth: int) -> None:
    answer = wire.INIT_OUT.unpack(rare(Core(kind)).serve(Opcode.INIT, init(offered)))

    assert answer[DEPTH] == depth


def test_a_source_on_another_file_system_lies_deeper() -> None:
    assert [backing.stack_depth(kind) for kind in (TMPFS, EXT4, OVERLAYFS)] == [1, 1, 2]


def test_why_not_gives_the_reason_only_for_features_that_are_wanted() -> None:
    made = rare(Core())
    assert made.why_not(Init.PASSTHROUGH) == ""
    made.serve(Opcode.INIT, init(EVERYTHING & ~Init.PASSTHROUGH))

    assert made.why_not(Init.PASSTHROUGH) == "the kernel does not offer it"
    assert made.why_not(Init.CACHE_SYMLINKS) == made.why_not(Init.POSIX_ACL) == ""


def test_init_of_a_kernel_that_is_too_old_breaks_the_session() -> None:
    made = rare(Core())

    with pytest.raises(ProtocolError):
        made.serve(Opcode.INIT, init(minor=39))

    assert made.agreed is None
    assert made.broken is not None
    assert made.broken.errno == errno.EPROTO


def test_no_other_request_is_served() -> None:
    with pytest.raises(ValueError, match="opcode 1"):
        rare(Core()).serve(Opcode.LOOKUP, b"")


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.EPERM, "it takes CAP_SYS_ADMIN"), (errno.ENOENT, "[Errno 2] No such file")],
)
def test_an_errno_is_explained(number: int, text: str) -> None:
    assert backing.explain(number).startswith(text)
