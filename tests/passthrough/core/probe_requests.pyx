"""Makes requests: a row of `rows` has the fields of one opcode, and the form of its reply.

The fields have numbers that lead somewhere: nodeids and fh that the core has given, few names,
small offsets. One request in four is then damaged.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen

from passthrough.core cimport abi
from passthrough.core.abi cimport fuse_in_header
from passthrough.core.layout cimport DIRECTORIES, FILES
from passthrough.core.libc cimport (
    FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, TCGETS,
)

cdef enum:
    MANY_NODES = 1000
    MANY_OPEN = 100
    LETTERS = 128
    ANY = 1 << 20  # bytes of a reply

# The kinds of fields.
cdef enum:
    MASKED = 1  # random bits under a mask
    MODE = 2  # mostly with all rights of the owner
    COUNT = 3  # of lookups
    NODE, FILE, DIRECTORY, OFFSET, PLACE, SIZE, LENGTH, DATA, COMMAND, NAME, XATTR, ROWS


cdef struct Field:
    uint8_t size
    uint8_t kind
    uint32_t mask


cdef Field fields[LETTERS]
cdef Row rows[OPCODES]
cdef uint8_t choices[512]
cdef int choice_count = 0
cdef uint32_t commands[5]
cdef uint32_t ids[4]
cdef const char *names[12]
cdef const char *attributes[4]


cdef const Row *row_of(uint32_t opcode) noexcept nogil:
    """Return the row of an opcode; one without a schema if the core does not serve it."""
    return &rows[opcode if opcode < OPCODES else 0]


cdef uint64_t _draw(Fuzz *f) noexcept nogil:
    f.random ^= f.random << 13
    f.random ^= f.random >> 7
    f.random ^= f.random << 17
    return f.random >> 5


cdef uint64_t _large(Fuzz *f) noexcept nogil:
    return (<uint64_t>1 << (_draw(f) % 64)) + _draw(f) % 3 - 1


cdef void _put(Fuzz *f, const void *data, size_t size) noexcept nogil:
    if f.at + size <= ROOM:
        memcpy(f.request + f.at, data, size)
        f.at += <uint32_t>size


cdef uint64_t _some_node(Fuzz *f, bint directory) noexcept nogil:
    cdef const Node *node
    cdef int _try
    for _try in range(6):
        if not f.node_count:
            break
        node = &f.nodes[_draw(f) % f.node_count]
        if node.directory == directory:
            return node.nodeid
    return abi.FUSE_ROOT_ID


cdef uint64_t _some_open(Fuzz *f, int table) noexcept nogil:
    """Return an fh; its nodeid becomes that of the request."""
    cdef fuse_in_header *h = <fuse_in_header *>f.request
    cdef const Opened *opened
    if not f.opened_count[table] or _draw(f) % 16 == 0:
        h.nodeid = _some_node(f, table == DIRECTORIES)
        f.unopened = True
        return 0 if f.tame or _draw(f) % 8 else _draw(f) % 4
    opened = &f.opened[table][_draw(f) % f.opened_count[table]]
    if not f.unopened:
        h.nodeid = opened.nodeid
    return opened.fh


cdef uint64_t _number(Fuzz *f, const Field *field) noexcept nogil:
    if field.kind == MASKED:
        return _draw(f) & field.mask
    if field.kind == COUNT:
        return 1 if f.tame else _draw(f) & 3
    if field.kind == MODE:
        return _draw(f) & field.mask | (0o700 if _draw(f) % 8 else 0)
    if field.kind == NODE:
        return _some_node(f, _draw(f) & 1)
    if field.kind == FILE:
        return _some_open(f, FILES)
    if field.kind == DIRECTORY:
        return _some_open(f, DIRECTORIES)
    if field.kind == OFFSET:
        return _draw(f) % 16384 if _draw(f) % 16 else _large(f)
    if field.kind == PLACE:
        return f.place if _draw(f) % 2 else 0
    if field.kind == SIZE:
        return _draw(f) % 4096 if _draw(f) % 32 else _large(f)
    if field.kind == COMMAND:
        return commands[_draw(f) % 5]
    f.data_length = _draw(f) % 64 if _draw(f) % 16 else _draw(f) % 5000
    if field.mask and _draw(f) % 4:  # the lengths that ioctl(2) has
        f.data_length = 4 if _draw(f) & 1 else 28
    return f.data_length


cdef void _append(Fuzz *f, const Field *field) noexcept nogil:
    cdef uint64_t number
    cdef uint64_t _index
    cdef uint64_t row[2]
    cdef const char *name
    cdef char filler = b"x"
    if field.kind == DATA:
        for _index in range(f.data_length):
            _put(f, &filler, 1)
    elif field.kind == NAME:
        name = names[_draw(f) % (8 if _draw(f) % 16 else 12)]
        _put(f, name, strlen(name) + 1)
    elif field.kind == XATTR:
        name = attributes[_draw(f) % 4]
        _put(f, name, strlen(name) + 1)
    elif field.kind == ROWS:
        row[0], row[1] = _draw(f) % (2 if f.tame else 4), 0
        _put(f, row, 8)
        for _index in range(row[0]):
            row[0], row[1] = _some_node(f, _draw(f) & 1), 1 if f.tame else _draw(f) % 3
            _put(f, row, sizeof(row))
    else:
        number = _number(f, field)
        _put(f, &number, field.size)


cdef void make(Fuzz *f) noexcept nogil:
    cdef fuse_in_header *h = <fuse_in_header *>f.request
    cdef int opcode = choices[_draw(f) % <uint64_t>choice_count]
    cdef const char *letter
    if f.node_count > MANY_NODES and _draw(f) & 1:
        opcode = abi.FUSE_FORGET
    elif f.opened_count[FILES] > MANY_OPEN and _draw(f) & 1:
        opcode = abi.FUSE_RELEASE
    elif f.opened_count[DIRECTORIES] > MANY_OPEN and _draw(f) & 1:
        opcode = abi.FUSE_RELEASEDIR
    letter = rows[opcode].schema
    memset(h, 0, sizeof(fuse_in_header))
    f.unique += 2
    h.opcode = <uint32_t>opcode
    h.unique = f.unique
    h.nodeid = _some_node(f, letter[0] != 0 and letter[strlen(letter) - 1] == b"N")
    h.uid = ids[_draw(f) % 4]
    h.gid = ids[_draw(f) % 4]
    f.at = HEADER
    f.unopened = False
    while letter[0]:
        _append(f, &fields[<uint8_t>letter[0]])
        letter += 1
    f.received = h.len = f.at
    if _draw(f) % 4 == 0 and not f.tame:
        _damage(f, h)
    if h.opcode == abi.FUSE_INIT:  # Python's
        h.opcode = abi.FUSE_BMAP


cdef void _damage(Fuzz *f, fuse_in_header *h) noexcept nogil:
    """Change the request in one of several ways; `len` mostly stays right."""
    cdef uint64_t way = _draw(f) % 10
    cdef uint64_t number = _large(f)
    cdef uint32_t body = f.at - HEADER
    cdef uint32_t at
    cdef int _time
    if way < 3 and body:
        for _time in range(1 + <int>(_draw(f) % 4)):
            f.request[HEADER + _draw(f) % body] = <char>_draw(f)
    elif way < 5 and body >= 8:
        memcpy(f.request + HEADER + _draw(f) % (body // 4 - 1) * 4, &number, 4 + 4 * (way & 1))
    elif way == 5:
        f.received = h.len = HEADER + <uint32_t>_draw(f) % (body + 1)
    elif way == 6:
        at = f.at
        for at in range(at, min(at + 1 + <uint32_t>_draw(f) % 40, <uint32_t>ROOM)):
            f.request[at] = <char>_draw(f)
        f.received = h.len = at + 1
    elif way == 7:
        h.total_extlen = <uint16_t>(_draw(f) % 4 if _draw(f) & 1 else _draw(f))
    elif way == 8:
        if _draw(f) & 1:
            h.len = <uint32_t>number
        else:
            f.received = <uint32_t>_draw(f) % (f.at + 8)
    elif number & 1:
        h.opcode = _draw(f) % OPCODES if number & 2 else <uint32_t>number
    else:
        h.nodeid = number


# The table


cdef void _field(char letter, int size, int kind, uint32_t mask=0) noexcept:
    fields[<uint8_t>letter] = Field(<uint8_t>size, <uint8_t>kind, mask)


cdef void _fill_fields() noexcept:
    _field(b".", 4, MASKED)
    _field(b":", 8, MASKED)
    _field(b"b", 4, MASKED, 3)  # small flags
    _field(b"c", 8, COUNT)
    _field(b"w", 8, MASKED, 3)  # a lock's owner
    _field(b"l", 4, MASKED, 3)  # F_RDLCK, F_WRLCK, F_UNLCK
    _field(b"r", 4, MASKED, 7)  # RENAME_*
    _field(b"W", 4, MASKED, 7)  # SEEK_*
    _field(b"v", 4, MASKED, 0xFFF)  # FATTR_*
    _field(b"F", 4, MASKED, 3)  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
    _field(b"f", 4, MASKED, 0o147703)  # O_*, without O_DIRECTORY
    _field(b"m", 4, MODE, 0o7777)
    _field(b"M", 4, MODE, 0o117777)  # with a type: none, regular, fifo
    _field(b"u", 4, MASKED, 0o22)
    _field(b"i", 4, MASKED, 3)  # an id
    _field(b"k", 4, MASKED, 0x1FFFFFFF)  # nanoseconds
    _field(b"t", 8, MASKED, 0x7FFFFFFF)  # seconds
    _field(b"n", 8, NODE)
    _field(b"h", 8, FILE)
    _field(b"d", 8, DIRECTORY)
    _field(b"o", 8, OFFSET)
    _field(b"O", 8, PLACE)
    _field(b"s", 4, SIZE)
    _field(b"S", 8, SIZE)
    _field(b"Z", 4, LENGTH)
    _field(b"z", 4, LENGTH, 1)
    _field(b"C", 4, COMMAND)
    _field(b"D", 0, DATA)
    _field(b"N", 0, NAME)
    _field(b"X", 0, XATTR)
    _field(b"R", 0, ROWS)


def _row(
    int opcode, const char *schema, int weight, size_t fixed, int change=NOTHING,
    size_t least=0, size_t most=0, int limit_at=NO_LIMIT
):
    """Add a row; `schema` is a constant of this module, which stays."""
    global choice_count
    cdef int _time
    rows[opcode] = Row(
        schema, <uint8_t>fixed, <uint8_t>change, <uint8_t>limit_at,
        <uint32_t>least, <uint32_t>max(least, most),
    )
    for _time in range(weight):
        choices[choice_count] = <uint8_t>opcode
        choice_count += 1


cdef void _fill_names() noexcept:
    cdef size_t entry = sizeof(abi.fuse_entry_out)
    _row(abi.FUSE_LOOKUP, b"N", 20, 0, ENTRY, entry)
    _row(abi.FUSE_FORGET, b"c", 14, 8, FORGOTTEN)
    _row(abi.FUSE_BATCH_FORGET, b"R", 3, 8, FORGOTTEN_ROWS)
    _row(abi.FUSE_MKNOD, b"Miu.N", 5, 16, ENTRY, entry)
    _row(abi.FUSE_MKDIR, b"muN", 5, 8, ENTRY, entry)
    _row(abi.FUSE_SYMLINK, b"NN", 4, 0, ENTRY, entry)
    _row(abi.FUSE_LINK, b"nN", 4, 8, ENTRY, entry)
    _row(abi.FUSE_UNLINK, b"N", 8, 0)
    _row(abi.FUSE_RMDIR, b"N", 4, 0)
    _row(abi.FUSE_RENAME, b"nNN", 4, 8)
    _row(abi.FUSE_RENAME2, b"nr.NN", 4, 16)
    _row(abi.FUSE_READLINK, b"", 2, 0, most=4095)
    _row(abi.FUSE_CREATE, b"fmu.N", 5, 16, CREATED, entry + 16)
    _row(abi.FUSE_TMPFILE, b"fmu.N", 2, 16, CREATED, entry + 16)


cdef void _fill_inodes() noexcept:
    cdef size_t attr = sizeof(abi.fuse_attr_out)
    _row(abi.FUSE_GETATTR, b"b.h", 5, 16, least=attr)
    _row(abi.FUSE_SETATTR, b"v.howtttkkkm.ii.", 6, 88, least=attr)
    _row(abi.FUSE_STATX, b"b.hbb", 2, 24, least=sizeof(abi.fuse_statx_out))
    _row(abi.FUSE_STATFS, b"", 1, 0, least=sizeof(abi.fuse_statfs_out))
    _row(abi.FUSE_ACCESS, b"r.", 2, 8)
    _row(abi.FUSE_SYNCFS, b":", 1, 8)
    _row(abi.FUSE_SETXATTR, b"Zb..XD", 3, 16)
    _row(abi.FUSE_GETXATTR, b"s.X", 3, 8, limit_at=0)
    _row(abi.FUSE_LISTXATTR, b"s.", 2, 8, limit_at=0)
    _row(abi.FUSE_REMOVEXATTR, b"X", 2, 0)
    _row(abi.FUSE_DESTROY, b"", 1, 0)
    _row(abi.FUSE_INTERRUPT, b"w", 1, 8, SILENT)
    _row(abi.FUSE_NOTIFY_REPLY, b":os.::", 1, 40, SILENT)


cdef void _fill_files() noexcept:
    cdef size_t opened = sizeof(abi.fuse_open_out)
    cdef size_t lock = sizeof(abi.fuse_lk_out)
    _row(abi.FUSE_OPEN, b"f.", 8, 8, OPENED, opened)
    _row(abi.FUSE_READ, b"hos.wf.", 8, 40, limit_at=16)
    _row(abi.FUSE_WRITE, b"hoZ.wf.D", 6, 40, WRITTEN, 8)
    _row(abi.FUSE_FLUSH, b"h..w", 2, 24)
    _row(abi.FUSE_FSYNC, b"hb.", 1, 16)
    _row(abi.FUSE_RELEASE, b"hfbw", 7, 24, RELEASED)
    _row(abi.FUSE_FALLOCATE, b"hoSF.", 3, 32)
    _row(abi.FUSE_LSEEK, b"hoW.", 3, 24, least=8)
    _row(abi.FUSE_COPY_FILE_RANGE, b"honhoS:", 2, 56, least=8)
    _row(abi.FUSE_COPY_FILE_RANGE_64, b"honhoS:", 2, 56, least=8)
    _row(abi.FUSE_IOCTL, b"h.C:zsD", 3, 32, least=16, most=16 + 28)
    _row(abi.FUSE_GETLK, b"hwool.b.", 2, 48, least=lock)
    _row(abi.FUSE_SETLK, b"hwool.b.", 3, 48)
    _row(abi.FUSE_SETLKW, b"hwool.b.", 1, 48)
    _row(abi.FUSE_OPENDIR, b"f.", 4, 8, OPENED_DIR, opened)
    _row(abi.FUSE_READDIR, b"dOs.wf.", 4, 40, DIRENTS, limit_at=16)
    _row(abi.FUSE_READDIRPLUS, b"dOs.wf.", 4, 40, PLUS, limit_at=16)
    _row(abi.FUSE_FSYNCDIR, b"db.", 1, 16)
    _row(abi.FUSE_RELEASEDIR, b"dfbw", 4, 24, RELEASED_DIR)


cdef void _fill_texts() noexcept:
    commands[0], commands[1] = <uint32_t>FS_IOC_GETFLAGS, <uint32_t>FS_IOC_SETFLAGS
    commands[2], commands[3] = <uint32_t>FS_IOC_FSGETXATTR, <uint32_t>FS_IOC_FSSETXATTR
    commands[4] = <uint32_t>TCGETS
    ids[0], ids[1], ids[2], ids[3] = 0, 1000, 1001, abi.FUSE_INVALID_UIDGID
    names[0], names[1], names[2], names[3] = b"a", b"b", b"c", b"d"
    names[4], names[5], names[6], names[7] = b"e", b"f", b"g", b"h"
    names[8], names[9], names[10], names[11] = b".", b"..", b"", b"../a"
    attributes[0], attributes[1], attributes[2] = b"user.a", b"user.b", b"trusted.c"
    attributes[3] = b"system.posix_acl_access"


_fill_fields()
_fill_names()
_fill_inodes()
_fill_files()
_fill_texts()
