"""Has the loop send some GETXATTR to a function of a test, which so runs inside of a worker."""

from libc.stdint cimport uint32_t
from libc.string cimport memcpy, strncmp

from passthrough.core.abi cimport (
    FUSE_GETXATTR, fuse_getxattr_in, fuse_getxattr_out, fuse_in_header,
)
from passthrough.core.libc cimport EIO, ERANGE
from passthrough.core.loop cimport replace
from passthrough.core.rare cimport end_process
from passthrough.core.state cimport Handler, Thread, about_to_block, only_text

cdef enum:
    PREFIX_LENGTH = 12

cdef Handler original
cdef Thread *serving = NULL  # the request of `answering`
answering = None


cdef int do_getxattr(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    cdef const char *name = only_text(arg, n, sizeof(fuse_getxattr_in))
    if name == NULL or strncmp(name, b"user.inside.", PREFIX_LENGTH):
        return original(t, h, arg, n)
    with gil:
        return _answer(t, name + PREFIX_LENGTH, (<const fuse_getxattr_in *>arg).size)


cdef int _answer(Thread *t, const char *name, uint32_t limit) noexcept:
    global serving
    cdef bytes value
    serving = t
    try:
        value = answering(<bytes>name)
        if not limit:
            (<fuse_getxattr_out *>t.out).size = <uint32_t>len(value)
            (<fuse_getxattr_out *>t.out).padding = 0
            return sizeof(fuse_getxattr_out)
        if len(value) > limit:
            return -ERANGE
        memcpy(t.out, <const char *>value, len(value))
        return <int>len(value)
    except Exception as error:
        (<object>t.volume.python).mistake("getxattr", error)
        return -EIO


def answer(function):
    """Have `function` return the values of the attributes user.inside.*."""
    global answering, original
    answering = function
    original = replace(FUSE_GETXATTR, do_getxattr)


def end():
    """End the process as a thread does that cannot undo a switch of its ids."""
    with nogil:
        end_process(serving.volume, b"was asked to by a test")


def block():
    """Act as a handler that is about to wait for the host, in the thread of `answering`."""
    with nogil:
        about_to_block(serving)
