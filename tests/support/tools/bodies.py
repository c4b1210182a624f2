"""A well-formed request of every opcode that has a handler."""

import fcntl
import os
import stat

from tests.support.fakes.kernel import text
from tests.support.tools import abi, wire
from tests.support.tools.host_calls import FS_IOC_GETFLAGS

READ = wire.READ_IN
# The requests without their header, by the name of the opcode.
BODIES = {
    "LOOKUP": text(b"name"),
    "FORGET": wire.FORGET_IN.pack(1),
    "GETATTR": wire.GETATTR_IN.pack(0, 0),
    "SETATTR": wire.SETATTR_IN.pack(*[0] * 13),
    "READLINK": b"",
    "SYMLINK": text(b"name", b"target"),
    "MKNOD": wire.MKNOD_IN.pack(stat.S_IFREG | 0o600, 0, 0) + text(b"name"),
    "MKDIR": wire.MKDIR_IN.pack(0o700, 0) + text(b"name"),
    "UNLINK": text(b"name"),
    "RMDIR": text(b"name"),
    "RENAME": wire.RENAME_IN.pack(1) + text(b"name", b"new"),
    "RENAME2": wire.RENAME2_IN.pack(1, 0) + text(b"name", b"new"),
    "LINK": wire.LINK_IN.pack(1) + text(b"name"),
    "OPEN": wire.OPEN_IN.pack(os.O_RDWR, 0),
    "CREATE": wire.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0) + text(b"name"),
    "READ": READ.pack(1, 0, 10, 0, 0, 0),
    "WRITE": wire.WRITE_IN.pack(1, 0, 4, 0, 0, 0) + b"data",
    "STATFS": b"",
    "RELEASE": wire.RELEASE_IN.pack(1, 0, 0, 0),
    "FSYNC": wire.FSYNC_IN.pack(1, 0),
    "FLUSH": wire.FLUSH_IN.pack(1, 0),
    "SETXATTR": wire.SETXATTR_IN.pack(5, 0, 0) + text(b"user.a") + b"value",
    "GETXATTR": wire.GETXATTR_IN.pack(100) + text(b"user.a"),
    "LISTXATTR": wire.GETXATTR_IN.pack(100),
    "REMOVEXATTR": text(b"user.a"),
    "INIT": wire.INIT_IN.pack(abi.MAJOR, abi.MINOR, 0, 0xFFFF_FFFF, 0xFFFF_FFFF),
    "OPENDIR": wire.OPEN_IN.pack(0, 0),
    "READDIR": READ.pack(1, 0, 4096, 0, 0, 0),
    "READDIRPLUS": READ.pack(1, 0, 4096, 0, 0, 0),
    "RELEASEDIR": wire.RELEASE_IN.pack(1, 0, 0, 0),
    "FSYNCDIR": wire.FSYNC_IN.pack(1, 0),
    "ACCESS": wire.ACCESS_IN.pack(os.R_OK),
    "INTERRUPT": wire.INTERRUPT_IN.pack(2),
    "DESTROY": b"",
    "NOTIFY_REPLY": wire.NOTIFY_RETRIEVE_IN.pack(0, 0),
    "GETLK": wire.LK_IN.pack(1, 7, 0, 9, fcntl.F_WRLCK, 5, 0),
    "SETLK": wire.LK_IN.pack(1, 7, 0, 9, fcntl.F_WRLCK, 5, 0),
    "SETLKW": wire.LK_IN.pack(1, 7, 0, 9, fcntl.F_WRLCK, 5, 0),
    "IOCTL": wire.IOCTL_IN.pack(1, 0, FS_IOC_GETFLAGS, 0, 0, 4),
    "FALLOCATE": wire.FALLOCATE_IN.pack(1, 0, 10, 0),
    "LSEEK": wire.LSEEK_IN.pack(1, 0, os.SEEK_DATA),
    "COPY_FILE_RANGE": wire.COPY_FILE_RANGE_IN.pack(1, 0, 2, 1, 10, 2, 0),
    "COPY_FILE_RANGE_64": wire.COPY_FILE_RANGE_IN.pack(1, 0, 2, 1, 10, 2, 0),
    "SYNCFS": bytes(wire.SYNCFS_IN.size),
    "TMPFILE": wire.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0) + text(b"/"),
    "STATX": wire.STATX_IN.pack(0, 0, 0, 0),
    "BATCH_FORGET": wire.BATCH_FORGET_IN.pack(1) + wire.FORGET_ONE.pack(2, 1),
}
WITHOUT_ANSWER = {"FORGET", "BATCH_FORGET", "INTERRUPT", "NOTIFY_REPLY"}
WITHOUT_OPERATION = {"INIT", "INTERRUPT", "DESTROY", "NOTIFY_REPLY"}
