"""The effective options of a volume as the request path reads them: numbers, read once."""

import errno
import resource
import sys

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from passthrough.native.layout cimport DIRECTORIES, FILES, MAX_HANDLE, Limits
from passthrough.native.libc cimport fstatfs, struct_statfs
from passthrough.native.state cimport (
    LINKS_ROOM, MAX_RANGES, SQUASH_ALL, SQUASH_NONE, SQUASH_ROOT, IdMap, Options, Timeout, Volume,
)
from passthrough.options.choices import (
    CachePolicy, InodeFileHandles, SessionKind, Squash, Submounts,
)
from passthrough.options.effective import adds_noatime

cdef enum:
    # Address space for so many inodes; memory only for those that there are.
    MAX_INODES = 1 << 25
    MAX_OPENS = 1 << 20
    MAX_PLACES = 1 << 14

# Half of the descriptors are for inodes, the other half for the files and directories that users
# have open, and for a few dozen of the worker's own.
INODES_SHARE = 2
# A part of the latter half is for removed files that are held by handle, until FORGET comes.
PINS_SHARE = 8
NS_PER_S = 1_000_000_000
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


cdef configure(Volume *v, object config, int source_fd):
    """Fill in the options; those that INIT decides come later, by Core.agree.

    Raises:
        OSError: as fstatfs(2) reports it.
        ValueError: a map has more ranges than the kernel takes of any.
    """
    cdef Options *o = &v.options
    cdef struct_statfs found
    memset(o, 0, sizeof(Options))
    _set(&o.file_entry, config.entry_timeout)
    _set(&o.file_attr, config.attr_timeout)
    _set(&o.dir_entry, config.dir_entry_timeout)
    _set(&o.dir_attr, config.dir_attr_timeout)
    _set(&o.negative, config.negative_timeout)
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
    o.libfuse = config.session is SessionKind.LIBFUSE
    _map(&v.users, config.map_uid)
    _map(&v.groups, config.map_gid)
    v.anonymous.uid = config.anon_uid
    v.anonymous.gid = config.anon_gid
    if fstatfs(source_fd, &found) < 0:
        raise OSError(errno.EIO, "statfs(2) of the source failed")
    o.source_type = <uint32_t>found.f_type
    o.statx_first = o.source_type in LOCAL


cdef _set(Timeout *timeout, double seconds):
    """Set a timeout; a day is the longest that an option can give."""
    timeout.seconds = <uint64_t>seconds
    timeout.nanoseconds = <uint32_t>((seconds - <uint64_t>seconds) * NS_PER_S)


cdef _map(IdMap *ids, ranges):
    if len(ranges) > MAX_RANGES:
        raise ValueError(f"a map of ids has {len(ranges)} ranges, more than {MAX_RANGES}")
    ids.count = len(ranges)
    for index, (inside, outside, count) in enumerate(ranges):
        ids.ranges[index].inside = inside
        ids.ranges[index].outside = outside
        ids.ranges[index].count = count


cdef limits_of(Limits *limits, object config, bint handles):
    """Fill in how large the tables may become; `handles`: the source has file handles."""
    nofile, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if nofile == resource.RLIM_INFINITY:
        nofile = sys.maxsize
    memset(limits, 0, sizeof(Limits))
    limits.inodes = MAX_INODES
    limits.opens[FILES] = limits.opens[DIRECTORIES] = MAX_OPENS
    limits.places = MAX_PLACES
    limits.pins = max(nofile // PINS_SHARE, 1)
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
