"""The structures of the kernel's FUSE protocol, linux/fuse.h, for requests and replies of tests.

Numbers are in the machine's byte order and have the offsets that C gives them, with the padding
spelled out.
"""

from collections.abc import Mapping
from struct import Struct

from passthrough.session.abi import Opcode

# len, opcode, unique, nodeid, uid, gid, pid, total_extlen in units of 8 bytes
IN_HEADER = Struct("=IIQQIIIHxx")
# len, error (0, a negative errno, or the code of a notification), unique
OUT_HEADER = Struct("=IiQ")

# major, minor, max_readahead, flags, flags2; 11 words for later
INIT_IN = Struct("=IIIII44x")
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
# max_pages, map_alignment, flags2, max_stack_depth, request_timeout; 11 half-words for later
INIT_OUT = Struct("=IIIIHHIIHHIIH22x")

FORGET_IN = Struct("=Q")  # nlookup
FORGET_ONE = Struct("=QQ")  # nodeid, nlookup
BATCH_FORGET_IN = Struct("=I4x")  # count
GETATTR_IN = Struct("=I4xQ")  # getattr_flags, fh
# valid, fh, size, lock_owner, atime, mtime, ctime, their nanoseconds, mode, uid, gid
SETATTR_IN = Struct("=I4xQQQqqqIIII4xII4x")
MKNOD_IN = Struct("=III4x")  # mode, rdev, umask
MKDIR_IN = Struct("=II")  # mode, umask
RENAME_IN = Struct("=Q")  # newdir
RENAME2_IN = Struct("=QI4x")  # newdir, flags
LINK_IN = Struct("=Q")  # oldnodeid
OPEN_IN = Struct("=II")  # flags, open_flags
CREATE_IN = Struct("=IIII")  # flags, mode, umask, open_flags
RELEASE_IN = Struct("=QIIQ")  # fh, flags, release_flags, lock_owner
FLUSH_IN = Struct("=Q8xQ")  # fh, lock_owner
READ_IN = Struct("=QQIIQI4x")  # fh, offset, size, read_flags, lock_owner, flags
WRITE_IN = Struct("=QQIIQI4x")  # fh, offset, size, write_flags, lock_owner, flags
FSYNC_IN = Struct("=QI4x")  # fh, fsync_flags
SETXATTR_IN = Struct("=III4x")  # size, flags, setxattr_flags
GETXATTR_IN = Struct("=I4x")  # size
ACCESS_IN = Struct("=I4x")  # mask
INTERRUPT_IN = Struct("=Q")  # unique
LK_IN = Struct("=QQQQIII4x")  # fh, owner, start, end, type, pid, lk_flags
BMAP_IN = Struct("=QI4x")  # block, blocksize
IOCTL_IN = Struct("=QIIQII")  # fh, flags, cmd, arg, in_size, out_size
POLL_IN = Struct("=QQII")  # fh, kh, flags, events
FALLOCATE_IN = Struct("=QQQI4x")  # fh, offset, length, mode
LSEEK_IN = Struct("=QQI4x")  # fh, offset, whence
COPY_FILE_RANGE_IN = Struct("=QQQQQQQ")  # fh_in, off_in, nodeid_out, fh_out, off_out, len, flags
SETUPMAPPING_IN = Struct("=QQQQQ")  # fh, foffset, len, flags, moffset
REMOVEMAPPING_IN = Struct("=I")  # count
SYNCFS_IN = Struct("=8x")
STATX_IN = Struct("=I4xQII")  # getattr_flags, fh, sx_flags, sx_mask
NOTIFY_RETRIEVE_IN = Struct("=8xQI20x")  # offset, size

# The structure that a request begins with, after its header. A name or data fill the rest.
FIXED: Mapping[int, Struct] = {
    Opcode.FORGET: FORGET_IN,
    Opcode.GETATTR: GETATTR_IN,
    Opcode.SETATTR: SETATTR_IN,
    Opcode.MKNOD: MKNOD_IN,
    Opcode.MKDIR: MKDIR_IN,
    Opcode.RENAME: RENAME_IN,
    Opcode.LINK: LINK_IN,
    Opcode.OPEN: OPEN_IN,
    Opcode.READ: READ_IN,
    Opcode.WRITE: WRITE_IN,
    Opcode.RELEASE: RELEASE_IN,
    Opcode.FSYNC: FSYNC_IN,
    Opcode.SETXATTR: SETXATTR_IN,
    Opcode.GETXATTR: GETXATTR_IN,
    Opcode.LISTXATTR: GETXATTR_IN,
    Opcode.FLUSH: FLUSH_IN,
    Opcode.INIT: INIT_IN,
    Opcode.OPENDIR: OPEN_IN,
    Opcode.READDIR: READ_IN,
    Opcode.RELEASEDIR: RELEASE_IN,
    Opcode.FSYNCDIR: FSYNC_IN,
    Opcode.GETLK: LK_IN,
    Opcode.SETLK: LK_IN,
    Opcode.SETLKW: LK_IN,
    Opcode.ACCESS: ACCESS_IN,
    Opcode.CREATE: CREATE_IN,
    Opcode.INTERRUPT: INTERRUPT_IN,
    Opcode.BMAP: BMAP_IN,
    Opcode.IOCTL: IOCTL_IN,
    Opcode.POLL: POLL_IN,
    Opcode.NOTIFY_REPLY: NOTIFY_RETRIEVE_IN,
    Opcode.BATCH_FORGET: BATCH_FORGET_IN,
    Opcode.FALLOCATE: FALLOCATE_IN,
    Opcode.READDIRPLUS: READ_IN,
    Opcode.RENAME2: RENAME2_IN,
    Opcode.LSEEK: LSEEK_IN,
    Opcode.COPY_FILE_RANGE: COPY_FILE_RANGE_IN,
    Opcode.SETUPMAPPING: SETUPMAPPING_IN,
    Opcode.REMOVEMAPPING: REMOVEMAPPING_IN,
    Opcode.SYNCFS: SYNCFS_IN,
    Opcode.TMPFILE: CREATE_IN,
    Opcode.STATX: STATX_IN,
    Opcode.COPY_FILE_RANGE_64: COPY_FILE_RANGE_IN,
}

BACKING_MAP = Struct("=iIQ")  # fd, flags, padding
BACKING_ID = Struct("=I")

# Extensions of a request: size and type of one, the number of groups in one of groups.
EXTENSION = Struct("=II")
GROUPS = Struct("=I")

# ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize,
# flags
_ATTR = "QQQqqqIIIIIIIIII"
# nodeid, generation, entry_valid, attr_valid, their nanoseconds, attr
ENTRY_OUT = Struct("=QQQQII" + _ATTR)
ATTR_OUT = Struct("=QI4x" + _ATTR)  # attr_valid, its nanoseconds, attr
OPEN_OUT = Struct("=QIi")  # fh, open_flags, backing_id
WRITE_OUT = Struct("=I4x")  # size
# blocks, bfree, bavail, files, ffree, bsize, namelen, frsize
STATFS_OUT = Struct("=QQQQQIII28x")
GETXATTR_OUT = Struct("=I4x")  # size
LK_OUT = Struct("=QQII")  # start, end, type, pid
BMAP_OUT = Struct("=Q")  # block
IOCTL_OUT = Struct("=iIII")  # result, flags, in_iovs, out_iovs
POLL_OUT = Struct("=I4x")  # revents
LSEEK_OUT = Struct("=Q")  # offset
COPY_FILE_RANGE_OUT = Struct("=Q")  # bytes_copied
_SX_TIME = "qI4x"
# attr_valid, its nanoseconds, flags; then as statx(2) has it: mask, blksize, attributes, nlink,
# uid, gid, mode, ino, size, blocks, attributes_mask, atime, btime, ctime, mtime, rdev and dev as
# major and minor
STATX_OUT = Struct("=QII16xIIQIIIH2xQQQQ" + 4 * _SX_TIME + "IIII112x")
DIRENT = Struct("=QQII")  # ino, off, namelen, type; then the name, padded to 8 bytes

NOTIFY_INVAL_INODE_OUT = Struct("=Qqq")  # ino, off, len
NOTIFY_INVAL_ENTRY_OUT = Struct("=QII")  # parent, namelen, flags
NOTIFY_DELETE_OUT = Struct("=QQI4x")  # parent, child, namelen
NOTIFY_POLL_WAKEUP_OUT = Struct("=Q")  # kh
NOTIFY_STORE_OUT = Struct("=QQI4x")  # nodeid, offset, size
NOTIFY_RETRIEVE_OUT = Struct("=QQQI4x")  # notify_unique, nodeid, offset, size
NOTIFY_PRUNE_OUT = Struct("=I12x")  # count
