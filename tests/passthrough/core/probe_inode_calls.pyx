"""The system calls of inode_calls.pyx that the request path uses, for tests."""

import contextlib

from passthrough.core cimport inode_calls

TIMES, MODE, ATTRIBUTES = inode_calls.TIMES, inode_calls.MODE, inode_calls.ATTRIBUTES


@contextlib.contextmanager
def using(int calls):
    """Use no calls but `calls` of those that an older kernel lacks."""
    cdef int before = inode_calls.use_calls(calls)
    try:
        yield before
    finally:
        inode_calls.use_calls(before)
