"""Paths from the source downwards: to the parent of a directory, and to any file.

To ask the host for `..` would lead out of the source if another process has moved the directory
out. So the path that the kernel shows of a descriptor, proc_pid_fd(5), is looked up from the source
downwards, and has to lead to the very file.
"""

from libc.string cimport memcmp, memset, strlen

from passthrough.core.libc cimport (
    AT_FDCWD, AT_SYMLINK_NOFOLLOW, ENOENT, ESTALE, O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW, O_PATH,
    PATH_MAX, RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, close, errno, fstat,
    fstatat, open_how, openat2, readlinkat, ssize_t, struct_stat,
)
from passthrough.core.state cimport PATH_ROOM, Volume, path_of

cdef enum:
    TRIES = 3  # for a file that is renamed meanwhile
    ROOM = PATH_MAX + 2


cdef int open_parent(const Volume *v, int root_fd, int fd) noexcept nogil:
    """Open the directory that `fd`, a directory too, lies in, if that is beneath `root_fd`.

    Return an O_PATH descriptor. -ESTALE: it is not beneath `root_fd`, or is being moved.
    """
    cdef char path[ROOM]
    cdef const char *place
    cdef const char *name
    cdef struct_stat found, wanted
    cdef int parent
    cdef int error = 0
    place = _below(v, root_fd, fd, path, &error)
    if place == NULL:
        return error
    name = _split(path, place)
    if name == place:  # in the root itself
        place = b""
    parent = _open_beneath(root_fd, place, O_DIRECTORY)
    if parent < 0:
        return -ESTALE
    if (
        fstatat(parent, name, &found, AT_SYMLINK_NOFOLLOW) == 0
        and fstat(fd, &wanted) == 0
        and _is_same(&found, &wanted)
    ):
        return parent
    close(parent)
    return -ESTALE


cdef int check_beneath(const Volume *v, int root_fd, int fd) noexcept nogil:
    """Refuse a file that the calling thread could not reach by name from `root_fd` downwards.

    The kernel remembers names that other callers have looked up, and names their files in requests
    of callers that could not look them up. A file that has lost its name is reachable if its
    directory is. A file with several names is, by the name that it was first found by.

    -EACCES: a directory above it may not be searched. -ESTALE: it is being moved.
    """
    cdef char path[ROOM]
    cdef const char *place
    cdef struct_stat found, wanted
    cdef int _turn, opened
    cdef int error = 0
    for _turn in range(TRIES):
        place = _below(v, root_fd, fd, path, &error)
        if place == NULL:
            return error
        opened = _open_beneath(root_fd, place, 0)
        if opened == -ENOENT:
            if _is_deleted(place):
                return 0
            continue
        if opened < 0:
            return opened
        if fstat(opened, &found) < 0 or fstat(fd, &wanted) < 0:
            error = -errno
        close(opened)
        if error or _is_same(&found, &wanted):
            return error
    return -ESTALE


cdef const char *_below(
    const Volume *v, int root_fd, int fd, char *path, int *error
) noexcept nogil:
    """Return where in `path`, the file's path then, the part below the root's begins, or NULL.

    -ESTALE: the file is not below the root. Any other error of readlink(2) is passed on.
    """
    cdef char top[ROOM]
    cdef ssize_t size = _path_of(v, root_fd, top)
    cdef ssize_t length
    if size < 0:
        error[0] = <int>size
        return NULL
    while size and top[size - 1] == b'/':
        size -= 1
    top[size] = b'/'
    size += 1
    length = _path_of(v, fd, path)
    if length < 0:
        error[0] = <int>length
        return NULL
    if length < size or memcmp(path, top, <size_t>size) != 0:
        error[0] = -ESTALE
        return NULL
    return path + size


cdef ssize_t _path_of(const Volume *v, int fd, char *path) noexcept nogil:
    """Write the path of an open file, ROOM bytes; return its length, or -errno."""
    cdef char link[PATH_ROOM]
    cdef ssize_t length
    path_of(v, fd, link)
    length = readlinkat(AT_FDCWD, link, path, PATH_MAX)
    if length < 0:
        return -errno
    path[length] = 0
    return length


cdef const char *_split(char *path, const char *place) noexcept nogil:
    """End the path of the directory above with a 0 byte; return the name in it.

    The name is `place` itself if the directory above is the root.
    """
    cdef char *end = path + (place - path) + strlen(place)
    while end != place:
        end -= 1
        if end[0] == b'/':
            end[0] = 0
            return end + 1
    return place


cdef bint _is_deleted(const char *path) noexcept nogil:
    """Return whether the kernel shows the path of a file that has lost this name."""
    cdef size_t length = strlen(path)
    return length >= 10 and memcmp(path + length - 10, b" (deleted)", 10) == 0


cdef int _open_beneath(int root_fd, const char *path, int flags) noexcept nogil:
    """Open a path below the root, or the root by an empty path; or -errno."""
    cdef open_how how
    cdef int fd
    if not path[0]:
        path = b"."
    memset(&how, 0, sizeof(how))
    how.flags = <unsigned int>(O_PATH | O_NOFOLLOW | O_CLOEXEC | flags)
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
    fd = openat2(root_fd, path, &how)
    return fd if fd >= 0 else -errno


cdef bint _is_same(const struct_stat *one, const struct_stat *other) noexcept nogil:
    return one.st_ino == other.st_ino and one.st_dev == other.st_dev
