"""Attributes of inodes: in replies, and asked for."""

from libc.stdint cimport uint32_t, uint64_t

from passthrough.native.abi cimport fuse_attr, fuse_entry_out, fuse_in_header
from passthrough.native.grants cimport Entry
from passthrough.native.layout cimport Inode
from passthrough.native.libc cimport struct_stat
from passthrough.native.state cimport Thread, Volume


cdef void fill_attr(
    const Thread *t, const struct_stat *st, uint64_t shown_ino, fuse_attr *out
) noexcept nogil
cdef void fill_entry(const Thread *t, const Entry *entry, fuse_entry_out *out) noexcept nogil
cdef void fill_absent(const Thread *t, fuse_entry_out *out) noexcept nogil
cdef int reply_attr(Thread *t, const Inode *inode) noexcept nogil
cdef int reply_stat(Thread *t, const Inode *inode, const struct_stat *st) noexcept nogil
cdef int may_access(const Volume *v, int fd, int mask) noexcept nogil

cdef int do_getattr(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_statx(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_statfs(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_access(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
cdef int do_syncfs(Thread *t, const fuse_in_header *h, const char *arg, uint32_t n) noexcept nogil
