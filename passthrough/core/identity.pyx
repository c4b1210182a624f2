"""Switches a thread's file system ids to the caller's, and its right to keep suid and sgid bits.

**Creation.** Operations that create act as the caller: mkdir, mknod, symlink, create, tmpfile, and
rename with a whiteout. The kernel has checked the caller's permissions before
(default_permissions), with all of the caller's groups. setfsuid(2) and setfsgid(2) change one
thread. The thread keeps its capabilities (SECBIT_NO_SETUID_FIXUP). Without them the host would
check again, with the primary group alone, and refuse a caller that may create only by a
supplementary group.

**Suid and sgid bits.** When content changes, the kernel clears the bits of the file, unless the
thread has CAP_FSETID, capabilities(7). So a thread has no CAP_FSETID outside of guards, and raises
it only where bits stay. An sgid bit without group execution gives no right. The kernel clears this
bit only if the thread is outside of the file's group, inode(7). So a thread that must clear it,
too, takes a group that no file has.

**Reserved blocks.** File systems keep space for user 0 and for CAP_SYS_RESOURCE. Threads lack that
capability, and change the data of files that other users have opened as a user with no files.

**chmod(2).** With a map or squashing, a caller may set suid and sgid bits only for an owner that is
itself. For chmod(2) with these bits, the thread acts as the caller's counterpart, without
CAP_FOWNER and CAP_FSETID. The host then compares the owner under the inode's lock, so that no
chown(2) comes between check and change.

**Served again**, a change of content finds no bits that the dead worker has taken away, and the
kernel may not have heard of that: `leave_content` tells it in any case.

If a switch cannot be undone, the process ends.
"""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.core.libc cimport (
    _LINUX_CAPABILITY_VERSION_3,
    CLONE_FS,
    EIO,
    EPERM,
    PR_GET_SECUREBITS,
    PR_SET_SECUREBITS,
    S_IFDIR,
    S_IFMT,
    S_ISGID,
    cap_header,
    capget,
    errno,
    prctl,
    setfsgid,
    setfsuid,
    umask,
    unshare,
)
from passthrough.core.notify cimport attributes_changed
from passthrough.core.powerless cimport (
    FOWNER_BIT, FSETID_BIT, RESOURCE_BIT, end_as, set_effective,
)
from passthrough.core.steps cimport note_call

cdef enum:
    OWN_ID = 0
    PRIVILEGES = 0o6000  # S_ISUID | S_ISGID
    KEEP_CAPABILITIES = 1 << 2  # SECBIT_NO_SETUID_FIXUP, linux/securebits.h


cdef int identity_thread(Thread *t) noexcept nogil:
    """Prepare the calling thread, once, before its first request; return 0 or -errno.

    The thread gets an umask of its own, keeps its capabilities through changes of ids, and has no
    CAP_FSETID outside of guards.
    """
    cdef cap_header header
    cdef int bits
    if unshare(CLONE_FS) < 0:
        return -errno
    t.umask = umask(0)
    umask(t.umask)
    bits = prctl(PR_GET_SECUREBITS)
    if bits < 0:
        return -errno
    if not bits & KEEP_CAPABILITIES:
        # Otherwise a change back to uid 0 would also raise CAP_FSETID.
        if prctl(PR_SET_SECUREBITS, <unsigned long>(bits | KEEP_CAPABILITIES)) < 0:
            return -errno
    header.version = _LINUX_CAPABILITY_VERSION_3
    header.pid = 0
    if capget(&header, t.capabilities) < 0:
        return -errno
    t.capabilities[0].effective &= ~<uint32_t>(FSETID_BIT | RESOURCE_BIT)
    t.fs.uid = setfsuid(NO_ID)
    t.fs.gid = setfsgid(NO_ID)
    if t.fs.uid != OWN_ID or t.fs.gid != OWN_ID:
        return -EPERM
    t.acting.uid = t.acting.gid = NO_ID
    t.group_count = 0
    t.powerless = t.squashed = t.reduced = False
    return set_effective(t, 0, 0)


cdef void set_umask(Thread *t, uint32_t mask) noexcept nogil:
    """Have the host apply the caller's umask to what this thread creates next.

    Without ACLs, of which a default one takes the umask's place, the kernel has applied it.
    """
    if t.volume.options.posix_acl and mask != t.umask:
        umask(mask)
        t.umask = mask


# Switches, and their undoing. A powerless thread acts as the caller, and lacks all capabilities.


cdef int _change_capabilities(Thread *t, uint32_t added, uint32_t removed) noexcept nogil:
    """Change the thread's capabilities until `_restore_capabilities`; return 0 or -errno."""
    cdef int result
    added &= t.capabilities[0].permitted  # without CAP_FSETID there, bits go with each change
    removed &= t.capabilities[0].effective
    if t.powerless or not (added or removed):
        return 0
    if t.reduced or t.fs.uid == NO_FILES_ID:  # nested, or inside of `enter_unreserved`
        return -EIO
    result = set_effective(t, added, removed)
    t.reduced = result == 0
    return result


cdef void _restore_capabilities(Thread *t) noexcept nogil:
    cdef int result
    if not t.reduced or t.powerless:
        return
    result = set_effective(t, 0, 0)
    if result < 0:
        end_as(t, "cannot restore its capabilities: errno %ld", -result, 0)
    t.reduced = False


cdef int _change_ids(Thread *t, const Ids *ids) noexcept nogil:
    """Switch to the caller's ids, the group first, until `_restore_ids`; return 0 or -errno.

    If these are the thread's own ids, nothing is switched: this saves four system calls. A
    powerless thread has them already.
    """
    if t.powerless:
        return 0 if t.acting.uid == ids.uid and t.acting.gid == ids.gid else -EIO
    if t.fs.uid != OWN_ID or t.fs.gid != OWN_ID:
        return -EIO
    if ids.uid == NO_ID or ids.gid == NO_ID:
        return -EPERM
    if ids.uid != OWN_ID or ids.gid != OWN_ID:
        setfsgid(ids.gid)
        setfsuid(ids.uid)
        t.fs = ids[0]
    return 0


cdef void _restore_ids(Thread *t) noexcept nogil:
    """Restore the thread's own ids, in reverse order.

    setfsuid(2) and setfsgid(2) report no failure, but return the previous id. So here they return
    the switched ids, if each switch succeeded. If a switch failed, the owner of the new file and
    the ids of the next request are unknown: the process ends.
    """
    cdef uint32_t uid, gid
    if t.powerless or (t.fs.uid == OWN_ID and t.fs.gid == OWN_ID):
        return
    uid = setfsuid(OWN_ID)
    gid = setfsgid(OWN_ID)
    if uid != t.fs.uid or gid != t.fs.gid:
        end_as(t, "acted as %ld:%ld in place of its caller", uid, gid)
    t.fs.uid = t.fs.gid = OWN_ID


cdef int _change_both(
    Thread *t, const Ids *ids, uint32_t added, uint32_t removed
) noexcept nogil:
    """Change capabilities and ids, or nothing; return 0 or -errno."""
    cdef int result = _change_capabilities(t, added, removed)
    if result < 0:
        return result
    result = _change_ids(t, ids)
    if result < 0:
        _restore_capabilities(t)
    return result


# Guards


cdef int enter_caller(Thread *t, uint32_t mode) noexcept nogil:
    """Act as the request's caller, for the creation of a file with a mode.

    With a map or squashing, the host drops the sgid bit of the mode if the file gets its group from
    its directory, and the group is not that of the caller. -EPERM: the caller has no counterpart.
    """
    cdef Ids ids
    cdef int result = to_host(t.volume, t.request.uid, t.request.gid, &ids)
    cdef bint raises = mode & S_ISGID and not t.volume.options.restricted
    if result < 0:
        return result
    return _change_both(t, &ids, FSETID_BIT if raises else 0, 0)


cdef void leave_caller(Thread *t) noexcept nogil:
    """Act as the worker again."""
    _restore_ids(t)
    _restore_capabilities(t)


cdef int enter_clearing(Thread *t, uint32_t gid) noexcept nogil:
    """Have each file that the thread writes to lose its suid and sgid bits.

    A file of the group `gid` keeps an sgid bit without group execution; none is in NO_FILES_ID.
    """
    if t.powerless or gid == OWN_ID:
        return 0
    if t.fs.uid != OWN_ID or t.fs.gid != OWN_ID:
        return -EIO
    setfsgid(gid)
    t.fs.gid = gid
    return 0


cdef void leave_clearing(Thread *t) noexcept nogil:
    """Have the thread's own group again."""
    cdef uint32_t present
    if t.powerless or t.fs.gid == OWN_ID:
        return
    setfsgid(OWN_ID)
    present = setfsgid(NO_ID)
    if present != OWN_ID:
        end_as(t, "has the group %ld, and cannot restore its own", present, 0)
    t.fs.gid = OWN_ID


cdef bint is_host_root(Thread *t) noexcept nogil:
    """Return whether the request's caller is the host's root, for whom file systems keep space."""
    cdef Ids ids
    if to_host(t.volume, t.request.uid, t.request.gid, &ids) < 0:
        return False
    return ids.uid == OWN_ID


cdef bint enter_unreserved(Thread *t, bint needed) noexcept nogil:
    """If needed, take no block that the host's file system reserves for root: ext4(5), resuid.

    This guard is the innermost one, around one system call: inside of it all others refuse to
    begin, with -EIO. Return whether there is anything to leave.
    """
    if not needed or t.powerless or t.fs.uid != OWN_ID:
        return False
    setfsuid(NO_FILES_ID)
    t.fs.uid = NO_FILES_ID
    return True


cdef void leave_unreserved(Thread *t, bint entered) noexcept nogil:
    """Be root again."""
    cdef uint32_t uid
    if not entered:
        return
    uid = setfsuid(OWN_ID)
    if uid != NO_FILES_ID:
        end_as(t, "acted as user %ld, and not as one without reserved blocks", uid, 0)
    t.fs.uid = OWN_ID


cdef int enter_content(Thread *t, const struct_stat *st, bint clears, bint checked) noexcept nogil:
    """Prepare a change of a file's content: `clears` says if suid and sgid bits go with it.

    With a map or squashing they always do. `checked` as for `keeps_sgid`.
    """
    cdef int keeps
    if not st.st_mode & PRIVILEGES:
        return 0
    if not clears and not t.volume.options.restricted:
        return _change_capabilities(t, FSETID_BIT, 0)
    keeps = keeps_sgid(t, st, checked)
    if keeps < 0:
        return keeps
    note_call(t)
    return enter_clearing(t, st.st_gid if keeps else NO_FILES_ID)


cdef void leave_content(
    Thread *t, const struct_stat *st, bint clears, uint64_t nodeid
) noexcept nogil:
    """End `enter_content`; the kernel hears of bits that may be gone."""
    if not st.st_mode & PRIVILEGES:
        if t.again:
            attributes_changed(t.volume, nodeid)
        return
    if not clears and not t.volume.options.restricted:
        _restore_capabilities(t)
        return
    leave_clearing(t)
    attributes_changed(t.volume, nodeid)


cdef int enter_keeping(Thread *t, const struct_stat *st) noexcept nogil:
    """Let the thread keep suid and sgid bits, of a file or of any (NULL)."""
    if st != NULL and not st.st_mode & PRIVILEGES:
        return 0
    return _change_capabilities(t, FSETID_BIT, 0)


cdef void leave_keeping(Thread *t) noexcept nogil:
    """Let the thread keep no bits again."""
    _restore_capabilities(t)


cdef int enter_mode(Thread *t, const struct_stat *st, uint32_t mode, bint known) noexcept nogil:
    """Prepare chmod(2) of a file to a mode. -EPERM: the caller may not set its suid or sgid bits.

    The sgid bit of a directory gives a program no rights. A directory may keep the bit, and may get
    it if the map has the directory's group: the kernel has checked that the caller is a member. The
    host knows only the caller's primary group. `known` says if the request names the caller.
    """
    cdef uint32_t gained = mode & PRIVILEGES
    cdef bint directory = (st.st_mode & S_IFMT) == S_IFDIR
    cdef bint grants
    cdef Ids ids
    cdef int result
    if not gained:
        return 0
    if not t.volume.options.restricted or (directory and not gained & ~st.st_mode):
        return _change_capabilities(t, FSETID_BIT, 0)
    if not known:
        return -EPERM
    result = to_host(t.volume, t.request.uid, t.request.gid, &ids)
    if result < 0:
        return result
    grants = directory and not lacks_group(t.volume, st.st_gid)
    return _change_both(t, &ids, FSETID_BIT if grants else 0, FOWNER_BIT)


cdef void leave_mode(Thread *t) noexcept nogil:
    """Act as the worker again."""
    _restore_ids(t)
    _restore_capabilities(t)
