"""The numbers of the kernel's FUSE protocol, linux/fuse.h: those of the program, and others."""

import enum

from passthrough.session.abi import (
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FSYNC_FDATASYNC,
    LEAST_MINOR,
    MAJOR,
    MINOR,
    ROOT_ID,
    Init,
    Opcode,
)

__all__ = (
    "FOPEN_DIRECT_IO",
    "FOPEN_KEEP_CACHE",
    "FSYNC_FDATASYNC",
    "LEAST_MINOR",
    "MAJOR",
    "MINOR",
    "ROOT_ID",
    "Init",
    "Opcode",
)
"""The names of other modules that this one has."""

# ioctl(2) on /dev/fuse: struct fuse_backing_map in, an id out; an id in.
DEV_IOC_BACKING_OPEN = 0x4010_E501
DEV_IOC_BACKING_CLOSE = 0x4004_E502
# Bit 63 of `unique` marks a request that the kernel sends again, FUSE_UNIQUE_RESEND.
UNIQUE_RESEND = 1 << 63


class Notification(enum.IntEnum):
    """A message of the session that answers no request."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7
    INC_EPOCH = 8
    PRUNE = 9


# The fields of SETATTR that are valid.
FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_LOCKOWNER = 1 << 9
FATTR_CTIME = 1 << 10
FATTR_KILL_SUIDGID = 1 << 11

# Flags of a reply to OPEN, OPENDIR or CREATE.
FOPEN_NONSEEKABLE = 1 << 2
FOPEN_CACHE_DIR = 1 << 3
FOPEN_STREAM = 1 << 4
FOPEN_NOFLUSH = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6
FOPEN_PASSTHROUGH = 1 << 7

# Flags of single requests.
GETATTR_FH = 1 << 0
OPEN_KILL_SUIDGID = 1 << 0
WRITE_CACHE = 1 << 0
WRITE_LOCKOWNER = 1 << 1
WRITE_KILL_SUIDGID = 1 << 2
READ_LOCKOWNER = 1 << 1
RELEASE_FLUSH = 1 << 0
RELEASE_FLOCK_UNLOCK = 1 << 1
SETXATTR_ACL_KILL_SGID = 1 << 0
LK_FLOCK = 1 << 0
IOCTL_DIR = 1 << 4
# Flags of an inode in a reply.
ATTR_SUBMOUNT = 1 << 0
# Of INVAL_ENTRY: the name stays, and is looked up again before it is used.
EXPIRE_ONLY = 1 << 0

# The type of an extension at a request's end: groups. Lower ones count security contexts.
EXT_GROUPS = 32
