"""Changes of the tables for requests without a reply, taken back after a death."""

from passthrough.core.abi cimport fuse_in_header
from passthrough.core.journal cimport Journal
from passthrough.core.layout cimport Tables


cdef void settle(Tables *t, Journal *j, const fuse_in_header *h) noexcept nogil
cdef void undo(Tables *t, Journal *j, const fuse_in_header *h) noexcept nogil
cdef void drop_unopened(Tables *t) noexcept nogil
