"""Requests without end, damaged or not; probe_fuzz.pyx sends them."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from passthrough.core.device cimport Head
from passthrough.core.state cimport Thread

cdef enum:
    HEADER = 40
    ROOM = 1 << 17  # bytes of a request
    NODES = 1 << 16
    MAX_OPEN = 4096
    OPCODES = 64
    NO_LIMIT = 255


# The changes of a reply without an error, beside its length.
cdef enum Change:
    NOTHING, ENTRY, CREATED, OPENED, OPENED_DIR, RELEASED, RELEASED_DIR, WRITTEN, DIRENTS, PLUS
    FORGOTTEN, FORGOTTEN_ROWS, SILENT


cdef struct Row:
    const char *schema  # NULL: the core has no such opcode
    uint8_t fixed
    uint8_t change
    uint8_t limit_at  # where a request says how long the body of the reply may be
    uint32_t least
    uint32_t most


cdef struct Node:
    uint64_t nodeid
    uint64_t lookups
    bint directory


cdef struct Opened:
    uint64_t fh
    uint64_t nodeid


cdef struct Fuzz:
    Thread *t
    Head *head
    int memory_fd
    int number
    uint64_t count
    uint64_t random
    uint64_t unique
    char *request
    uint32_t received
    uint32_t at
    uint32_t data_length
    uint64_t place  # an offset of a listing
    bint unopened  # the request has an fh 0, which is that of its nodeid
    uint32_t node_count
    uint32_t opened_count[2]
    Opened opened[2][MAX_OPEN]
    Node nodes[NODES]
    uint32_t node_at[NODES]  # by the index in a nodeid; 0: none
    uint64_t done[OPCODES]  # replies without an error
    int wrong
    bint tame  # other threads send requests, too: nothing is damaged, and nothing of theirs named


cdef const Row *row_of(uint32_t opcode) noexcept nogil
cdef void make(Fuzz *f) noexcept nogil
