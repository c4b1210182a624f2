"""Requests that are served once more: what the dead worker has done of them.

A handler notes in the journal that it is about to make a call that must not be made twice
(`begin_call`). If the worker dies then, its successor serves the request again, with
`Thread.again`: the call was made, or it was not. Most handlers make the call again. If it fails
with the errno that the first call's own effect gives, these functions find out if it had that
effect. Calls that would succeed twice, and do harm, are not made before that: an append, and a
rename that exchanges or that leaves a whiteout. For those, and for attributes, which have no time,
the journal has the state before.

**Times.** The effect is the request's if it is not older than the note. The note has the time of
the last tick of the kernel's clock, and no file that is made later gets an earlier time. A file
system that stores no nanoseconds ends its times with zeros; so much is allowed for. Other file
systems may have the clock of a server: 2 s are allowed for.

**The host cannot tell** these from the request's own effect, from the tick before the note to the
death, which is some milliseconds: a file of the same type that another process has made by the same
name; a name that another process has removed; bytes that another process has appended, and that are
the request's; an attribute that another process has removed, or given the same value. The caller is
told of success then. If the host's clock is set back in that moment, the caller is told EEXIST or
ENOENT.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcmp, strlen

from passthrough.core.layout cimport mount_of
from passthrough.core.libc cimport (
    AT_EMPTY_PATH, EEXIST, EINTR, O_CLOEXEC, O_RDONLY, PATH_MAX, RENAME_EXCHANGE, S_IFBLK, S_IFCHR,
    S_IFLNK, S_IFMT, S_IFREG, STATX_BASIC_STATS, STATX_BTIME, close, errno, fstat, getxattr,
    makedev, pread, readlinkat, statx, statx_timestamp, struct_statx,
)
from passthrough.core.names cimport open_same_mount
from passthrough.core.opening cimport open_path
from passthrough.core.powerless cimport enter_itself, leave_itself
from passthrough.core.state cimport PATH_ROOM, path_of
from passthrough.core.steps cimport note_call

cdef extern from "<string.h>" nogil:
    void *memmem(const void *data, size_t length, const void *wanted, size_t size)

cdef enum:
    SERVER_S = 2  # by which the clock of a server may differ
    TICK_NS = 10 * 1000 * 1000  # the longest: HZ is 100 or more
    FAR_S = 1000

cdef extern from "<stdint.h>" nogil:
    const int64_t SECOND_NS "INT64_C(1000000000)"


# Times


cdef bint _is_local(const Thread *t, const Inode *directory) noexcept nogil:
    return t.volume.options.statx_first and not mount_of(t.volume.tables, directory)


cdef int64_t _since_call(const Thread *t, int64_t seconds, int64_t nanoseconds) noexcept nogil:
    """Return the nanoseconds from the note of the call to a time."""
    cdef int64_t passed = seconds - t.journal.called_s
    passed = max(-FAR_S, min(passed, <int64_t>FAR_S))
    return passed * SECOND_NS + nanoseconds - t.journal.called_ns


cdef int64_t _unit(int64_t nanoseconds) noexcept nogil:
    """Return the nanoseconds by which a stored time may have been cut, by its zeros."""
    cdef int64_t unit = 1
    if not nanoseconds:
        return 2 * SECOND_NS  # FAT's; others store whole seconds
    while nanoseconds % (unit * 10) == 0:
        unit *= 10
    return unit


cdef bint _is_of_call(
    const Thread *t, const Inode *directory, int64_t seconds, int64_t nanoseconds
) noexcept nogil:
    """Return whether a time of a file in a directory is that of the noted call, or a later one."""
    cdef int64_t allowed = _unit(nanoseconds)
    if not _is_local(t, directory):
        allowed += SERVER_S * SECOND_NS
    return _since_call(t, seconds, nanoseconds) + allowed > 0


# Names that were given


cdef int find_made(
    Thread *t, const Inode *directory, int dir_fd, const char *name, mode_t type, dev_t device
) noexcept nogil:
    """Return an O_PATH descriptor of the file that the dead worker has made; -EEXIST: none.

    The caller has been refused by EEXIST. `device` is that of a device node.
    """
    cdef int fd
    if not t.again:
        return -EEXIST
    fd = open_same_mount(dir_fd, name)
    if fd < 0:
        return -EEXIST
    if _is_made(t, directory, fd, type, device):
        return fd
    close(fd)
    return -EEXIST


cdef bint _is_made(
    const Thread *t, const Inode *directory, int fd, mode_t type, dev_t device
) noexcept nogil:
    """Return whether a file is of this type, and was born when the call was made, or later."""
    cdef struct_statx found
    cdef const statx_timestamp *born = &found.stx_ctime
    if statx(fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &found) < 0:
        return False
    if found.stx_mask & STATX_BTIME:
        born = &found.stx_btime
    if found.stx_mode & S_IFMT != (type if type else <mode_t>S_IFREG):
        return False
    if type == S_IFCHR or type == S_IFBLK:
        if makedev(found.stx_rdev_major, found.stx_rdev_minor) != device:
            return False
    return _is_of_call(t, directory, born.tv_sec, born.tv_nsec)


cdef bint was_made(
    Thread *t, const Inode *directory, int dir_fd, const char *name, mode_t type, dev_t device
) noexcept nogil:
    """As `find_made`, without the descriptor."""
    cdef int fd = find_made(t, directory, dir_fd, name, type, device)
    if fd < 0:
        return False
    close(fd)
    return True


cdef bint was_made_for(
    Thread *t, const Inode *directory, int dir_fd, const char *name, const char *target
) noexcept nogil:
    """Return whether the dead worker has made a symlink with this target; uses `Thread.out`."""
    cdef size_t size = strlen(target)
    cdef ssize_t length
    cdef int fd = find_made(t, directory, dir_fd, name, S_IFLNK, 0)
    if fd < 0:
        return False
    length = readlinkat(fd, b"", t.out, PATH_MAX)
    close(fd)
    return length >= 0 and <size_t>length == size and memcmp(t.out, target, size) == 0


cdef bint was_linked(
    Thread *t, const Inode *directory, int dir_fd, const char *name, int linked_fd
) noexcept nogil:
    """Return whether the dead worker has given a file this name; a link changes its ctime."""
    cdef struct_stat found, linked
    if not t.again or not _look(dir_fd, name, &found) or fstat(linked_fd, &linked) < 0:
        return False
    if found.st_ino != linked.st_ino or found.st_dev != linked.st_dev:
        return False
    return _is_of_call(t, directory, found.st_ctim.tv_sec, found.st_ctim.tv_nsec)


# Names that were taken away


cdef bint is_another(
    Thread *t, const Inode *directory, int dir_fd, const char *name
) noexcept nogil:
    """Return whether a name that was to go leads to a file that was born after the noted call.

    With Linux 6.13 and later, a file may be born up to a tick after the note's time, and before it.
    Then the name has gone, and another process has made one. Only a local file system's time of
    birth is taken for that.
    """
    cdef struct_statx found
    cdef bint dated
    cdef int fd
    if not t.again or not _is_local(t, directory):
        return False
    fd = open_same_mount(dir_fd, name)
    if fd < 0:
        return False
    dated = statx(fd, b"", AT_EMPTY_PATH, STATX_BTIME, &found) == 0
    close(fd)
    if not dated or not found.stx_mask & STATX_BTIME:
        return False
    return _since_call(t, found.stx_btime.tv_sec, found.stx_btime.tv_nsec) > TICK_NS


cdef bint was_removed(Thread *t, const Inode *directory, int dir_fd) noexcept nogil:
    """Return whether the dead worker has taken a name away that is not there: ENOENT."""
    cdef struct_stat st
    if not t.again:
        return False
    if not _is_local(t, directory) or fstat(dir_fd, &st) < 0:
        return True
    return _is_of_call(t, directory, st.st_ctim.tv_sec, st.st_ctim.tv_nsec)


cdef bint was_moved(
    Thread *t, const Inode *directory, int dir_fd, const char *name
) noexcept nogil:
    """Return whether the dead worker has moved a file to this name: its old one is not there.

    A move changes the ctime of the file, at least on local file systems.
    """
    cdef struct_stat st
    if not t.again or not _look(dir_fd, name, &st):
        return False
    return not _is_local(t, directory) or _is_of_call(
        t, directory, st.st_ctim.tv_sec, st.st_ctim.tv_nsec
    )


cdef bint were_changed(
    Thread *t, int fd, const char *name, int new_fd, const char *new_name, uint32_t flags
) noexcept nogil:
    """Return whether the dead worker has exchanged two names, or left a whiteout at the first.

    Otherwise note the files that have the names now; without one the rename will be refused. Two
    names of one file may be changed twice.
    """
    cdef struct_stat st, new
    cdef uint64_t *before = t.journal.found
    _look(fd, name, &st)
    _look(new_fd, new_name, &new)
    if not t.again:
        before[0], before[1] = st.st_ino, st.st_dev
        before[2], before[3] = new.st_ino, new.st_dev
        return False
    if not _is(&new, before) or _is(&st, before):
        return False
    return not flags & RENAME_EXCHANGE or _is(&st, before + 2)


cdef bint _look(int dir_fd, const char *name, struct_stat *st) noexcept nogil:
    """Return whether a file of the directory's mount has a name; if not, its number becomes 0."""
    cdef int fd = open_same_mount(dir_fd, name)
    cdef bint found = fd >= 0 and fstat(fd, st) == 0
    if not found:
        st.st_ino = st.st_dev = 0
    if fd >= 0:
        close(fd)
    return found


cdef bint _is(const struct_stat *st, const uint64_t *noted) noexcept nogil:
    return st.st_ino == noted[0] and st.st_dev == noted[1]


# Attributes and data


cdef bint had_attribute(Thread *t, const char *path, const char *name) noexcept nogil:
    """Note whether a file has an attribute, before a call that creates or removes it.

    Return whether the file had the attribute before the first time.
    """
    cdef bint entered
    if not t.again:
        entered = enter_itself(t)  # the right to set an attribute is none to read it
        t.journal.found[0] = getxattr(path, name, NULL, 0) >= 0
        leave_itself(t, entered)
        note_call(t)
    return t.journal.found[0] != 0


cdef bint has_value(
    Thread *t, const char *path, const char *name, const char *value, size_t size
) noexcept nogil:
    """Return whether the dead worker has set an attribute that is there: EEXIST.

    Uses `Thread.out`.
    """
    cdef ssize_t length
    cdef bint entered
    if not t.again:
        return False
    entered = enter_itself(t)
    length = getxattr(path, name, t.out, t.out_size)
    leave_itself(t, entered)
    return length >= 0 and <size_t>length == size and memcmp(t.out, value, size) == 0


cdef int64_t size_before(Thread *t, int64_t size) noexcept nogil:
    """Note the size of a file before a call that changes it, and may not be made twice.

    Return the size that it had before the first time.
    """
    if not t.again:
        t.journal.found[0] = <uint64_t>size
        note_call(t)
    return <int64_t>t.journal.found[0]


cdef ssize_t appended(
    Thread *t, int fd, int64_t before, int64_t size, const char *data, size_t length
) noexcept nogil:
    """Return how many bytes of an append are there, or -errno; uses `Thread.out`.

    The file had `before` bytes, and has `size` now. A killed write(2) may end early. If another
    process has appended first, only a whole append is found.
    """
    cdef char path[PATH_ROOM]
    cdef size_t most
    cdef ssize_t got = -EINTR
    cdef int own
    if not t.again or size <= before:
        return 0
    path_of(t.volume, fd, path)
    own = open_path(path, O_RDONLY | O_CLOEXEC)  # `fd` may be open for writing alone
    if own < 0:
        return own
    while got == -EINTR:
        got = pread(own, t.out, t.out_size, before)
        if got < 0:
            got = -errno
    close(own)
    if got <= 0:
        return got
    most = min(<size_t>got, length)
    if memcmp(t.out, data, most) == 0:
        return <ssize_t>most
    return <ssize_t>length if memmem(t.out, <size_t>got, data, length) != NULL else 0
