"""Attributes of inodes: in replies, and asked for."""

from libc.stdint cimport uint32_t

from passthrough.core.abi cimport fuse_entry_out, fuse_in_header
from passthrough.core.grants cimport Entry
from passthrough.core.layout cimport Inode
from passthrough.core.libc cimport struct_stat
from passthrough.core.state cimport Thread


cdef void fill_entry(const Thread *t, const Entry *entry, fuse_entry_out *out) noexcept nogil
cdef bint fill_absent(const Thread *t, fuse_entry_out *out) noexcept nogil
cdef int reply_stat(Thread *t, const Inode *inode, const struct_stat *st) noexcept nogil

cdef int do_getattr(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_statx(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_statfs(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_access(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_syncfs(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
