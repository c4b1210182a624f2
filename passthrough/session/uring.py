"""io_uring with one command at a time, io_uring(7): given to the kernel, waited for, looked at.

Every system call of io_uring is here. A ring is used by the one thread that has made it, and the
kernel adds results in that thread's own calls only (IORING_SETUP_DEFER_TASKRUN). So this side and
the kernel's never touch the shared memory at once, and plain loads and stores will do on every
processor. The ring refuses all commands but IORING_OP_URING_CMD, for as long as it lives.

The calls go through ctypes: the binding that exists holds the interpreter's lock while it waits,
and cannot fill in a command's own bytes. No descriptor leads to a ring (IORING_REGISTER_RING_FDS),
because files and inodes need the descriptors.
"""

import ctypes
import errno
import mmap
import os
from struct import Struct
from typing import Final

# The same numbers on every architecture.
_SYS_IO_URING_SETUP: Final = 425
_SYS_IO_URING_ENTER: Final = 426
_SYS_IO_URING_REGISTER: Final = 427

# linux/io_uring.h
_SETUP_R_DISABLED: Final = 1 << 6
_SETUP_SQE128: Final = 1 << 10
_SETUP_SINGLE_ISSUER: Final = 1 << 12
_SETUP_DEFER_TASKRUN: Final = 1 << 13
_SETUP_NO_SQARRAY: Final = 1 << 16
_ENTER_GETEVENTS: Final = 1
_ENTER_REGISTERED_RING: Final = 1 << 4
_WAIT: Final = _ENTER_GETEVENTS | _ENTER_REGISTERED_RING
_REGISTER_RESTRICTIONS: Final = 11
_REGISTER_ENABLE_RINGS: Final = 12
_REGISTER_RING_FDS: Final = 20
_UNREGISTER_RING_FDS: Final = 21
_USE_REGISTERED_RING: Final = 1 << 31
_RESTRICTION_REGISTER_OP: Final = 0
_RESTRICTION_SQE_OP: Final = 1
_OP_URING_CMD: Final = 46
_OFFSET_SQES: Final = 0x1000_0000
_SQE_SIZE: Final = 128
_CQE_SIZE: Final = 16
_WORD: Final = 4
_LAST: Final = 0x7FFF_FFFF

# struct io_uring_params: its size, where the flags are, and of the offsets behind them: sq_off.tail
# and of cq_off head, tail and cqes
_PARAMS_SIZE: Final = 120
_FLAGS: Final = Struct("=8xI")
_OFFSETS: Final = Struct("=44xI32xII12xI")
# struct io_uring_restriction: opcode, sqe_op
_RESTRICTION: Final = Struct("=HB13x")
# struct io_uring_rsrc_update: offset, data
_UPDATE: Final = Struct("=I4xQ")
_ANYWHERE: Final = 0xFFFF_FFFF
# struct io_uring_sqe of IORING_OP_URING_CMD: opcode, fd, cmd_op, addr, len; the command's own 80
# bytes, of which three words are known here
_SQE: Final = Struct("=BxxxiI4xQI4x16xQQQ")
_SECOND_WORD: Final = Struct("=Q")
_SECOND_WORD_AT: Final = 56

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_long
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_long),
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
# Three of one function, with arguments of their own.
_setup, _register, _enter = _libc["syscall"], _libc["syscall"], _libc["syscall"]
_setup.restype = _register.restype = _enter.restype = ctypes.c_long
_setup.argtypes = (ctypes.c_long, ctypes.c_uint, ctypes.c_void_p)
_register.argtypes = (
    *(ctypes.c_long, ctypes.c_uint, ctypes.c_uint),
    *(ctypes.c_void_p, ctypes.c_uint),
)
_enter.argtypes = (
    *(ctypes.c_long, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint),
    *(ctypes.c_void_p, ctypes.c_size_t),
)


class Ring:
    """A ring for one command at a time, of the thread that makes it."""

    __slots__ = (
        *("_number", "_ring", "_sqe", "_words"),
        *("_head", "_head_at", "_result_at", "_sq_tail_at", "_tail", "_tail_at"),
    )

    def __init__(self) -> None:
        """Make a ring.

        Raises:
            OSError: this kernel has no io_uring, or not all that is used of it (Linux 6.6), or it
                is forbidden (the sysctl kernel.io_uring_disabled, a seccomp filter).
        """
        flags = _SETUP_R_DISABLED | _SETUP_SQE128 | _SETUP_SINGLE_ISSUER | _SETUP_DEFER_TASKRUN
        params = ctypes.create_string_buffer(_PARAMS_SIZE)
        _FLAGS.pack_into(params, 0, flags | _SETUP_NO_SQARRAY)
        fd = _checked(_setup(_SYS_IO_URING_SETUP, 1, params))
        try:
            sq_tail, head, tail, results = _OFFSETS.unpack_from(params)
            # For one command there are two results' room.
            self._ring = _mapped(fd, results + 2 * _CQE_SIZE, 0)
            self._sqe = _mapped(fd, _SQE_SIZE, _OFFSET_SQES)
            _restrict(fd)
            self._number = _registered(fd)
            _checked(_register(_SYS_IO_URING_REGISTER, fd, _REGISTER_ENABLE_RINGS, None, 0))
        finally:
            os.close(fd)
        self._words = self._ring[: len(self._ring) // _WORD * _WORD].cast("i")
        self._sq_tail_at, self._head_at, self._tail_at = (
            at // _WORD for at in (sq_tail, head, tail)
        )
        # After the eight bytes that come back as they were given; of an odd result and an even one.
        first = results // _WORD + 2
        self._result_at = (first, first + _CQE_SIZE // _WORD)
        self._head = self._tail = 0

    def prepare(
        self,
        fd: int,
        operation: int,
        words: tuple[int, int, int] = (0, 0, 0),
        buffers: tuple[int, int] = (0, 0),
    ) -> None:
        """Make the next command: *operation* of the file *fd* with *words*, its own.

        *buffers* is the address of an array of struct iovec and their number.
        """
        _SQE.pack_into(self._sqe, 0, _OP_URING_CMD, fd, operation, *buffers, *words)

    def repeat(self, second_word: int) -> None:
        """Make the next command like the last one but for the second of its words."""
        _SECOND_WORD.pack_into(self._sqe, _SECOND_WORD_AT, second_word)

    def submit(self) -> None:
        """Give the command to the kernel, which has it when this returns; wait for nothing.

        Raises:
            OSError: it does not take it.
        """
        self._advance()
        while _enter(_SYS_IO_URING_ENTER, self._number, 1, 0, _ENTER_REGISTERED_RING, None, 0) < 0:
            _raise_unless_interrupted()

    def submit_and_wait(self) -> int:
        """Give the command to the kernel, wait for its result: an errno below nought for a failure.

        Raises:
            OSError: the kernel does not take it.
        """
        self._advance()
        while _enter(_SYS_IO_URING_ENTER, self._number, 1, 1, _WAIT, None, 0) < 0:
            _raise_unless_interrupted()
        if self._words[self._tail_at] != self._head:
            return self._take()
        return self.wait()

    def wait(self) -> int:
        """Wait for the result of the command that the kernel has.

        Raises:
            OSError: the ring is broken.
        """
        while self._words[self._tail_at] == self._head:
            if _enter(_SYS_IO_URING_ENTER, self._number, 0, 1, _WAIT, None, 0) < 0:
                _raise_unless_interrupted()
        return self._take()

    def has_result(self) -> bool:
        """Whether `wait` would return at once."""
        return bool(self._words[self._tail_at] != self._head)

    def close(self) -> None:
        """Close the ring; a command that the kernel has is cancelled."""
        # Each map of its memory holds the ring as well.
        self._words.release()
        _unmap(self._ring)
        _unmap(self._sqe)
        update = ctypes.create_string_buffer(_UPDATE.pack(self._number, 0))
        operation = _UNREGISTER_RING_FDS | _USE_REGISTERED_RING
        _checked(_register(_SYS_IO_URING_REGISTER, self._number, operation, update, 1))

    def _advance(self) -> None:
        self._tail = _next(self._tail)
        self._words[self._sq_tail_at] = self._tail

    def _take(self) -> int:
        result: int = self._words[self._result_at[self._head & 1]]
        self._head = _next(self._head)
        self._words[self._head_at] = self._head
        return result


def _mapped(fd: int, size: int, offset: int) -> memoryview:
    """The ring's memory from *offset* on; `mmap.mmap` would keep a descriptor of its own."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = _checked(_libc.mmap(None, size, protection, mmap.MAP_SHARED, fd, offset))
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")


def _unmap(memory: memoryview) -> None:
    address = ctypes.addressof(ctypes.c_ubyte.from_buffer(memory))
    size = len(memory)
    memory.release()
    _libc.munmap(address, size)


def _restrict(fd: int) -> None:
    """Have the ring refuse all that is not needed, once it is enabled."""
    rules = ctypes.create_string_buffer(
        _RESTRICTION.pack(_RESTRICTION_SQE_OP, _OP_URING_CMD)
        + _RESTRICTION.pack(_RESTRICTION_REGISTER_OP, _UNREGISTER_RING_FDS)
    )
    _checked(_register(_SYS_IO_URING_REGISTER, fd, _REGISTER_RESTRICTIONS, rules, 2))


def _registered(fd: int) -> int:
    """The number by which this thread knows the ring without a descriptor.

    A worker has few descriptors: files and inodes need them.
    """
    update = ctypes.create_string_buffer(_UPDATE.pack(_ANYWHERE, fd))
    _checked(_register(_SYS_IO_URING_REGISTER, fd, _REGISTER_RING_FDS, update, 1))
    number, _ = _UPDATE.unpack_from(update)
    return int(number)


def _next(count: int) -> int:
    """One more, as 32 bits with a sign count it."""
    return count + 1 if count != _LAST else -_LAST - 1


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"io_uring: {os.strerror(number)}")
    return result


def _raise_unless_interrupted() -> None:
    number = ctypes.get_errno()
    if number != errno.EINTR:
        raise OSError(number, f"io_uring: {os.strerror(number)}")
