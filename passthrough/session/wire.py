"""The structures of the kernel's FUSE protocol, linux/fuse.h, that Python packs and unpacks.

INIT is answered in Python, and the session `libfuse` makes requests for the core and unpacks its
replies. Numbers are in the machine's byte order and have the offsets that C gives them, with the
padding spelled out.
"""

from struct import Struct
from typing import Final

# major, minor, max_readahead, flags, flags2; 11 words for later
INIT_IN: Final = Struct("=IIIII44x")
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
# max_pages, map_alignment, flags2, max_stack_depth, request_timeout; 11 half-words for later
INIT_OUT: Final = Struct("=IIIIHHIIHHIIH22x")

BATCH_FORGET_IN: Final = Struct("=I4x")  # count
GETATTR_IN: Final = Struct("=I4xQ")  # getattr_flags, fh
MKNOD_IN: Final = Struct("=III4x")  # mode, rdev, umask
MKDIR_IN: Final = Struct("=II")  # mode, umask
RENAME2_IN: Final = Struct("=QI4x")  # newdir, flags
LINK_IN: Final = Struct("=Q")  # oldnodeid
OPEN_IN: Final = Struct("=II")  # flags, open_flags
CREATE_IN: Final = Struct("=IIII")  # flags, mode, umask, open_flags
RELEASE_IN: Final = Struct("=QIIQ")  # fh, flags, release_flags, lock_owner
FLUSH_IN: Final = Struct("=Q8xQ")  # fh, lock_owner
READ_IN: Final = Struct("=QQIIQI4x")  # fh, offset, size, read_flags, lock_owner, flags
WRITE_IN: Final = Struct("=QQIIQI4x")  # fh, offset, size, write_flags, lock_owner, flags
FSYNC_IN: Final = Struct("=QI4x")  # fh, fsync_flags
SETXATTR_IN: Final = Struct("=III4x")  # size, flags, setxattr_flags
GETXATTR_IN: Final = Struct("=I4x")  # size
ACCESS_IN: Final = Struct("=I4x")  # mask

# ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize,
# flags
_ATTR: Final = "QQQqqqIIIIIIIIII"
# nodeid, generation, entry_valid, attr_valid, their nanoseconds, attr
ENTRY_OUT: Final = Struct("=QQQQII" + _ATTR)
OPEN_OUT: Final = Struct("=QIi")  # fh, open_flags, backing_id
WRITE_OUT: Final = Struct("=I4x")  # size
# blocks, bfree, bavail, files, ffree, bsize, namelen, frsize
STATFS_OUT: Final = Struct("=QQQQQIII28x")
