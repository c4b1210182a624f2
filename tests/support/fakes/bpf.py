"""An interpreter of seccomp(2) filters, which stands in for the kernel's."""

import struct
from collections.abc import Callable, Sequence
from operator import eq, ge

# linux/filter.h
LOAD, GO, IF_EQUAL, IF_AT_LEAST, IF_ANY_BIT, RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06

TESTS: dict[int, Callable[[int, int], bool]] = {
    IF_EQUAL: eq,
    IF_AT_LEAST: ge,
    IF_ANY_BIT: lambda left, right: bool(left & right),
}


def verdict(program: bytes, architecture: int, number: int, arguments: Sequence[int] = ()) -> int:
    """Run *program* on a system call; return SECCOMP_RET_*, with an errno in its low 16 bits."""
    padded = [*arguments, *(0,) * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *padded)  # struct seccomp_data
    lines = list(struct.iter_unpack("=HBBI", program))
    at = loaded = 0
    while True:
        code, if_true, if_false, value = lines[at]
        at += 1
        if code == LOAD:
            (loaded,) = struct.unpack_from("=I", data, value)
        elif code == RETURN:
            return int(value)
        elif code == GO:
            at += value
        else:
            at += if_true if TESTS[code](loaded, value) else if_false
