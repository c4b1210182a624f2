"""The journal of a request for tests."""

import os

from libc.stdint cimport int32_t
from libc.string cimport memset

from passthrough.core.backing cimport new_backing
from passthrough.core.device cimport PAGE, PLACE_ROOM, PRESENT, REQUEST_AT
from passthrough.core.face cimport Core
from passthrough.core.journal cimport Journal, begin_call, begin_request
from passthrough.core.lost cimport close_ids

SIZES = (sizeof(Journal), REQUEST_AT)
FIRST_AT, PLACE = PAGE, PLACE_ROOM


def journal(Core core not None):
    """Return the fields of the journal of the requests that Python makes."""
    return dict(core._own.journal[0])


def memory(Core core not None):
    """Return the memory of requests, and where its places begin."""
    places = range(PAGE, PAGE + core._crew.head.places * PLACE_ROOM, PLACE_ROOM)
    return core._crew.memory_fd, places, PRESENT


def call(Core core not None):
    """Note that the request makes a call."""
    begin_call(core._own.journal)


def blame(Core core not None, long place, int guilty):
    """Note that the request at a place of the memory has crashed so many workers at its begin."""
    cdef Journal noted
    cdef int fd = core._crew.memory_fd
    memset(&noted, 0, sizeof(noted))
    begin_request(&noted, int.from_bytes(os.pread(fd, 8, place + REQUEST_AT + 8), "little"))
    noted.guilty = guilty
    os.pwrite(fd, (<char *>&noted)[:sizeof(Journal)], place)


def lose_backing(Core core not None):
    """Open an id of FUSE passthrough that nothing notes; return the highest id before."""
    cdef int32_t before = core._volume.tables.header.backing_high
    if new_backing(core._volume) < 0:
        raise OSError("no id")
    core._volume.tables.header.backing_high = before
    return before


def close_backing_ids(Core core not None, int32_t known, int32_t above):
    """Close this id and all above the other one, as far as no inode has them."""
    close_ids(core._volume, &known, 1, above)
