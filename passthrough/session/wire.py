"""The structures of the kernel's FUSE protocol, linux/fuse.h, each packed and unpacked by one row.

Numbers are in the machine's own byte order and stand where C puts them, with the padding spelled
out. `FIXED` says with which structure a request begins; request.py takes requests apart by it. The
functions at the end make the bodies of replies: nothing here knows how they get to the kernel.
"""

import errno
import functools
import os
from collections.abc import Mapping
from struct import Struct
from typing import Final

from passthrough.identity.attributes import Attributes, Entry
from passthrough.linux.errors import os_error
from passthrough.session.abi import ATTR_SUBMOUNT, Opcode

# len, opcode, unique, nodeid, uid, gid, pid, total_extlen in units of 8 bytes
IN_HEADER: Final = Struct("=IIQQIIIHxx")
# len, error (an errno below nought, or the code of a notification), unique
OUT_HEADER: Final = Struct("=IiQ")

# major, minor, max_readahead, flags, flags2; 11 words for later
INIT_IN: Final = Struct("=IIIII44x")
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
# max_pages, map_alignment, flags2, max_stack_depth, request_timeout; 11 half-words for later
INIT_OUT: Final = Struct("=IIIIHHIIHHIIH22x")

FORGET_IN: Final = Struct("=Q")  # nlookup
FORGET_ONE: Final = Struct("=QQ")  # nodeid, nlookup
BATCH_FORGET_IN: Final = Struct("=I4x")  # count
GETATTR_IN: Final = Struct("=I4xQ")  # getattr_flags, fh
# valid, fh, size, lock_owner, atime, mtime, ctime, their nanoseconds, mode, uid, gid
SETATTR_IN: Final = Struct("=I4xQQQqqqIIII4xII4x")
MKNOD_IN: Final = Struct("=III4x")  # mode, rdev, umask
MKDIR_IN: Final = Struct("=II")  # mode, umask
RENAME_IN: Final = Struct("=Q")  # newdir
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
INTERRUPT_IN: Final = Struct("=Q")  # unique
LK_IN: Final = Struct("=QQQQIII4x")  # fh, owner, start, end, type, pid, lk_flags
BMAP_IN: Final = Struct("=QI4x")  # block, blocksize
IOCTL_IN: Final = Struct("=QIIQII")  # fh, flags, cmd, arg, in_size, out_size
POLL_IN: Final = Struct("=QQII")  # fh, kh, flags, events
FALLOCATE_IN: Final = Struct("=QQQI4x")  # fh, offset, length, mode
LSEEK_IN: Final = Struct("=QQI4x")  # fh, offset, whence
COPY_FILE_RANGE_IN: Final = Struct(
    "=QQQQQQQ"
)  # fh_in, off_in, nodeid_out, fh_out, off_out, len, flags
SETUPMAPPING_IN: Final = Struct("=QQQQQ")  # fh, foffset, len, flags, moffset
REMOVEMAPPING_IN: Final = Struct("=I")  # count
SYNCFS_IN: Final = Struct("=8x")
STATX_IN: Final = Struct("=I4xQII")  # getattr_flags, fh, sx_flags, sx_mask
NOTIFY_RETRIEVE_IN: Final = Struct("=8xQI20x")  # offset, size

# What a request begins with, after its header. What follows, a name or data, fills the rest.
FIXED: Final[Mapping[int, Struct]] = {
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

BACKING_MAP: Final = Struct("=iIQ")  # fd, flags, padding
BACKING_ID: Final = Struct("=I")

# Extensions of a request: size and type of one, the number of groups in one of groups.
EXTENSION: Final = Struct("=II")
GROUPS: Final = Struct("=I")

# ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize,
# flags
_ATTR: Final = "QQQqqqIIIIIIIIII"
# nodeid, generation, entry_valid, attr_valid, their nanoseconds, attr
ENTRY_OUT: Final = Struct("=QQQQII" + _ATTR)
ATTR_OUT: Final = Struct("=QI4x" + _ATTR)  # attr_valid, its nanoseconds, attr
OPEN_OUT: Final = Struct("=QIi")  # fh, open_flags, backing_id
WRITE_OUT: Final = Struct("=I4x")  # size
# blocks, bfree, bavail, files, ffree, bsize, namelen, frsize
STATFS_OUT: Final = Struct("=QQQQQIII28x")
GETXATTR_OUT: Final = Struct("=I4x")  # size
LK_OUT: Final = Struct("=QQII")  # start, end, type, pid
BMAP_OUT: Final = Struct("=Q")  # block
IOCTL_OUT: Final = Struct("=iIII")  # result, flags, in_iovs, out_iovs
POLL_OUT: Final = Struct("=I4x")  # revents
LSEEK_OUT: Final = Struct("=Q")  # offset
COPY_FILE_RANGE_OUT: Final = Struct("=Q")  # bytes_copied
_SX_TIME: Final = "qI4x"
# attr_valid, its nanoseconds, flags; then as statx(2) has it: mask, blksize, attributes, nlink,
# uid, gid, mode, ino, size, blocks, attributes_mask, atime, btime, ctime, mtime, rdev and dev as
# major and minor
STATX_OUT: Final = Struct("=QII16xIIQIIIH2xQQQQ" + 4 * _SX_TIME + "IIII112x")
DIRENT: Final = Struct("=QQII")  # ino, off, namelen, type; then the name, padded to 8 bytes

NOTIFY_INVAL_INODE_OUT: Final = Struct("=Qqq")  # ino, off, len
NOTIFY_INVAL_ENTRY_OUT: Final = Struct("=QII")  # parent, namelen, flags
NOTIFY_DELETE_OUT: Final = Struct("=QQI4x")  # parent, child, namelen
NOTIFY_POLL_WAKEUP_OUT: Final = Struct("=Q")  # kh
NOTIFY_STORE_OUT: Final = Struct("=QQI4x")  # nodeid, offset, size
NOTIFY_RETRIEVE_OUT: Final = Struct("=QQQI4x")  # notify_unique, nodeid, offset, size
NOTIFY_PRUNE_OUT: Final = Struct("=I12x")  # count

_NS: Final = 1_000_000_000
_STATX_BASIC, _STATX_BTIME = 0x07FF, 0x0800  # statx(2)
_WORD: Final = 8
_NO_ATTR: Final = (0,) * 16
_WORD_BITS: Final = 0xFFFF_FFFF


@functools.cache
def _valid(timeout: float) -> tuple[int, int]:
    """Whole seconds and nanoseconds of a timeout; a volume has a handful of them."""
    return int(timeout), int(timeout % 1 * _NS)


def entry(found: Entry) -> bytes:
    """What a name led to."""
    st = found.stat
    mode, _, _, nlink, uid, gid, size, atime, mtime, ctime = st
    if found.owner is not None:
        uid, gid = found.owner
    number = found.inode_number
    entry_s, entry_ns = _valid(found.entry_timeout)
    attr_s, attr_ns = _valid(found.attr_timeout)
    # Every argument by itself: tuples to unpack would cost a tenth of the whole.
    return ENTRY_OUT.pack(
        number,
        0,
        entry_s,
        attr_s,
        entry_ns,
        attr_ns,
        number,
        size,
        st.st_blocks,
        atime,
        mtime,
        ctime,
        st.st_atime_ns % _NS,
        st.st_mtime_ns % _NS,
        st.st_ctime_ns % _NS,
        mode,
        nlink,
        uid,
        gid,
        st.st_rdev & _WORD_BITS,
        st.st_blksize,
        ATTR_SUBMOUNT if found.submount else 0,
    )


def absent(timeout: float) -> bytes:
    """That there is no such name, to be known for *timeout* seconds: an entry without inode."""
    seconds, nanoseconds = _valid(timeout)
    return ENTRY_OUT.pack(0, 0, seconds, 0, nanoseconds, 0, *_NO_ATTR)


def attributes(found: Attributes) -> bytes:
    """What GETATTR and SETATTR answer."""
    st = found.stat
    mode, _, _, nlink, uid, gid, size, atime, mtime, ctime = st
    if found.owner is not None:
        uid, gid = found.owner
    valid_s, valid_ns = _valid(found.timeout)
    return ATTR_OUT.pack(
        valid_s,
        valid_ns,
        found.number,
        size,
        st.st_blocks,
        atime,
        mtime,
        ctime,
        st.st_atime_ns % _NS,
        st.st_mtime_ns % _NS,
        st.st_ctime_ns % _NS,
        mode,
        nlink,
        uid,
        gid,
        st.st_rdev & _WORD_BITS,
        st.st_blksize,
        0,
    )


def statx(found: Attributes, birth: tuple[int, int] | None) -> bytes:
    """What STATX answers; the kernel takes no more of it than what stat(2) has, and the birth."""
    st = found.stat
    mode, _, _, nlink, uid, gid, size, atime, mtime, ctime = st
    if found.owner is not None:
        uid, gid = found.owner
    return STATX_OUT.pack(
        *(*_valid(found.timeout), 0),
        *(_STATX_BASIC | (_STATX_BTIME if birth else 0), st.st_blksize, 0, nlink),
        *(uid, gid, mode, found.number, size, st.st_blocks, 0),
        *(atime, st.st_atime_ns % _NS, *(birth or (0, 0))),
        *(ctime, st.st_ctime_ns % _NS, mtime, st.st_mtime_ns % _NS),
        *(os.major(st.st_rdev), os.minor(st.st_rdev), os.major(st.st_dev), os.minor(st.st_dev)),
    )


def statfs(host: os.statvfs_result) -> bytes:
    """What statfs(2) says of the host's file system."""
    return STATFS_OUT.pack(
        *(host.f_blocks, host.f_bfree, host.f_bavail, host.f_files, host.f_ffree),
        *(host.f_bsize, host.f_namemax, host.f_frsize),
    )


def dirent(number: int, end: int, kind: int, name: bytes) -> bytes:
    """One name of a listing: its st_ino, the offset of what follows, its DT_* kind."""
    return DIRENT.pack(number, end, len(name), kind) + name + b"\0" * (-len(name) % _WORD)


def sized(value: bytes, limit: int) -> bytes:
    """An attribute's value, or with a *limit* of nought its length alone.

    Raises:
        OSError: ERANGE, it is longer than *limit*.
    """
    if limit == 0:
        return GETXATTR_OUT.pack(len(value))
    if len(value) > limit:
        raise os_error(errno.ERANGE)
    return value
