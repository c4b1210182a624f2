"""The effective options of a volume as the request path reads them: numbers, read once."""

import errno
import os
import resource
import sys

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc
from libc.string cimport memset

from passthrough.core.layout cimport (
    DIRECTORIES, FILES, MAX_HANDLE, ROOT_INDEX, Found, Limits,
)
from passthrough.core.libc cimport S_IFMT, close, fstat, fstatfs, struct_stat, struct_statfs
from passthrough.core.memory cimport adopt, create
from passthrough.core.state cimport (
    LINKS_ROOM, MAX_RANGES, SQUASH_ALL, SQUASH_NONE, SQUASH_ROOT, IdMap, Options, Volume,
)
from passthrough.core.timeouts cimport live_words
from passthrough.linux import filehandles, syscalls
from passthrough.options.choices import (
    CachePolicy, InodeFileHandles, SessionKind, Squash, Submounts,
)
from passthrough.options.effective import adds_noatime
from passthrough.options.timeouts import timeouts, words

cdef enum:
    # Address space for so many inodes; memory only for those that there are.
    MAX_INODES = 1 << 25
    MAX_OPENS = 1 << 20
    MAX_PLACES = 1 << 14

# Half of the descriptors are for inodes, the other half for the files and directories that users
# have open, and for those of the worker's own. One user may have all open that users may have: what
# the worker keeps serves the requests of others.
INODES_SHARE = 2
# A part of the latter half is for removed files that are held by handle, until FORGET comes.
PINS_SHARE = 8
OWN_SHARE = 4
MOST_OWN = 512
LEAST_OPENS = 64
SQUASHES = {
    Squash.NONE: SQUASH_NONE,
    Squash.ROOT: SQUASH_ROOT,
    Squash.ALL: SQUASH_ALL,
}
# linux/magic.h. On these a lookup by statx(2) asks no server, and statx(2) has what fstat(2) has.
LOCAL = frozenset({
    0xEF53,  # ext2, ext3, ext4
    0x58465342,  # xfs
    0x9123683E,  # btrfs
    0xF2F52010,  # f2fs
    0x01021994,  # tmpfs
    0x2FC12FC1,  # zfs
    0xCA451A4E,  # bcachefs
})
# On these, close(2) does nothing before the last descriptor of an open file: their file operations
# have no `flush`. NFS, SMB, FUSE and overlayfs have one.
SILENT_CLOSE = frozenset({0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x01021994})
# xfs, btrfs and tmpfs keep no blocks for a user; ext2, ext3, ext4 and f2fs do.
WITHOUT_RESERVE = frozenset({0x58465342, 0x9123683E, 0x01021994})


cdef configure(Volume *v, object config, int source_fd):
    """Fill in the options; those that INIT decides come later, by Core.agree.

    Raises:
        OSError: as fstatfs(2) reports it.
        ValueError: a map has more ranges than the kernel takes of any.
    """
    cdef Options *o = &v.options
    cdef struct_statfs found
    memset(o, 0, sizeof(Options))
    for kind, word in enumerate(words(timeouts(config))):
        v.timeouts.given[kind] = word
    v.timeouts.live = live_words()
    o.readonly = config.readonly
    o.seal_size = config.seal_size
    o.hide_submounts = config.submounts is Submounts.HIDE
    o.xattr = config.xattr
    o.posix_acl = config.posix_acl
    o.no_open = config.no_open
    o.no_opendir = config.no_opendir
    o.no_readdir = config.no_readdir
    o.keep_pages = config.cache is CachePolicy.ALWAYS
    o.refresh_on_open = config.cache is CachePolicy.METADATA
    o.allow_direct_io = config.allow_direct_io
    o.writeback = config.writeback
    o.noatime = adds_noatime(config)
    o.squash = SQUASHES[config.squash]
    o.restricted = bool(config.map_uid or config.map_gid or o.squash)
    o.may_lack_owners = bool(config.map_uid)
    o.shows_owner = config.owner is not None
    if o.shows_owner:
        v.shown.uid, v.shown.gid = config.owner
    o.libfuse = config.session is SessionKind.LIBFUSE
    _map(&v.users, config.map_uid)
    _map(&v.groups, config.map_gid)
    v.anonymous.uid = config.anon_uid
    v.anonymous.gid = config.anon_gid
    if fstatfs(source_fd, &found) < 0:
        raise OSError(errno.EIO, "statfs(2) of the source failed")
    o.source_type = <uint32_t>found.f_type
    o.statx_first = o.source_type in LOCAL
    o.silent_close = o.source_type in SILENT_CLOSE
    o.reserves = o.source_type not in WITHOUT_RESERVE


cdef _map(IdMap *ids, ranges):
    if len(ranges) > MAX_RANGES:
        raise ValueError(f"a map of ids has {len(ranges)} ranges, more than {MAX_RANGES}")
    ids.count = len(ranges)
    for index, (inside, outside, count) in enumerate(ranges):
        ids.ranges[index].inside = inside
        ids.ranges[index].outside = outside
        ids.ranges[index].count = count


cdef _limits_of(Limits *limits, object config, bint handles):
    """Fill in how large the tables may become; `handles`: the source has file handles."""
    nofile, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if nofile == resource.RLIM_INFINITY:
        nofile = sys.maxsize
    memset(limits, 0, sizeof(Limits))
    limits.inodes = MAX_INODES
    limits.opens[FILES] = limits.opens[DIRECTORIES] = MAX_OPENS
    limits.places = MAX_PLACES
    limits.pins = max(nofile // PINS_SHARE, 1)
    own = min(nofile // OWN_SHARE, MOST_OWN)
    limits.opens_in_all = min(max(nofile - nofile // INODES_SHARE - own, LEAST_OPENS), MAX_OPENS)
    limits.handle_bytes = MAX_HANDLE
    limits.first_place = 1 if config.use_host_ino else 0
    limits.budget = {
        InodeFileHandles.NEVER: sys.maxsize,
        InodeFileHandles.PREFER: nofile // INODES_SHARE,
        InodeFileHandles.MANDATORY: 0,
    }[config.inode_file_handles]


cdef set_links(Volume *v, bytes directory):
    """Set the directory of links to descriptors, which ends with a slash or is empty."""
    if len(directory) >= LINKS_ROOM:
        raise ValueError("the directory of links is too long")
    for index, character in enumerate(directory + b"\0"):
        v.links[index] = <char>character


cdef make_tables(Volume *v, object config, int source_fd):
    """Make the tables of the directory `source_fd`, which they then own.

    Raises:
        OSError: the directory cannot be looked at, or memory has run out.
    """
    cdef Limits limits
    cdef Found root
    cdef struct_stat st
    cdef int error = 0
    cdef int mount_fd = _open_mount(config, source_fd)
    if fstat(source_fd, &st) < 0:
        raise OSError(errno.EIO, "fstat(2) of the source failed")
    memset(&root, 0, sizeof(root))
    root.ino, root.device, root.fd = st.st_ino, st.st_dev, source_fd
    root.type = <unsigned short>(st.st_mode & S_IFMT)
    _limits_of(&limits, config, mount_fd >= 0)
    v.tables = create(&limits, syscalls.mount_id(source_fd), mount_fd, &root, &error)
    if v.tables == NULL:
        if mount_fd >= 0:
            close(mount_fd)
        raise OSError(error, os.strerror(error))


cdef int adopt_tables(Volume *v, int tables_fd) except? -1:
    """Map the tables of another program; return the directory that it served.

    Raises:
        OSError: EPROTO, they are no tables of this version.
    """
    cdef int error = 0
    v.tables = adopt(tables_fd, &error)
    if v.tables == NULL:
        raise OSError(error, os.strerror(error))
    return v.tables.inodes[ROOT_INDEX].fd


def _open_mount(config, source_fd):
    """Return a descriptor by which file handles of the source are opened, or -1."""
    if config.inode_file_handles is InodeFileHandles.NEVER:
        return -1
    try:
        return filehandles.open_mount(source_fd)
    except OSError:  # options/effective.py has said why
        return -1


cdef int *array_of(numbers) except NULL:
    """Return memory with these numbers, for the caller to free."""
    cdef int *array = <int *>calloc(len(numbers) + 1, sizeof(int))
    if array == NULL:
        raise MemoryError
    for index, number in enumerate(numbers):
        array[index] = number
    return array
