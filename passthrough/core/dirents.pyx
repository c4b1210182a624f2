"""Entries of listings, written into replies: a name alone, or with what a lookup would answer.

Each entry of READDIRPLUS counts as one lookup; `.` and `..` have none, and count not. So a name is
looked up only if the reply has room for it.

A name that has vanished meanwhile is left out, and so is one that cannot be looked at: a dead mount
below the source must not make the directory around it unusable.

**Just listed.** rm(1) opens a directory twice, and reads it each time. A name goes without its
entry if a listing has given the entry of its file a short while ago: nodeid 0, which the kernel
takes as "no lookup" and not as "no file" (fuse_direntplus_link(), fs/fuse/readdir.c). The kernel
then uses what it knows, or sends LOOKUP. The window is an eighth of the shortest timeout and 100 ms
at most. So the attributes stay valid for a caller that reads them next. If the file was
opened since, the kernel may know its size no more: then the name has its entry.

The names of a stream that a squashed caller has opened are looked up as that caller, beneath the
stream's descriptor. A caller may list a directory without the right to search it: then a name goes
without its entry.
"""

from libc.stdint cimport int32_t, uint64_t
from libc.string cimport memcpy, memset

from passthrough.core.abi cimport fuse_dirent, fuse_direntplus
from passthrough.core.attributes cimport fill_entry
from passthrough.core.forgotten cimport take_lookup_back
from passthrough.core.grants cimport Entry
from passthrough.core.layout cimport (
    KNOWN, LISTED, RELAXED, ROOT_INDEX, Granted, flags_of, inode_of, load32, milliseconds,
    shown_beside,
)
from passthrough.core.libc cimport EACCES, EMFILE, ENFILE, ENOENT, ENOMEM
from passthrough.core.listing cimport SQUASHED
from passthrough.core.names cimport (
    IS_KNOWN, IS_NEW, UNSURE, Expected, find_name, mounted_number,
)
from passthrough.core.rare cimport report
from passthrough.core.squash cimport enter_powerless, leave_powerless
from passthrough.core.state cimport REPORT_LEFT_OUT, SQUASH_NONE, Ids
from passthrough.core.stream_marks cimport opener_of
from passthrough.core.tables cimport find, set_listed
from passthrough.core.timeouts cimport (
    DIR_ATTR, DIR_ENTRY, FILE_ATTR, FILE_ENTRY, Timeout, timeout_of,
)

cdef enum:
    KIND_SHIFT = 12  # from st_mode to DT_*, as S_IFMT is laid out
    FRESH_MS = 100
    FRESH_SHARE = 8  # of a timeout
    LONG_S = 3600  # seconds; a longer timeout counts as this


cdef uint32_t fresh_ms(const Thread *t) noexcept nogil:
    """Return for how long a listing need not repeat an entry, in ms."""
    cdef uint32_t shortest = min(
        min(_ms(t, FILE_ENTRY), _ms(t, FILE_ATTR)), min(_ms(t, DIR_ENTRY), _ms(t, DIR_ATTR))
    )
    return min(shortest // FRESH_SHARE, <uint32_t>FRESH_MS)


cdef inline uint32_t _ms(const Thread *t, int kind) noexcept nogil:
    cdef Timeout timeout = timeout_of(&t.volume.timeouts, kind)
    cdef uint64_t seconds = min(timeout.seconds, <uint64_t>LONG_S)
    return <uint32_t>(seconds * 1000) + timeout.nanoseconds // 1000000


cdef void put_name(
    Thread *t, const Listing *listing, const Record *record, char *place, uint32_t size
) noexcept nogil:
    """Write a name with the number that users know."""
    cdef const Inode *inode = listing.inode
    cdef uint64_t number, counted = 0
    cdef uint32_t kind = record.kind << KIND_SHIFT
    # The parent of the root is the root.
    if is_dot(record.name) and (record.length == 1 or inode.nodeid == ROOT_INDEX):
        number = inode.shown_ino
    else:
        number = shown_beside(t.volume.tables, inode, record.number)
        if t.volume.options.statx_first and listing.kind != SQUASHED and not is_dot(record.name):
            number = mounted_number(
                t, inode, listing.stream.fd, record.name, kind, number, &counted
            )
            if counted:
                take_lookup_back(t, counted)
    _put(<fuse_dirent *>place, record, number, record.kind, size)


cdef inline void _put(
    fuse_dirent *out, const Record *record, uint64_t number, uint32_t kind, uint32_t size
) noexcept nogil:
    """Write an entry of `size` bytes."""
    cdef char *name = <char *>(out + 1)
    out.ino = number
    out.off = record.end
    out.namelen = record.length
    out.type = kind
    memcpy(name, record.name, record.length)
    memset(name + record.length, 0, size - sizeof(fuse_dirent) - record.length)


cdef int put_entry(
    Thread *t, const Listing *listing, const Record *record, char *place, uint32_t *size
) noexcept nogil:
    """Write a name with its entry, in `size` bytes, or leave it out: then 0 bytes.

    Return 0; -EMFILE, -ENFILE or -ENOMEM, which tell nothing of the file.
    """
    cdef fuse_direntplus *out = <fuse_direntplus *>place
    cdef uint32_t behind = <uint32_t>(size[0] - sizeof(out.entry_out))
    cdef int error = -EACCES if is_dot(record.name) else _put_found(t, listing, record, out, behind)
    if not error or error == -EMFILE or error == -ENFILE or error == -ENOMEM:
        return error
    if error == -EACCES and (is_dot(record.name) or t.volume.options.squash != SQUASH_NONE):
        memset(&out.entry_out, 0, sizeof(out.entry_out))
        put_name(t, listing, record, <char *>&out.dirent, behind)
        return 0
    if error != -ENOENT:
        report(t.volume, REPORT_LEFT_OUT, -error, record.name)
    size[0] = 0
    return 0


cdef int _put_found(
    Thread *t, const Listing *listing, const Record *record, fuse_direntplus *out, uint32_t size
) noexcept nogil:
    """Look a name up, and write it with its entry; without, if that was just listed: 0 or -errno.

    `size` is that of the entry's second part, which READDIR has, too.
    """
    cdef Tables *tables = t.volume.tables
    cdef Granted known
    cdef Entry entry
    cdef int found = find(tables, listing.inode.place, record.number, &known)
    cdef int error
    if found == KNOWN and record.kind and listing.kind != SQUASHED:
        if _is_repeated(tables, known.nodeid, listing.fresh_ms):
            memset(&out.entry_out, 0, sizeof(out.entry_out))
            _put(&out.dirent, record, known.shown_ino, record.kind, size)
            return 0
    error = _look_up(t, listing, record.name, _expect(listing, found), &entry)
    if error:
        return error
    if entry.st.st_ino != record.number:
        listing.stream.renumbered = True
    set_listed(tables, entry.granted.nodeid)
    fill_entry(t, &entry, &out.entry_out)
    _put(&out.dirent, record, entry.granted.shown_ino, entry.st.st_mode >> KIND_SHIFT, size)
    return 0


cdef bint _is_repeated(Tables *t, uint64_t nodeid, uint32_t within_ms) noexcept nogil:
    """Return whether a listing has just given the entry of a file, which nothing has opened."""
    cdef const Inode *inode = inode_of(t, nodeid)
    if inode == NULL or not flags_of(inode) & LISTED:
        return False
    return milliseconds() - <uint32_t>load32(<const int32_t *>&inode.told, RELAXED) < within_ms


cdef Expected _expect(const Listing *listing, int found) noexcept nogil:
    """Return what to expect of a file by the result of `find` for the number that is listed."""
    if listing.stream.renumbered:
        return UNSURE
    return IS_KNOWN if found == KNOWN else IS_NEW


cdef int _look_up(
    Thread *t, const Listing *listing, const char *name, Expected expected, Entry *entry
) noexcept nogil:
    """Look a name up beneath the stream's own descriptor; 0 or -errno."""
    cdef Stream *s = listing.stream
    cdef const Ids *opener
    cdef int error
    if listing.kind != SQUASHED:
        return find_name(t, listing.inode, s.fd, name, expected, entry)
    opener = opener_of(s.track.kept, s.fh)
    if opener == NULL:
        return -EACCES
    error = enter_powerless(t, opener, NULL, 0)
    if error:
        return error
    error = find_name(t, listing.inode, s.fd, name, expected, entry)
    leave_powerless(t)
    return error
