"""Inodes and open files in flat memory: one MAP_SHARED mapping, no pointers inside.

A successor that maps the same memory can go on. The hash can be rebuilt from the slots.
Lookup counts change in two functions, `grant` and `forget`.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef enum:
    ROOT_INDEX = 1
    NONE = 0  # an index that names no slot


# 64 bytes. A slot stays while lookups or opens are above 0. nodeid = generation << 32 | index;
# the root has nodeid 1.
cdef struct Inode:
    uint64_t ino  # st_ino on the host
    uint64_t lookups
    uint64_t shown_ino  # st_ino that users see
    uint32_t generation
    uint32_t next_free  # the free list
    int32_t fd  # O_PATH descriptor, or -1: held by file handle
    uint32_t file_handle  # index of a FileHandle slot, or NONE
    uint32_t place  # index of the mount and device
    uint32_t opens  # open files on this inode
    int32_t backing_id  # FUSE passthrough, 0: none
    uint16_t type  # st_mode & S_IFMT
    uint16_t flags


# 32 bytes; fh = index, from 1.
cdef struct OpenFile:
    int32_t fd  # -1: free
    uint32_t inode  # index
    uint64_t nodeid
    uint32_t flags  # open(2) flags that requests follow
    uint32_t next_free
    uint32_t kind  # regular, direct, directory
    uint32_t generation


cdef struct Tables:
    pass  # laid out in tables.pyx's header; only its functions look inside
