"""Files as lookups find them: counted, held by descriptor or by handle, each on its mount.

Two bind mounts of one file system show the same files, with the same st_ino and st_dev. They must
stay apart: one may be read-only, and a directory must not have two parents. Their mounts tell them
apart. To ask for the mount of each file would cost as much as its attributes; it is needed only if
a lookup has crossed a mount point.

On one mount, numbers of devices say more: a file system may have several (subvolumes of btrfs).
"""

from libc.stdint cimport uint32_t
from libc.string cimport memset

from passthrough.core.libc cimport (
    AT_EMPTY_PATH, AT_FDCWD, AT_STATX_DONT_SYNC, ENFILE, EOPNOTSUPP, O_CLOEXEC, O_DIRECTORY, O_PATH,
    O_RDONLY, S_IFDIR, S_IFMT, STATX_MNT_ID, close, errno, file_handle, fstat, name_to_handle_at,
    open_by_handle_at, openat, statx, struct_stat, struct_statx,
)
from passthrough.core.powerless cimport enter_itself, leave_itself
from passthrough.core.rare cimport report
from passthrough.core.recent cimport keep_recent, leave_recent
from passthrough.core.state cimport PATH_ROOM, REPORT_NO_HANDLES, Thread, path_of
from passthrough.core.tables cimport (
    ACQUIRE, MAX_HANDLE, NEEDS_HANDLE, NO_PLACE, TAKEN, FileHandle, Found, Tables,
    add_mount, enter_mount, grant, grant_handle, leave_mount, load32, pin, place_on,
)


cdef int grant_fd(Thread *t, int fd, uint32_t place, Entry *entry) noexcept nogil:
    """Count one lookup of the file behind `fd`, an O_PATH descriptor, which this takes.

    `place` is that of the directory in which the file was found. NO_PLACE: a mount point was
    crossed, or may have been.
    """
    cdef int error
    entry.submount = False
    if fstat(fd, &entry.st) < 0:
        error = -errno
        close(fd)
        return error
    if place == NO_PLACE:
        return _grant_across(t, fd, entry)
    return _grant(t, fd, place, entry)


cdef int _grant(Thread *t, int fd, uint32_t place, Entry *entry) noexcept nogil:
    cdef Tables *tables = t.volume.tables
    cdef Found file
    cdef FileHandle handle
    cdef int use = 0
    cdef bint by_handle
    cdef int result
    describe(&file, &entry.st, place, fd)
    result = grant(tables, t.journal, &file, &entry.granted)
    by_handle = result == NEEDS_HANDLE
    if by_handle:
        result = _find_handle(tables, place, fd, &handle)
        if not result:
            result = grant_handle(tables, t.journal, &file, &handle, &entry.granted)
    if result == TAKEN:
        return 0
    if by_handle and result >= 0:
        # The file is opened next, or names in it are looked up. The host may have removed it by
        # then. This lookup counts, so no thread can have forgotten it.
        if keep_recent(t.volume, entry.granted.nodeid, fd, &use) >= 0:
            leave_recent(t.volume, use)
            return 0
    close(fd)
    return min(result, 0)


cdef void describe(Found *file, const struct_stat *st, uint32_t place, int fd) noexcept nogil:
    memset(file, 0, sizeof(Found))
    file.ino = st.st_ino
    file.device = st.st_dev
    file.place = place
    file.type = <unsigned short>(st.st_mode & S_IFMT)
    file.fd = fd


cdef int _find_handle(Tables *tables, uint32_t place, int fd, FileHandle *handle) noexcept nogil:
    """Write the handle of a file; an empty one if the file can have none that could be opened."""
    cdef int mount
    handle.handle_bytes = 0
    handle.handle_type = 0
    if load32(&tables.mounts[tables.places[place].mount].fd, ACQUIRE) < 0:
        return 0
    handle.handle_bytes = MAX_HANDLE
    if name_to_handle_at(fd, b"", <file_handle *>handle, &mount, AT_EMPTY_PATH) == 0:
        return 0
    handle.handle_bytes = 0
    return 0 if errno == EOPNOTSUPP else -errno


cdef int _grant_across(Thread *t, int fd, Entry *entry) noexcept nogil:
    """Grant what was found behind a mount point."""
    cdef Tables *tables = t.volume.tables
    cdef int mount = _enter(t, fd, entry.st.st_mode & S_IFMT == S_IFDIR)
    cdef uint32_t place
    cdef int result
    if mount < 0:
        close(fd)
        return mount
    place = place_on(tables, <uint32_t>mount, entry.st.st_dev)
    if place == NO_PLACE:
        close(fd)
        result = -ENFILE
    else:
        result = _grant(t, fd, place, entry)
    fd = leave_mount(tables, <uint32_t>mount)  # the inode is a user of its own
    if fd >= 0:
        close(fd)
    return result


cdef int _enter(Thread *t, int fd, bint directory) noexcept nogil:
    """Return the index of the mount of a file, with one more user, or -errno."""
    cdef Tables *tables = t.volume.tables
    cdef struct_statx found
    cdef int mount_fd = -1
    cdef bint taken = False
    cdef int mount
    if statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID, &found) < 0:
        return -errno
    mount = enter_mount(tables, found.stx_mnt_id)
    if mount >= 0:
        return mount
    # With enough descriptors for all inodes, no inode needs a handle.
    if directory and tables.header.limits.budget < tables.header.limits.inodes:
        mount_fd = _open_mount(t, fd)
    mount = add_mount(tables, found.stx_mnt_id, mount_fd, &taken)
    if not taken and mount_fd >= 0:
        close(mount_fd)
    return mount


cdef int _open_mount(Thread *t, int directory_fd) noexcept nogil:
    """Open a directory by which the file handles of its mount can be opened; -1: there are none.

    open_by_handle_at(2) takes no O_PATH descriptor, and needs CAP_DAC_READ_SEARCH.
    """
    cdef char path[PATH_ROOM]
    cdef bint entered = enter_itself(t)
    cdef int fd
    path_of(t.volume, directory_fd, path)
    fd = _try_mount(directory_fd, path)
    leave_itself(t, entered)
    if fd >= 0:
        return fd
    if not t.volume.reported[<int>REPORT_NO_HANDLES]:
        report(t.volume, REPORT_NO_HANDLES, -fd, NULL)
    return -1


cdef int _try_mount(int directory_fd, const char *path) noexcept nogil:
    """Open `path`, the directory's own, and by that descriptor its own handle; or -errno."""
    cdef FileHandle handle
    cdef file_handle *own = <file_handle *>&handle
    cdef int mount, fd, opened, error
    handle.handle_bytes = MAX_HANDLE
    if name_to_handle_at(directory_fd, b"", own, &mount, AT_EMPTY_PATH) < 0:
        return -errno
    fd = openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if fd < 0:
        return -errno
    opened = open_by_handle_at(fd, own, O_PATH | O_CLOEXEC)
    if opened < 0:
        error = -errno
        close(fd)
        return error
    close(opened)
    return fd


cdef bint pin_fd(Tables *t, int fd, uint32_t place) noexcept nogil:
    """Have the file behind `fd` keep its number until it is forgotten, if it has no name.

    Return whether the table has taken `fd`; `place` is that of the file's directory. An error costs
    the number at worst.
    """
    cdef struct_stat st
    cdef Found file
    cdef FileHandle handle
    if fstat(fd, &st) < 0 or st.st_nlink or _find_handle(t, place, fd, &handle) < 0:
        return False
    describe(&file, &st, place, fd)
    file.handle = &handle
    return pin(t, &file)
