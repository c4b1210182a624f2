"""Extended attributes, xattr(7), and which of them pass.

With xattr=false each request fails with ENOSYS: the kernel remembers that, and asks no more.

`system.` attributes stand for ACLs of POSIX, NFSv4, CIFS and NTFS. The kernel checks no permission
for them, so none passes. Only with posix_acl=true, which has the kernel honour ACLs, the two of
POSIX pass.

If container root is not the host's root (a map, or squashing), only `user.` attributes can be set:
others give a program power on the host, or tell a file system there what to do. File capabilities
can be removed, which takes power away. `trusted.` attributes cannot be read there. Each user of the
host may read `security.` ones, and the kernel asks for file capabilities itself.

**Served again** (repeated.pyx). If the attribute was not there before, EEXIST is success if the
attribute has the value now. If it was there, ENODATA of a removal is success.

Values and names go from the host into the reply, without a copy.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memchr, memmove, strcmp, strncmp

from passthrough.core.abi cimport (
    FUSE_SETXATTR_ACL_KILL_SGID, fuse_getxattr_in, fuse_getxattr_out, fuse_setxattr_in,
)
from passthrough.core.changes cimport may_take_power
from passthrough.core.identity cimport (
    enter_clearing, enter_keeping, leave_clearing, leave_keeping,
)
from passthrough.core.idmap cimport NO_FILES_ID
from passthrough.core.inode_calls cimport read_attributes
from passthrough.core.inodes cimport Loan, borrow_node, changing, give_back, is_stale, is_stale_fd
from passthrough.core.layout cimport Inode
from passthrough.core.libc cimport (
    EEXIST, EIO, ENODATA, ENOSYS, EOPNOTSUPP, EPERM, ERANGE, ESTALE, S_ISGID, XATTR_CREATE,
    XATTR_LIST_MAX, XATTR_SIZE_MAX, errno, fstat, removexattr, setxattr, struct_stat,
)
from passthrough.core.powerless cimport enter_itself, leave_itself
from passthrough.core.repeated cimport had_attribute, has_value
from passthrough.core.state cimport PATH_ROOM, Options, only_text, path_of, text
from passthrough.core.steps cimport MADE, note_call, step

# Which pass


cdef inline bint _begins(const char *name, const char *prefix, size_t length) noexcept nogil:
    return strncmp(name, prefix, length) == 0


cdef inline bint _is_system(const char *name) noexcept nogil:
    return _begins(name, b"system.", 7)


cdef inline bint _is_trusted(const char *name) noexcept nogil:
    return _begins(name, b"trusted.", 8)


cdef inline bint _is_user(const char *name) noexcept nogil:
    return _begins(name, b"user.", 5)


cdef inline bint _is_capability(const char *name) noexcept nogil:
    """Return whether these are file capabilities, which go when the file is written to."""
    return strcmp(name, b"security.capability") == 0


cdef inline bint _is_access_acl(const char *name) noexcept nogil:
    return strcmp(name, b"system.posix_acl_access") == 0


cdef inline bint _is_acl(const char *name) noexcept nogil:
    return _is_access_acl(name) or strcmp(name, b"system.posix_acl_default") == 0


cdef inline int _check(const Options *o, const char *name) noexcept nogil:
    """Refuse all attributes, or this one, to any request."""
    if not o.xattr:
        return -ENOSYS
    if _is_system(name) and not (o.posix_acl and _is_acl(name)):
        return -EOPNOTSUPP
    return 0


# Got


cdef int do_getxattr(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """Answer the value of one attribute, or its length if the caller has room for 0 bytes."""
    cdef const char *name = only_text(arg, n, sizeof(fuse_getxattr_in))
    cdef const Options *o = &t.volume.options
    cdef uint32_t room = (<const fuse_getxattr_in *>arg).size
    cdef Inode *inode = NULL
    cdef Loan loan
    cdef int result
    if name == NULL:
        return -EIO
    result = _check(o, name)
    if result < 0:
        return result
    result = borrow_node(t, h.nodeid, &inode, &loan)
    if result < 0:
        return result
    if o.restricted and _is_trusted(name):
        result = -ENODATA
    else:
        room = min(room, <uint32_t>XATTR_SIZE_MAX)
        result = <int>read_attributes(t, inode, loan.fd, name, t.out, room)
    if result == -EOPNOTSUPP and _is_acl(name):
        # The file system has no ACLs. This errno would refuse each access of users who are not the
        # owner, fuse_get_acl(), fs/fuse/acl.c.
        result = -ENODATA
    give_back(t, &loan)
    if result < 0 or room:
        return result
    return _reply_length(t, result)


cdef int _reply_length(Thread *t, int length) noexcept nogil:
    cdef fuse_getxattr_out *out = <fuse_getxattr_out *>t.out
    out.size = <uint32_t>length
    out.padding = 0
    return sizeof(fuse_getxattr_out)


cdef int do_listxattr(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """Answer the names that the caller may know of, or their length for room of 0 bytes."""
    cdef const Options *o = &t.volume.options
    cdef uint32_t room = (<const fuse_getxattr_in *>arg).size
    cdef Inode *inode = NULL
    cdef Loan loan
    cdef int result
    if not o.xattr:
        return -ENOSYS
    result = borrow_node(t, h.nodeid, &inode, &loan)
    if result < 0:
        return result
    result = <int>read_attributes(t, inode, loan.fd, NULL, t.out, XATTR_LIST_MAX)
    give_back(t, &loan)
    if result < 0:
        return result
    result = _keep_visible(t, <size_t>result)
    if not room:
        return _reply_length(t, result)
    return -ERANGE if <uint32_t>result > room else result


cdef int _keep_visible(Thread *t, size_t length) noexcept nogil:
    """Remove from the names in `out` those that the caller must not see; return their length.

    The kernel checks callers that get and set `trusted.` attributes, but not those that list them,
    which takes CAP_SYS_ADMIN of the host.
    """
    cdef const Options *o = &t.volume.options
    cdef bint privileged = t.request.uid == 0 and not o.restricted
    cdef char *name = t.out
    cdef char *kept = t.out
    cdef const char *end
    cdef size_t size
    while length:
        end = <const char *>memchr(name, 0, length)
        if end == NULL:
            break
        size = <size_t>(end - name) + 1
        if _is_visible(o, name, privileged):
            if kept != name:
                memmove(kept, name, size)
            kept += size
        name += size
        length -= size
    return <int>(kept - t.out)


cdef inline bint _is_visible(const Options *o, const char *name, bint privileged) noexcept nogil:
    if _is_system(name):
        return o.posix_acl and _is_acl(name)
    return privileged or not _is_trusted(name)


# Changed


cdef int do_setxattr(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """Set one attribute; `flags` are XATTR_CREATE and XATTR_REPLACE, setxattr(2)."""
    cdef const fuse_setxattr_in *s = <const fuse_setxattr_in *>arg
    cdef uint32_t at = sizeof(fuse_setxattr_in)
    cdef uint32_t size = 0
    cdef const char *name = text(arg, n, at, &size)
    cdef struct_stat st
    cdef Inode *inode = NULL
    cdef Loan loan
    cdef int result
    if name == NULL or n - at - size != s.size:
        return -EIO
    result = changing(t, h.nodeid, &inode, &loan)
    if result < 0:
        return result
    result = _check(&t.volume.options, name)
    if result == 0 and fstat(loan.fd, &st) < 0:
        result = -errno
    if result == 0 and is_stale(t, inode, &st):
        result = -ESTALE
    if result == 0:
        result = _set(t, s, loan.fd, &st, name, name + size)
    give_back(t, &loan)
    return result


cdef int _set(
    Thread *t, const fuse_setxattr_in *s, int fd, const struct_stat *st, const char *name,
    const char *value
) noexcept nogil:
    """Set an attribute of a file with the attributes `st`."""
    cdef char path[PATH_ROOM]
    cdef bint of_mode = st.st_mode & S_ISGID and _is_access_acl(name)
    cdef bint had = False
    cdef int result = 0
    if t.volume.options.restricted and not _is_user(name):
        return -EPERM
    path_of(t.volume, fd, path)
    if s.flags & XATTR_CREATE:
        had = had_attribute(t, path, name)
    if of_mode:
        result = _enter_acl(t, s)
    if result < 0:
        return result
    note_call(t)
    if setxattr(path, name, value, s.size, <int>s.flags) < 0:
        result = -errno
    step(t, MADE)
    if of_mode:
        _leave_acl(t, s)
    if result == -EEXIST and not had and has_value(t, path, name, value, s.size):
        return 0
    return result


cdef int _enter_acl(Thread *t, const fuse_setxattr_in *s) noexcept nogil:
    """Prepare to set the access ACL, which is a mode, too, of a file with an sgid bit.

    Without CAP_FSETID the host takes the bit away as it stores the ACL, unless the thread is in the
    file's group; the kernel asks for that by a flag.
    """
    if s.setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID:
        return enter_clearing(t, NO_FILES_ID)
    return enter_keeping(t, NULL)


cdef void _leave_acl(Thread *t, const fuse_setxattr_in *s) noexcept nogil:
    if s.setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID:
        leave_clearing(t)
    else:
        leave_keeping(t)


cdef int do_removexattr(
    Thread *t, const fuse_in_header *h, const char *arg, uint32_t n
) noexcept nogil:
    """Remove one attribute.

    In a squashed volume the caller has no CAP_SETFCAP, which the removal of file capabilities
    takes. But they go with each change of content, so the right to make one is enough.
    """
    cdef const char *name = only_text(arg, n, 0)
    cdef Inode *inode = NULL
    cdef Loan loan
    cdef bint as_itself = False
    cdef int result
    if name == NULL:
        return -EIO
    if t.powerless and _is_capability(name):
        result = borrow_node(t, h.nodeid, &inode, &loan)
        if result < 0:
            return result
        result = may_take_power(t, h.nodeid, loan.fd, True)
        give_back(t, &loan)
        if result < 0:
            return result
        as_itself = result > 0
    if as_itself:
        as_itself = enter_itself(t)
    result = _remove(t, h.nodeid, name)
    leave_itself(t, as_itself)
    return result


cdef int _remove(Thread *t, uint64_t nodeid, const char *name) noexcept nogil:
    cdef const Options *o = &t.volume.options
    cdef char path[PATH_ROOM]
    cdef Inode *inode = NULL
    cdef Loan loan
    cdef bint had = False
    cdef int result = changing(t, nodeid, &inode, &loan)
    if result < 0:
        return result
    result = _check(o, name)
    if result == 0 and o.restricted and not _is_user(name) and not _is_capability(name):
        result = -EPERM
    if result == 0 and is_stale_fd(t, inode, loan.fd):
        result = -ESTALE
    if result == 0:
        path_of(t.volume, loan.fd, path)
        had = had_attribute(t, path, name)
        if removexattr(path, name) < 0:
            result = -errno
        step(t, MADE)
    give_back(t, &loan)
    return 0 if result == -ENODATA and t.again and had else result
