"""Acts as the callers of a volume that squashes ids.

squash=root squashes callers with user 0 or group 0, squash=all squashes every caller. In each
request that names a file or needs a right, a thread acts with the caller's ids after squashing,
without capabilities (powerless.pyx). So the host decides, as for a process of that user. In all
other requests the thread acts as the worker: data belong to the caller that opened the file, and
attributes need no right.

A squashed caller has no supplementary groups. The groups of other callers are known to the kernel,
which has checked them, and unknown to the worker. But the kernel's check passes for a process with
a capability such as CAP_DAC_OVERRIDE, and root of a container keeps its capabilities if it changes
its id. So the thread first acts as a user without supplementary groups. If the host refuses, the
thread acts as a member of the files' groups that would give a right, as far as a caller can be a
member.

With squash=root, the kernel remembers names that other callers have looked up, and names their
files in requests of squashed callers that could not look them up. So such a caller must be able to
reach each file (`check_reachable`). With squash=all each caller is the one that looked names up.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc

from passthrough.core.abi cimport FUSE_ACCESS, fuse_link_in
from passthrough.core.idmap cimport may_have_group
from passthrough.core.inodes cimport stat_inode
from passthrough.core.layout cimport ROOT_INDEX, Inode, inode_of
from passthrough.core.libc cimport (
    EACCES,
    EBADF,
    EIO,
    ENODATA,
    ENOMEM,
    EOPNOTSUPP,
    EPERM,
    ERANGE,
    ESTALE,
    S_ISGID,
    XATTR_SIZE_MAX,
    errno,
    fstat,
    getxattr,
    ssize_t,
)
from passthrough.core.names cimport check_reachable
from passthrough.core.state cimport MAX_GROUPS, PATH_ROOM, SQUASH_ALL, Ids, path_of

cdef enum:
    ANY_RIGHT = 0o7
    EXECUTE = 0o1
    MOST_NODES = 2
    # The attribute system.posix_acl_access, linux/posix_acl_xattr.h: a version, then entries of
    # tag, permissions and id.
    ACL_HEAD = 4
    ACL_ENTRY = 8
    ACL_ROOM = 2048
    USER_OBJ = 0x01
    USER = 0x02
    GROUP_OBJ = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


cdef struct Call:
    Handler handler
    const fuse_in_header *h
    const char *arg
    uint32_t length


cdef int _call(Thread *t, void *data) noexcept nogil:
    cdef Call *call = <Call *>data
    return call.handler(t, call.h, call.arg, call.length)


cdef int serve_squashed(
    Thread *t, Handler handler, int acts, const fuse_in_header *h, const char *arg, uint32_t length
) noexcept nogil:
    """Have a handler serve a request as Acts says; return the handler's result."""
    cdef unsigned long long nodeids[MOST_NODES]
    cdef int count = 0, tries = TRY_EITHER, result
    cdef Call call
    t.squashed = squashes(t, h.uid, h.gid)
    if acts == ACTS_AS_WORKER or acts == ACTS_BY_ITSELF:
        result = handler(t, h, arg, length)
    elif acts == ACTS_NEVER:
        result = -EBADF
    else:
        call.handler, call.h, call.arg, call.length = handler, h, arg, length
        if acts == ACTS_ON_TWO:
            nodeids[count] = (<const fuse_link_in *>arg).oldnodeid
            count += 1
        nodeids[count] = h.nodeid
        count += 1
        if h.opcode == FUSE_ACCESS:  # its EACCES is an answer, and no refusal by the host
            tries = TRY_ALONE
        result = as_caller(t, _call, &call, nodeids, count, NULL, 0, tries)
    t.squashed = False
    return result


cdef int as_caller(
    Thread *t, Operation operation, void *data, const unsigned long long *nodeids, int count,
    const uint32_t *more, int more_count, int tries
) noexcept nogil:
    """Do an operation as the request's caller; return its result.

    A squashed caller must be able to reach the inodes: -EACCES, -ESTALE. For another caller,
    `tries` says if it is a member of the groups of the inodes and of `more`.
    """
    cdef Ids ids
    cdef uint32_t groups[MAX_GROUPS]
    cdef bint squashed
    cdef int group_count
    cdef int result = acts_as(t, &ids)
    if result < 0:
        return result
    if t.powerless and t.acting.uid == ids.uid and t.acting.gid == ids.gid:
        return operation(t, data)
    squashed = squashes(t, t.request.uid, t.request.gid)
    if squashed or tries & TRY_ALONE:
        result = _alone(t, &ids, operation, data, nodeids, count if squashed else 0)
        if squashed or tries == TRY_ALONE or (result != -EPERM and result != -EACCES):
            return result
    group_count = _memberships(t, nodeids, count, more, more_count, groups)
    if group_count < 0:
        return group_count
    result = enter_powerless(t, &ids, groups, group_count)
    if result < 0:
        return result
    result = operation(t, data)
    leave_powerless(t)
    return result


cdef int _alone(
    Thread *t, const Ids *ids, Operation operation, void *data,
    const unsigned long long *nodeids, int count
) noexcept nogil:
    """Do an operation without supplementary groups, if the ids can reach the inodes."""
    cdef int index
    cdef int result = enter_powerless(t, ids, NULL, 0)
    if result < 0:
        return result
    if t.volume.options.squash != SQUASH_ALL:
        for index in range(count):
            if result == 0 and nodeids[index] != ROOT_INDEX:
                result = check_reachable(t, nodeids[index])
    if result == 0:
        result = operation(t, data)
    leave_powerless(t)
    return result


cdef int _memberships(
    Thread *t, const unsigned long long *nodeids, int count, const uint32_t *more, int more_count,
    uint32_t *groups
) noexcept nogil:
    """Find the groups that could give a caller a right to inodes; return how many, or -errno."""
    cdef struct_stat st
    cdef const Inode *inode
    cdef int index, result, found = 0
    for index in range(count):
        inode = inode_of(t.volume.tables, nodeids[index])
        if inode == NULL:
            return -ESTALE
        result = stat_inode(t, inode, &st)
        if result < 0:
            return result
        if st.st_mode >> 3 & ~st.st_mode & ANY_RIGHT:  # the group has a right that others lack
            found = _with_group(t, st.st_gid, groups, found)
    for index in range(more_count):
        found = _with_group(t, more[index], groups, found)
    return found


cdef int _with_group(Thread *t, uint32_t gid, uint32_t *groups, int count) noexcept nogil:
    """Add a group that an unsquashed caller may be a member of; return how many there are."""
    cdef int index
    if count == MAX_GROUPS or not may_have_group(t.volume, gid):
        return count
    for index in range(count):
        if groups[index] == gid:
            return count
    groups[count] = gid
    return count + 1


cdef int mode_tries(bint given, uint32_t mode, bint directory) noexcept nogil:
    """Return how chmod(2) is tried: Tries; `given` says if there is a mode at all.

    As a member of a group that it may not be in, a caller could give a file the sgid bit. On a
    directory the bit gives a program no rights, and the kernel has checked the groups.
    """
    if not given or not mode & S_ISGID:
        return TRY_EITHER
    return TRY_AS_MEMBER if directory else TRY_ALONE


cdef uint32_t without_sgid(Thread *t, const struct_stat *parent, uint32_t mode) noexcept nogil:
    """Return the mode of a new file as the host would for a caller in one group alone."""
    if mode & S_ISGID and t.powerless and t.group_count and parent.st_mode & S_ISGID:
        return mode & ~<uint32_t>S_ISGID
    return mode


# Execution: the sandbox's mounts are noexec, so that access(2) would always refuse X_OK there.


cdef int may_execute(Thread *t, int fd) noexcept nogil:
    """Return whether a powerless thread's ids may execute a regular file: 1, 0, -errno.

    The mode and the attribute system.posix_acl_access decide, acl(5).
    """
    cdef struct_stat st
    cdef char path[PATH_ROOM]
    cdef uint8_t room[ACL_ROOM]
    cdef uint8_t *acl = room
    cdef ssize_t size
    cdef int result
    if not t.powerless:
        return -EIO
    if fstat(fd, &st) < 0:
        return -errno
    path_of(t.volume, fd, path)
    size = getxattr(path, "system.posix_acl_access", acl, ACL_ROOM)
    if size < 0 and errno == ERANGE:
        acl = <uint8_t *>malloc(XATTR_SIZE_MAX)
        if acl == NULL:
            return -ENOMEM
        size = getxattr(path, "system.posix_acl_access", acl, XATTR_SIZE_MAX)
    if size >= 0:
        result = _allows_execution(t, &st, acl, <size_t>size)
    elif errno == ENODATA or errno == EOPNOTSUPP:
        result = _allows_execution(t, &st, acl, 0)
    else:
        result = -errno
    if acl != room:
        free(acl)
    return result


cdef int _allows_execution(
    const Thread *t, const struct_stat *st, const uint8_t *acl, size_t size
) noexcept nogil:
    """Decide by a file's mode and its ACL, or none; the first class that matches decides."""
    if t.acting.uid == st.st_uid:
        return st.st_mode >> 6 & EXECUTE
    if size:
        return _acl_allows(t, st.st_gid, acl, size)
    if _is_member(t, st.st_gid):
        return st.st_mode >> 3 & EXECUTE
    return st.st_mode & EXECUTE


cdef bint _is_member(const Thread *t, uint32_t gid) noexcept nogil:
    cdef uint32_t index
    if t.acting.gid == gid:
        return True
    for index in range(t.group_count):
        if t.groups[index] == gid:
            return True
    return False


cdef int _acl_allows(
    const Thread *t, uint32_t group, const uint8_t *acl, size_t size
) noexcept nogil:
    """Return whether an ACL lets a user execute that does not own the file; -EIO: it is none."""
    cdef size_t at = ACL_HEAD
    cdef uint32_t tag, permissions, number, mask = ANY_RIGHT
    cdef bint grouped = False, by_group = False, others = False, by_user = False, named = False
    if size < ACL_HEAD or (size - ACL_HEAD) % ACL_ENTRY:
        return -EIO
    while at < size:
        tag = acl[at] | <uint32_t>acl[at + 1] << 8
        permissions = acl[at + 2] & EXECUTE
        number = (
            acl[at + 4] | <uint32_t>acl[at + 5] << 8 | <uint32_t>acl[at + 6] << 16
            | <uint32_t>acl[at + 7] << 24
        )
        at += ACL_ENTRY
        if tag == MASK:
            mask = permissions
        elif tag == USER and number == t.acting.uid and not named:
            named = True
            by_user = permissions
        elif (tag == GROUP_OBJ and _is_member(t, group)) or (
            tag == GROUP and _is_member(t, number)
        ):
            grouped = True
            by_group = by_group or permissions
        elif tag == OTHER:
            others = others or permissions
    if named:
        return by_user and mask & EXECUTE
    if grouped:
        return by_group and mask & EXECUTE
    return others
