"""Maps, guards and squashing for Python: a volume with chosen maps, and one thread of it.

The methods act on the thread that calls them. `prepare` comes first in it. A guard runs a function
of Python between its two halves.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset, strcpy

from passthrough.core cimport libc
from passthrough.core.abi cimport fuse_in_header, fuse_link_in
from passthrough.core.identity cimport (
    allows, check_change, check_named, check_node, check_open, enter_caller, enter_clearing,
    enter_content, enter_keeping, enter_mode, enter_unreserved, identity_thread, is_itself,
    keeps_sgid, lacks_group, lacks_user, leave_caller, leave_clearing, leave_content, leave_keeping,
    leave_mode, leave_unreserved, may_have_group, new_owner, set_umask, shown_ids, to_host,
)
from passthrough.core.journal cimport Journal
from passthrough.core.libc cimport struct_stat
from passthrough.core.memory cimport create, detach
from passthrough.core.squash cimport (
    acts_as, as_caller, enter_itself, enter_powerless, leave_itself, leave_powerless, may_execute,
    mode_tries, new_group, serve_squashed, squashes, without_sgid,
)
from passthrough.core.state cimport MAX_GROUPS, Ids, IdMap, Thread, Volume
from passthrough.core.tables cimport (
    DIRECTORIES, FILES, TAKEN, Found, Granted, Limits, grant,
)


cdef class Log:
    """Collects what is reported; writes the last words to standard error."""

    cdef readonly list lines

    def __cinit__(self):
        self.lines = []

    def report(self, what, number, name):
        self.lines.append((what, number))

    def last_words(self, why):
        import sys
        print("last words:", why.decode(), file=sys.stderr, flush=True)


cdef void _fill(IdMap *map, ranges):
    map.count = 0
    for inside, outside, count in ranges:
        map.ranges[map.count].inside = inside
        map.ranges[map.count].outside = outside
        map.ranges[map.count].count = count
        map.count += 1


cdef int _result(int result) except -1:
    if result < 0:
        raise OSError(-result, "refused")
    return result


cdef struct Body:
    fuse_link_in link
    void *call  # a function of Python that returns a result


cdef int _run(Thread *t, void *data) noexcept nogil:
    with gil:
        return (<object>data)()


cdef int _handle(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil:
    with gil:
        return (<object>(<const Body *>arg).call)()


cdef class Probe:
    """A volume, and a thread of it."""

    cdef Volume v
    cdef Thread t
    cdef Journal journal
    cdef fuse_in_header h
    cdef readonly Log log

    def __init__(
        self, *, users=(), groups=(), int squash=0, anonymous=(65534, 65534), bint posix_acl=False,
        int device=-1,
    ):
        memset(&self.v, 0, sizeof(self.v))
        memset(&self.t, 0, sizeof(self.t))
        memset(&self.h, 0, sizeof(self.h))
        memset(&self.journal, 0, sizeof(self.journal))
        _fill(&self.v.users, users)
        _fill(&self.v.groups, groups)
        self.v.options.squash = squash
        self.v.options.restricted = bool(users) or bool(groups) or squash != 0
        self.v.options.may_lack_owners = bool(users)
        self.v.options.posix_acl = posix_acl
        self.v.anonymous.uid, self.v.anonymous.gid = anonymous
        self.v.device_fd = device
        strcpy(self.v.links, b"/proc/self/fd/")
        self.log = Log()
        self.v.python = <void *>self.log
        self.t.volume = &self.v
        self.t.request = &self.h
        self.t.journal = &self.journal

    def __dealloc__(self):
        if self.v.tables != NULL:
            detach(self.v.tables)

    def serve(self, int fd):
        """Take the descriptor of a directory as the volume's source."""
        cdef Limits limits
        cdef Found root
        cdef struct_stat st
        cdef int error = 0
        memset(&limits, 0, sizeof(limits))
        memset(&root, 0, sizeof(root))
        limits.inodes = limits.places = limits.opens[FILES] = limits.opens[DIRECTORIES] = 512
        limits.budget = 512
        libc.fstat(fd, &st)
        root.ino, root.device, root.fd, root.type = st.st_ino, st.st_dev, fd, st.st_mode & 0o170000
        self.v.tables = create(&limits, 1, -1, &root, &error)
        if self.v.tables == NULL:
            raise OSError(error, "tables")

    def grant(self, int fd):
        """Take the descriptor of a file; return its nodeid."""
        cdef Found found
        cdef Granted granted
        cdef struct_stat st
        memset(&found, 0, sizeof(found))
        libc.fstat(fd, &st)
        found.ino, found.device, found.fd = st.st_ino, st.st_dev, fd
        found.type = st.st_mode & 0o170000
        if grant(self.v.tables, NULL, &found, &granted) != TAKEN:
            raise ValueError("the tables know the file already")
        return granted.nodeid

    def prepare(self):
        """Make the calling thread the volume's."""
        _result(identity_thread(&self.t))

    def asked_by(self, uint32_t uid, uint32_t gid):
        """Have the request in hand come from a caller."""
        self.h.uid, self.h.gid = uid, gid
        return self

    @property
    def present(self):
        """The thread's file system ids as the kernel has them."""
        cdef uint32_t uid = libc.setfsuid(0xFFFFFFFF)
        return uid, libc.setfsgid(0xFFFFFFFF)

    @property
    def known(self):
        """The thread's file system ids as Thread has them."""
        return self.t.fs.uid, self.t.fs.gid

    @property
    def itself(self):
        return is_itself(&self.t)

    @property
    def powerless(self):
        return (self.t.acting.uid, self.t.acting.gid) if self.t.powerless else None

    @property
    def groups(self):
        return [self.t.groups[index] for index in range(self.t.group_count)]

    @property
    def squashed(self):
        return self.t.squashed

    # Maps

    def to_host(self, uid, gid):
        cdef Ids ids
        _result(to_host(&self.v, uid, gid, &ids))
        return ids.uid, ids.gid

    def new_owner(self, uid, gid):
        cdef Ids ids
        cdef uint32_t user = uid or 0, group = gid or 0
        _result(new_owner(
            &self.v, &user if uid is not None else NULL, &group if gid is not None else NULL, &ids
        ))
        return ids.uid, ids.gid

    def new_group(self, gid):
        cdef uint32_t group = gid or 0, found = 0
        if new_group(&self.v, &group if gid is not None else NULL, &found):
            return found
        return None

    def shown(self, uid, gid):
        cdef Ids ids
        shown_ids(&self.v, uid, gid, &ids)
        return ids.uid, ids.gid

    def lacks(self, uid, gid):
        return bool(lacks_user(&self.v, uid)), bool(lacks_group(&self.v, gid))

    def may_have_group(self, gid):
        return bool(may_have_group(&self.v, gid))

    def squashes(self, uid, gid):
        return bool(squashes(&self.t, uid, gid))

    def acts_as(self):
        cdef Ids ids
        _result(acts_as(&self.t, &ids))
        return ids.uid, ids.gid

    # Checks

    cdef struct_stat _stat(self, mode, owner):
        cdef struct_stat st
        memset(&st, 0, sizeof(st))
        st.st_mode = mode
        st.st_uid, st.st_gid = owner
        return st

    def check_change(self, mode, owner):
        cdef struct_stat st = self._stat(mode, owner)
        return check_change(&self.v, &st)

    def check_open(self, mode, owner, flags):
        cdef struct_stat st = self._stat(mode, owner)
        return check_open(&self.v, &st, flags)

    def check_named(self, fd, bytes name):
        return check_named(&self.t, fd, name)

    def check_node(self, mode):
        return check_node(&self.v, mode)

    def allows(self, mode, owner, mask):
        cdef struct_stat st = self._stat(mode, owner)
        return bool(allows(&self.t, &st, mask))

    def keeps_sgid(self, mode, owner, checked):
        cdef struct_stat st = self._stat(mode, owner)
        return keeps_sgid(&self.t, &st, checked)

    # Guards

    def as_the_caller(self, mode, call):
        _result(enter_caller(&self.t, mode))
        try:
            return call()
        finally:
            leave_caller(&self.t)

    def clearing(self, gid, call):
        _result(enter_clearing(&self.t, gid))
        try:
            return call()
        finally:
            leave_clearing(&self.t)

    def content(self, int fd, clears, checked, nodeid, call):
        cdef struct_stat st
        libc.fstat(fd, &st)
        _result(enter_content(&self.t, &st, clears, checked))
        try:
            return call()
        finally:
            leave_content(&self.t, &st, clears, nodeid)

    def keeping(self, fd, call):
        cdef struct_stat st
        if fd is not None:
            libc.fstat(fd, &st)
        _result(enter_keeping(&self.t, NULL if fd is None else &st))
        try:
            return call()
        finally:
            leave_keeping(&self.t)

    def unreserved(self, call):
        cdef bint entered = enter_unreserved(&self.t, True)
        try:
            return call()
        finally:
            leave_unreserved(&self.t, entered)

    def mode(self, int fd, mode, known, call):
        cdef struct_stat st
        libc.fstat(fd, &st)
        _result(enter_mode(&self.t, &st, mode, known))
        try:
            return call()
        finally:
            leave_mode(&self.t)

    def set_umask(self, mask):
        set_umask(&self.t, mask)

    # Squashing

    def as_powerless(self, ids, groups, call):
        cdef Ids acting
        cdef uint32_t list_of[MAX_GROUPS]
        cdef int count = 0
        acting.uid, acting.gid = ids
        for group in groups[:MAX_GROUPS]:
            list_of[count] = group
            count += 1
        _result(enter_powerless(&self.t, &acting, list_of, len(groups)))
        try:
            return call()
        finally:
            leave_powerless(&self.t)

    def as_itself(self, call):
        cdef bint entered = enter_itself(&self.t)
        try:
            return call()
        finally:
            leave_itself(&self.t, entered)

    def acting(self, call, nodeids=(), more=(), tries=3):
        """Have a function that returns a result run as the caller; return the result."""
        cdef unsigned long long nodes[2]
        cdef uint32_t groups[2 * MAX_GROUPS]
        cdef int index
        for index in range(len(nodeids)):
            nodes[index] = nodeids[index]
        for index in range(len(more)):
            groups[index] = more[index]
        return as_caller(
            &self.t, _run, <void *>call, nodes, len(nodeids), groups, len(more), tries
        )

    def served(self, call, acts, *, opcode=0, nodeid=1, linked=1):
        """Have a function that returns a result be the handler of a request."""
        cdef Body body
        body.link.oldnodeid = linked
        body.call = <void *>call
        self.h.opcode, self.h.nodeid = opcode, nodeid
        return serve_squashed(
            &self.t, _handle, acts, &self.h, <const char *>&body, sizeof(body)
        )

    def mode_tries(self, mode, directory):
        return mode_tries(mode is not None, mode or 0, directory)

    def without_sgid(self, parent_mode, mode):
        cdef struct_stat st = self._stat(parent_mode, (0, 0))
        return without_sgid(&self.t, &st, mode)

    def may_execute(self, fd):
        return may_execute(&self.t, fd)


def set_ids(uint32_t uid, uint32_t gid):
    """Set the thread's file system ids behind the back of its guards."""
    libc.setfsgid(gid)
    libc.setfsuid(uid)


def give_up(uint64_t kept):
    """Take all but some capabilities from the thread for good."""
    cdef libc.cap_header header
    cdef libc.cap_data data[2]
    header.version = libc._LINUX_CAPABILITY_VERSION_3
    header.pid = 0
    _result(libc.capget(&header, data))
    data[0].effective &= <uint32_t>kept
    data[0].permitted &= <uint32_t>kept
    data[1].effective &= <uint32_t>(kept >> 32)
    data[1].permitted &= <uint32_t>(kept >> 32)
    if libc.capset(&header, data) < 0:
        raise OSError(libc.errno, "capset(2)")
