"""The calls of libc.pxd that have no wrapper in glibc, for Python. The tests alone use it."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from passthrough.core cimport libc


def open_beneath(int dir_fd, bytes path, uint64_t resolve):
    """Return a descriptor of *path*, or -errno: openat2(2) with O_PATH."""
    cdef libc.open_how how
    memset(&how, 0, sizeof(how))
    how.flags = libc.O_PATH | libc.O_CLOEXEC
    how.resolve = resolve
    cdef int fd = libc.openat2(dir_fd, path, &how)
    return -libc.errno if fd < 0 else fd


def names(int fd):
    """Return the names, kinds and numbers in the directory *fd*."""
    cdef char entries[4096]
    cdef libc.linux_dirent64 *entry
    cdef ssize_t place, size
    found = {}
    while True:
        size = libc.getdents64(fd, entries, sizeof(entries))
        if size <= 0:
            return found if size == 0 else -libc.errno
        place = 0
        while place < size:
            entry = <libc.linux_dirent64 *>(entries + place)
            found[<bytes>entry.d_name] = (entry.d_type, entry.d_ino)
            place += entry.d_reclen


def act_as(uint32_t uid, uint32_t gid):
    """Set the thread's file system ids; return the former."""
    gid = libc.setfsgid(gid)
    return libc.setfsuid(uid), gid


def drop_groups():
    """Drop the thread's supplementary groups; return 0 or -errno."""
    return -libc.errno if libc.setgroups(0, NULL) < 0 else 0


def effective():
    """Return the thread's effective capabilities."""
    cdef libc.cap_header header
    cdef libc.cap_data data[2]
    header.version = libc._LINUX_CAPABILITY_VERSION_3
    header.pid = 0
    if libc.capget(&header, data) < 0:
        return -libc.errno
    return data[0].effective | <uint64_t>data[1].effective << 32


def lower(int capability):
    """Take one of the first 32 capabilities from the thread's effective set; return 0 or -errno."""
    cdef libc.cap_header header
    cdef libc.cap_data data[2]
    header.version = libc._LINUX_CAPABILITY_VERSION_3
    header.pid = 0
    if libc.capget(&header, data) < 0:
        return -libc.errno
    data[0].effective &= ~(<uint32_t>1 << capability)
    return -libc.errno if libc.capset(&header, data) < 0 else 0


def status(bytes path):
    """Return st_ino, st_mode, st_mtim in ns by fstatat(2) and by statx(2)."""
    cdef libc.struct_stat st
    cdef libc.struct_statx stx
    if libc.fstatat(libc.AT_FDCWD, path, &st, libc.AT_SYMLINK_NOFOLLOW) < 0:
        return -libc.errno
    if libc.statx(
        libc.AT_FDCWD, path, libc.AT_SYMLINK_NOFOLLOW, libc.STATX_BASIC_STATS, &stx
    ) < 0:
        return -libc.errno
    return (
        (st.st_ino, st.st_mode, st.st_mtim.tv_sec * 10**9 + st.st_mtim.tv_nsec),
        (stx.stx_ino, stx.stx_mode, stx.stx_mtime.tv_sec * 10**9 + stx.stx_mtime.tv_nsec),
    )
