"""Inodes in use, for tests: a volume, and the functions that lend, find and count its files."""

import errno
import os

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from passthrough.core.forgotten cimport forget_lookups
from passthrough.core.grants cimport Entry, grant_fd, pin_fd
from passthrough.core.inodes cimport (
    Loan, borrow_node, changing, give_back, inodes_close, inodes_open, is_hidden, stat_inode,
)
from passthrough.core.libc cimport (
    AT_EMPTY_PATH, AT_STATX_DONT_SYNC, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, STATX_MNT_ID,
    close, fstat, statx, struct_stat, struct_statx,
)
from passthrough.core.memory cimport create, detach
from passthrough.core.names cimport (
    IS_KNOWN, IS_NEW, UNSURE, Expected, Removal, begin_removal, check_name, check_reachable,
    end_removal, find_dot, find_name, grant_known,
)
from passthrough.core.state cimport IdRange, Thread, Volume
from passthrough.core.tables cimport (
    BY_HANDLE, DIRECTORIES, FILES, MAX_HANDLE, NO_PLACE, Found, Inode, Limits, OpenFile,
    created, descriptor, inode_of, next_inode, open_add, place_on,
)

NOWHERE = NO_PLACE
EXPECTED = {"unsure": UNSURE, "known": IS_KNOWN, "new": IS_NEW}


cdef class Probe:
    """A volume without requests; threads of Python may call it at once."""

    cdef Volume *v
    cdef Thread *t  # of the caller; `find` keeps its history
    cdef dict loans
    cdef object python

    def __cinit__(self):
        self.v = <Volume *>calloc(1, sizeof(Volume))
        self.t = <Thread *>calloc(1, sizeof(Thread))
        if self.v == NULL or self.t == NULL:
            raise MemoryError
        self.t.volume = self.v

    def __init__(
        self, bytes source, python, *, uint64_t budget=1 << 60, handles=True, hides=False,
        statx_first=False, lacks_owners=False, uint32_t places=512,
    ):
        cdef Limits limits
        cdef Found root
        cdef int error = 0
        self.loans = {}
        self.python = python
        self.v.python = <void *>python
        memcpy(self.v.links, b"/proc/self/fd/", 15)
        self.v.device_fd = -1
        self.v.options.hide_submounts = hides
        self.v.options.statx_first = statx_first
        self.v.options.may_lack_owners = lacks_owners
        if lacks_owners:
            self.v.users.count = 1
            self.v.users.ranges[0] = IdRange(inside=0, outside=100_000, count=1000)
        memset(&limits, 0, sizeof(limits))
        memset(&root, 0, sizeof(root))
        limits.inodes, limits.places, limits.handle_bytes = 1 << 20, places, MAX_HANDLE
        limits.opens[FILES] = limits.opens[DIRECTORIES] = 1 << 16
        limits.budget = budget
        st = os.stat(source)
        root.ino, root.device, root.type = st.st_ino, st.st_dev, 0o040000
        root.fd = os.open(source, os.O_PATH)
        mount_fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY) if handles else -1
        self.v.tables = create(&limits, mount_id(root.fd), mount_fd, &root, &error)
        if self.v.tables == NULL:
            raise OSError(error, "tables")
        error = inodes_open(self.v)
        if error:
            raise OSError(-error, "inodes")

    def close(self):
        """Close as at the end of a session; return the descriptors that the tables have then."""
        inodes_close(self.v)
        if self.v.tables == NULL:
            return []
        left = [self.v.tables.inodes[index].fd for index in self.live()]
        detach(self.v.tables)
        self.v.tables = NULL
        return left

    def __dealloc__(self):
        if self.v != NULL:
            self.close()
        free(self.v)
        free(self.t)

    # Lent

    def lend(self, uint64_t nodeid):
        """Return a number of the loan, and the descriptor."""
        cdef Thread t
        cdef Loan loan
        cdef Inode *inode
        start(self.v, &t)
        check(borrow_node(&t, nodeid, &inode, &loan))
        self.loans[len(self.loans)] = (loan.fd, loan.kept)
        return len(self.loans) - 1, loan.fd

    def give_back(self, number):
        cdef Thread t
        cdef Loan loan
        start(self.v, &t)
        loan.fd, loan.kept = self.loans[number]
        give_back(&t, &loan)
        self.loans[number] = (loan.fd, loan.kept)

    def changing(self, uint64_t nodeid):
        """Lend and give back; return whether it was lent."""
        cdef Thread t
        cdef Loan loan
        cdef Inode *inode
        start(self.v, &t)
        check(changing(&t, nodeid, &inode, &loan))
        lent = loan.fd >= 0
        give_back(&t, &loan)
        return lent

    def stat(self, uint64_t nodeid):
        cdef Thread t
        cdef struct_stat st
        start(self.v, &t)
        check(stat_inode(&t, self.node(nodeid), &st))
        return fields_of(&st)

    def is_hidden(self, uint64_t nodeid):
        return is_hidden(self.v, self.node(nodeid))

    # Found

    def find(self, uint64_t nodeid, bytes name, int expected=UNSURE):
        """Return nodeid, number shown, whether it is a submount, attributes."""
        cdef Loan loan
        cdef Inode *directory
        cdef Entry entry
        cdef int result
        cdef const char *text = name
        check(borrow_node(self.t, nodeid, &directory, &loan))
        with nogil:
            result = find_name(self.t, directory, loan.fd, text, <Expected>expected, &entry)
        give_back(self.t, &loan)
        check(result)
        return entry_of(&entry)

    def find_dot(self, uint64_t nodeid, *, bint parent=False):
        cdef Entry entry
        check(find_dot(self.t, self.node(nodeid), parent, &entry))
        return entry_of(&entry)

    def find_known(self, uint64_t nodeid, path, between):
        """Find a path by statx(2), and call `between` before the lookup is counted; or None."""
        cdef Entry entry
        cdef struct_statx found
        cdef uint32_t since = created(self.v.tables)
        name = os.fsencode(path)
        statx(-100, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_MNT_ID, &found)
        between()
        if grant_known(self.t, self.node(nodeid), &found, since, &entry):
            return None
        return entry_of(&entry)

    def set_hits(self, uint32_t hits, uint32_t lookups=0):
        self.t.hits, self.t.lookups = hits, lookups

    def hits(self):
        return self.t.hits

    def grant(self, int fd, *, uint32_t place=0):
        """Count a lookup of the file behind a descriptor, which this takes."""
        cdef Thread t
        cdef Entry entry
        start(self.v, &t)
        check(grant_fd(&t, fd, place, &entry))
        return entry_of(&entry)

    def forget(self, uint64_t nodeid, uint64_t count=1):
        cdef Thread t
        start(self.v, &t)
        forget_lookups(&t, nodeid, count)

    def check_reachable(self, uint64_t nodeid):
        cdef Thread t
        start(self.v, &t)
        check(check_reachable(&t, nodeid))

    # Removed

    def remove(self, uint64_t nodeid, bytes name, call):
        """Call `call`, which removes a name or returns false."""
        cdef Thread t
        cdef Loan loan
        cdef Inode *directory
        cdef Removal removal
        start(self.v, &t)
        check(borrow_node(&t, nodeid, &directory, &loan))
        begin_removal(&t, directory, loan.fd, name, &removal)
        end_removal(&t, directory, &removal, call() is not False)
        give_back(&t, &loan)
        return removal.fd

    def pin(self, int fd, *, uint32_t place=0):
        """Pin a file, or close `fd`."""
        if not pin_fd(self.v.tables, fd, place):
            close(fd)

    # Tables

    def add_open(self, uint64_t nodeid, int fd, int twin, *, table=FILES, note=False):
        """Add an open file, as the one for callers without an OPEN if `note`."""
        cdef OpenFile made
        cdef uint64_t fh = 0
        cdef int32_t in_force = 0
        memset(&made, 0, sizeof(made))
        made.fd, made.twin = fd, twin
        check(open_add(self.v.tables, NULL, table, nodeid, &made, 0, &fh, &in_force))
        if note:
            self.node(nodeid).notes = <uint32_t>fh

    def inode(self, uint64_t nodeid):
        cdef Inode *inode = inode_of(self.v.tables, nodeid)
        if inode == NULL:
            return None
        found = dict(inode[0])
        found["by_handle"] = bool(inode.flags & BY_HANDLE)
        return found

    def fill_places(self):
        """Have no room for one more device."""
        cdef uint64_t device = 0
        while place_on(self.v.tables, 0, device) != NO_PLACE:
            device += 1

    def mounts(self):
        return [dict(self.v.tables.mounts[at]) for at in range(self.v.tables.header.mounts)]

    def live(self):
        index, indexes = next_inode(self.v.tables, 0), []
        while index:
            indexes.append(index)
            index = next_inode(self.v.tables, index)
        return indexes

    # Threads

    def walk(self, nodeids, uint32_t rounds):
        """Lend directories in turn; return how often a loan was of another file."""
        cdef uint64_t nodes[256]
        cdef uint32_t count = len(nodeids)
        cdef uint32_t wrong = 0
        cdef Thread t
        start(self.v, &t)
        for index in range(count):
            nodes[index] = nodeids[index]
        with nogil:
            wrong = walk(&t, nodes, count, rounds)
        return wrong

    def churn(self, names, uint32_t rounds):
        """Find, lend and forget names of the root in turn; return how often something was wrong.

        A file keeps its size for ever, and no other file has that size.
        """
        cdef Thread t
        cdef const char *texts[64]
        cdef uint32_t count = len(names)
        cdef uint32_t counts[2]
        start(self.v, &t)
        counts[0] = counts[1] = 0
        for index in range(count):
            texts[index] = names[index]
        with nogil:
            churn(&t, texts, count, rounds, counts)
        return counts[0], counts[1]

    cdef Inode *node(self, uint64_t nodeid) except NULL:
        cdef Inode *inode = inode_of(self.v.tables, nodeid)
        if inode == NULL:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return inode


def name_error(bytes name):
    """Return the errno of a name that is no component of a path, or 0."""
    return -check_name(name)


def mount_id(int fd):
    cdef struct_statx found
    statx(fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID, &found)
    return found.stx_mnt_id


cdef void start(Volume *v, Thread *t):
    memset(t, 0, sizeof(Thread))
    t.volume = v


cdef int check(int result) except -1:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return 0


cdef tuple entry_of(const Entry *entry):
    return (
        entry.granted.nodeid, entry.granted.shown_ino, bool(entry.submount), fields_of(&entry.st)
    )


cdef bytes fields_of(const struct_stat *st):
    return (<const char *>st)[:sizeof(struct_stat)]


cdef uint32_t walk(
    Thread *t, const uint64_t *nodes, uint32_t count, uint32_t rounds
) noexcept nogil:
    cdef uint32_t wrong = 0
    cdef uint32_t turn, at
    cdef Inode *inode
    cdef Loan loan
    cdef struct_stat st
    for turn in range(rounds):
        at = (turn * 7 + turn // count) % count
        if borrow_node(t, nodes[at], &inode, &loan) < 0:
            wrong += 1
            continue
        if fstat(loan.fd, &st) < 0 or st.st_ino != inode.ino:
            wrong += 1
        give_back(t, &loan)
    return wrong


cdef void churn(
    Thread *t, const char **names, uint32_t count, uint32_t rounds, uint32_t *counts
) noexcept nogil:
    """Count what is wrong in `counts[0]`, and lookups that statx(2) was enough for in `[1]`."""
    cdef Inode *root = inode_of(t.volume.tables, 1)
    cdef Inode *inode
    cdef Entry entry
    cdef Loan loan
    cdef struct_stat st
    cdef uint32_t turn
    for turn in range(rounds):
        t.hits = 0xFFFFFFFE  # go on trying
        if find_name(t, root, descriptor(root), names[turn % count], UNSURE, &entry) < 0:
            counts[0] += 1
            continue
        if t.hits & 3 == 1:
            counts[1] += 1
        if borrow_node(t, entry.granted.nodeid, &inode, &loan) < 0:
            counts[0] += 1
        else:
            if (
                fstat(loan.fd, &st) < 0 or st.st_ino != entry.st.st_ino
                or st.st_ino != inode.ino or st.st_size != entry.st.st_size
            ):
                counts[0] += 1
            give_back(t, &loan)
        if turn % 3 != 0:
            forget_lookups(t, entry.granted.nodeid, 1)
