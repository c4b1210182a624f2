"""Runs calls of a thread with the ids of another user and without capabilities, for squashing.

setfsuid(2), setfsgid(2), capset(2) and setgroups(2), as libc.pxd calls them, change the calling
thread alone. The host then checks each call of the thread as a call of that user. The worker has no
supplementary groups, so that the thread has only the given ones. For calls of its own, such as
opening an inode by its file handle, a thread uses `enter_itself`.

The guard checks the switch before and after the calls between. If a switch fails, the reply is
EIO. If it cannot be undone, the process ends: a thread with other ids or capabilities must serve
no request.
"""

from libc.stdint cimport uint32_t
from libc.stdio cimport snprintf

from passthrough.core.idmap cimport NO_ID
from passthrough.core.libc cimport (
    EIO,
    EPERM,
    _exit,
    _LINUX_CAPABILITY_VERSION_3,
    cap_data,
    cap_header,
    capset,
    errno,
    setfsgid,
    setfsuid,
    setgroups,
)
from passthrough.core.rare cimport end_process, report
from passthrough.core.state cimport MAX_GROUPS, REPORT_NO_IDENTITY, Ids, Thread

cdef extern from "<stdint.h>" nogil:
    const uint32_t ALL "UINT32_MAX"  # the bits of a word

cdef enum:
    OWN_ID = 0
    EXIT_IDENTITY_LOST = 77  # as in rare.pyx
    WHY_ROOM = 160


cdef int set_effective(Thread *t, uint32_t added, uint32_t removed) noexcept nogil:
    """Set the effective capabilities to those outside of guards, with changes in the low word.

    ALL removed empties the set. Return 0 or -errno.
    """
    cdef cap_header header
    cdef cap_data wanted[2]
    header.version = _LINUX_CAPABILITY_VERSION_3
    header.pid = 0
    wanted[0] = t.capabilities[0]
    wanted[1] = t.capabilities[1]
    wanted[0].effective = (wanted[0].effective & ~removed) | added
    if removed == ALL:
        wanted[1].effective = 0
    if capset(&header, wanted) < 0:
        return -errno
    return 0


cdef void end_as(Thread *t, const char *format, long first, long second) noexcept nogil:
    """End the process, and say why: snprintf(3) with two numbers."""
    cdef char why[WHY_ROOM]
    snprintf(why, WHY_ROOM, format, first, second)
    end_process(t.volume, why)
    _exit(EXIT_IDENTITY_LOST)


cdef int enter_powerless(
    Thread *t, const Ids *ids, const uint32_t *groups, int count
) noexcept nogil:
    """Act as a user without capabilities, with some supplementary groups. Do not nest it.

    -EPERM: one of the ids is none; -EIO: the kernel has not switched, or inside of a guard.
    """
    cdef int index, result = 0
    if t.powerless or t.reduced or t.fs.uid or t.fs.gid or not 0 <= count <= MAX_GROUPS:
        return -EIO
    if ids.uid == NO_ID or ids.gid == NO_ID:
        return -EPERM
    t.acting = ids[0]
    t.group_count = <uint32_t>count
    for index in range(count):
        t.groups[index] = groups[index]
    if count and setgroups(<size_t>count, t.groups) < 0:
        result = -errno
    if result == 0:
        setfsgid(t.acting.gid)
        setfsuid(t.acting.uid)
        result = set_effective(t, 0, ALL)
    if result == 0 and not _acts_as(&t.acting):
        result = -EIO
        _restore(t)
        report(t.volume, REPORT_NO_IDENTITY, t.acting.uid, NULL)
    elif result < 0:
        _restore(t)
    if result < 0:
        _forget_ids(t)
        return result
    t.fs = t.acting
    t.powerless = True
    return 0


cdef void leave_powerless(Thread *t) noexcept nogil:
    """Act as the worker again."""
    if not t.powerless:
        end_as(t, "leaves a guard that it is not in", 0, 0)
    _leave(t)
    _forget_ids(t)


cdef bint enter_itself(Thread *t) noexcept nogil:
    """Act as the worker inside of `enter_powerless`; return what `leave_itself` needs."""
    if not t.powerless:
        return False
    _leave(t)
    return True


cdef void leave_itself(Thread *t, bint entered) noexcept nogil:
    """Act as the user again."""
    cdef Ids ids = t.acting
    cdef uint32_t groups[MAX_GROUPS]
    cdef uint32_t index
    cdef int result
    if not entered:
        return
    for index in range(t.group_count):
        groups[index] = t.groups[index]
    result = enter_powerless(t, &ids, groups, <int>t.group_count)
    if result < 0:
        end_as(t, "cannot act as another user again: errno %ld", -result, 0)


cdef bint _acts_as(const Ids *ids) noexcept nogil:
    """Return whether the thread has these file system ids. setfsuid(2) reports no failure."""
    cdef uint32_t uid = setfsuid(NO_ID)
    return setfsgid(NO_ID) == ids.gid and uid == ids.uid


cdef void _leave(Thread *t) noexcept nogil:
    if not _acts_as(&t.acting):
        end_as(t, "did not act as %ld:%ld", t.acting.uid, t.acting.gid)
    _restore(t)
    t.fs.uid = t.fs.gid = OWN_ID
    t.powerless = False


cdef void _restore(Thread *t) noexcept nogil:
    """Restore the worker's ids, groups and capabilities in this thread, or end the process."""
    cdef Ids own
    cdef int result = set_effective(t, 0, 0)
    own.uid = own.gid = OWN_ID
    if result < 0:
        end_as(t, "cannot restore its capabilities: errno %ld", -result, 0)
    setfsuid(OWN_ID)
    setfsgid(OWN_ID)
    if t.group_count and setgroups(0, NULL) < 0:
        end_as(t, "cannot restore its groups: errno %ld", errno, 0)
    if not _acts_as(&own):
        end_as(t, "acts as %ld:%ld, and cannot restore its ids", t.acting.uid, t.acting.gid)


cdef void _forget_ids(Thread *t) noexcept nogil:
    """Have `leave_itself` fail, not act as a user of before, if guards are nested wrongly."""
    t.acting.uid = t.acting.gid = NO_ID
    t.group_count = 0
