"""The structures and constants of abi.pxd, as Python values. The tests alone use it."""

from libc.string cimport memcpy

from passthrough.core.abi cimport *


cdef union Any:
    unsigned char raw[512]
    fuse_in_header in_header
    fuse_out_header out_header
    fuse_ext_header ext_header
    fuse_supp_groups supp_groups
    fuse_init_in init_in
    fuse_init_out init_out
    fuse_attr attr
    fuse_entry_out entry_out
    fuse_attr_out attr_out
    fuse_dirent dirent
    fuse_direntplus direntplus
    fuse_forget_in forget_in
    fuse_forget_one forget_one
    fuse_batch_forget_in batch_forget_in
    fuse_getattr_in getattr_in
    fuse_setattr_in setattr_in
    fuse_mknod_in mknod_in
    fuse_mkdir_in mkdir_in
    fuse_rename_in rename_in
    fuse_rename2_in rename2_in
    fuse_link_in link_in
    fuse_open_in open_in
    fuse_create_in create_in
    fuse_open_out open_out
    fuse_release_in release_in
    fuse_flush_in flush_in
    fuse_read_in read_in
    fuse_write_in write_in
    fuse_write_out write_out
    fuse_kstatfs kstatfs
    fuse_statfs_out statfs_out
    fuse_fsync_in fsync_in
    fuse_setxattr_in setxattr_in
    fuse_getxattr_in getxattr_in
    fuse_getxattr_out getxattr_out
    fuse_file_lock file_lock
    fuse_lk_in lk_in
    fuse_lk_out lk_out
    fuse_access_in access_in
    fuse_interrupt_in interrupt_in
    fuse_bmap_in bmap_in
    fuse_bmap_out bmap_out
    fuse_ioctl_in ioctl_in
    fuse_ioctl_out ioctl_out
    fuse_poll_in poll_in
    fuse_poll_out poll_out
    fuse_fallocate_in fallocate_in
    fuse_lseek_in lseek_in
    fuse_lseek_out lseek_out
    fuse_copy_file_range_in copy_file_range_in
    fuse_copy_file_range_out copy_file_range_out
    fuse_setupmapping_in setupmapping_in
    fuse_removemapping_in removemapping_in
    fuse_syncfs_in syncfs_in
    fuse_statx_in statx_in
    fuse_sx_time sx_time
    fuse_statx statx
    fuse_statx_out statx_out
    fuse_notify_poll_wakeup_out notify_poll_wakeup_out
    fuse_notify_inval_inode_out notify_inval_inode_out
    fuse_notify_inval_entry_out notify_inval_entry_out
    fuse_notify_delete_out notify_delete_out
    fuse_notify_store_out notify_store_out
    fuse_notify_retrieve_out notify_retrieve_out
    fuse_notify_retrieve_in notify_retrieve_in
    fuse_notify_prune_out notify_prune_out
    fuse_backing_map backing_map


def structures(bytes pattern):
    """Return by name the size of each structure, and its fields if its memory is *pattern*."""
    cdef Any any
    if len(pattern) != sizeof(any.raw):
        raise ValueError(f"{sizeof(any.raw)} bytes are needed")
    memcpy(any.raw, <const char *>pattern, sizeof(any.raw))
    return {
        "fuse_in_header": (sizeof(fuse_in_header), any.in_header),
        "fuse_out_header": (sizeof(fuse_out_header), any.out_header),
        "fuse_ext_header": (sizeof(fuse_ext_header), any.ext_header),
        "fuse_supp_groups": (sizeof(fuse_supp_groups), any.supp_groups),
        "fuse_init_in": (sizeof(fuse_init_in), any.init_in),
        "fuse_init_out": (sizeof(fuse_init_out), any.init_out),
        "fuse_attr": (sizeof(fuse_attr), any.attr),
        "fuse_entry_out": (sizeof(fuse_entry_out), any.entry_out),
        "fuse_attr_out": (sizeof(fuse_attr_out), any.attr_out),
        "fuse_dirent": (sizeof(fuse_dirent), any.dirent),
        "fuse_direntplus": (sizeof(fuse_direntplus), any.direntplus),
        "fuse_forget_in": (sizeof(fuse_forget_in), any.forget_in),
        "fuse_forget_one": (sizeof(fuse_forget_one), any.forget_one),
        "fuse_batch_forget_in": (sizeof(fuse_batch_forget_in), any.batch_forget_in),
        "fuse_getattr_in": (sizeof(fuse_getattr_in), any.getattr_in),
        "fuse_setattr_in": (sizeof(fuse_setattr_in), any.setattr_in),
        "fuse_mknod_in": (sizeof(fuse_mknod_in), any.mknod_in),
        "fuse_mkdir_in": (sizeof(fuse_mkdir_in), any.mkdir_in),
        "fuse_rename_in": (sizeof(fuse_rename_in), any.rename_in),
        "fuse_rename2_in": (sizeof(fuse_rename2_in), any.rename2_in),
        "fuse_link_in": (sizeof(fuse_link_in), any.link_in),
        "fuse_open_in": (sizeof(fuse_open_in), any.open_in),
        "fuse_create_in": (sizeof(fuse_create_in), any.create_in),
        "fuse_open_out": (sizeof(fuse_open_out), any.open_out),
        "fuse_release_in": (sizeof(fuse_release_in), any.release_in),
        "fuse_flush_in": (sizeof(fuse_flush_in), any.flush_in),
        "fuse_read_in": (sizeof(fuse_read_in), any.read_in),
        "fuse_write_in": (sizeof(fuse_write_in), any.write_in),
        "fuse_write_out": (sizeof(fuse_write_out), any.write_out),
        "fuse_kstatfs": (sizeof(fuse_kstatfs), any.kstatfs),
        "fuse_statfs_out": (sizeof(fuse_statfs_out), any.statfs_out),
        "fuse_fsync_in": (sizeof(fuse_fsync_in), any.fsync_in),
        "fuse_setxattr_in": (sizeof(fuse_setxattr_in), any.setxattr_in),
        "fuse_getxattr_in": (sizeof(fuse_getxattr_in), any.getxattr_in),
        "fuse_getxattr_out": (sizeof(fuse_getxattr_out), any.getxattr_out),
        "fuse_file_lock": (sizeof(fuse_file_lock), any.file_lock),
        "fuse_lk_in": (sizeof(fuse_lk_in), any.lk_in),
        "fuse_lk_out": (sizeof(fuse_lk_out), any.lk_out),
        "fuse_access_in": (sizeof(fuse_access_in), any.access_in),
        "fuse_interrupt_in": (sizeof(fuse_interrupt_in), any.interrupt_in),
        "fuse_bmap_in": (sizeof(fuse_bmap_in), any.bmap_in),
        "fuse_bmap_out": (sizeof(fuse_bmap_out), any.bmap_out),
        "fuse_ioctl_in": (sizeof(fuse_ioctl_in), any.ioctl_in),
        "fuse_ioctl_out": (sizeof(fuse_ioctl_out), any.ioctl_out),
        "fuse_poll_in": (sizeof(fuse_poll_in), any.poll_in),
        "fuse_poll_out": (sizeof(fuse_poll_out), any.poll_out),
        "fuse_fallocate_in": (sizeof(fuse_fallocate_in), any.fallocate_in),
        "fuse_lseek_in": (sizeof(fuse_lseek_in), any.lseek_in),
        "fuse_lseek_out": (sizeof(fuse_lseek_out), any.lseek_out),
        "fuse_copy_file_range_in": (sizeof(fuse_copy_file_range_in), any.copy_file_range_in),
        "fuse_copy_file_range_out": (sizeof(fuse_copy_file_range_out), any.copy_file_range_out),
        "fuse_setupmapping_in": (sizeof(fuse_setupmapping_in), any.setupmapping_in),
        "fuse_removemapping_in": (sizeof(fuse_removemapping_in), any.removemapping_in),
        "fuse_syncfs_in": (sizeof(fuse_syncfs_in), any.syncfs_in),
        "fuse_statx_in": (sizeof(fuse_statx_in), any.statx_in),
        "fuse_sx_time": (sizeof(fuse_sx_time), any.sx_time),
        "fuse_statx": (sizeof(fuse_statx), any.statx),
        "fuse_statx_out": (sizeof(fuse_statx_out), any.statx_out),
        "fuse_notify_poll_wakeup_out": (
            sizeof(fuse_notify_poll_wakeup_out), any.notify_poll_wakeup_out
        ),
        "fuse_notify_inval_inode_out": (
            sizeof(fuse_notify_inval_inode_out), any.notify_inval_inode_out
        ),
        "fuse_notify_inval_entry_out": (
            sizeof(fuse_notify_inval_entry_out), any.notify_inval_entry_out
        ),
        "fuse_notify_delete_out": (
            sizeof(fuse_notify_delete_out), any.notify_delete_out
        ),
        "fuse_notify_store_out": (
            sizeof(fuse_notify_store_out), any.notify_store_out
        ),
        "fuse_notify_retrieve_out": (
            sizeof(fuse_notify_retrieve_out), any.notify_retrieve_out
        ),
        "fuse_notify_retrieve_in": (
            sizeof(fuse_notify_retrieve_in), any.notify_retrieve_in
        ),
        "fuse_notify_prune_out": (
            sizeof(fuse_notify_prune_out), any.notify_prune_out
        ),
        "fuse_backing_map": (sizeof(fuse_backing_map), any.backing_map),
    }


def constants():
    """Return the value of each constant by name."""
    return {
        "FUSE_KERNEL_VERSION": FUSE_KERNEL_VERSION,
        "FUSE_KERNEL_MINOR_VERSION": FUSE_KERNEL_MINOR_VERSION,
        "FUSE_LEAST_MINOR_VERSION": FUSE_LEAST_MINOR_VERSION,
        "FUSE_ROOT_ID": FUSE_ROOT_ID,
        "FUSE_MIN_READ_BUFFER": FUSE_MIN_READ_BUFFER,
        "FUSE_NAME_MAX": FUSE_NAME_MAX,
        "FUSE_DEV_IOC_BACKING_OPEN": FUSE_DEV_IOC_BACKING_OPEN,
        "FUSE_DEV_IOC_BACKING_CLOSE": FUSE_DEV_IOC_BACKING_CLOSE,
        "FUSE_LOOKUP": FUSE_LOOKUP,
        "FUSE_FORGET": FUSE_FORGET,
        "FUSE_GETATTR": FUSE_GETATTR,
        "FUSE_SETATTR": FUSE_SETATTR,
        "FUSE_READLINK": FUSE_READLINK,
        "FUSE_SYMLINK": FUSE_SYMLINK,
        "FUSE_MKNOD": FUSE_MKNOD,
        "FUSE_MKDIR": FUSE_MKDIR,
        "FUSE_UNLINK": FUSE_UNLINK,
        "FUSE_RMDIR": FUSE_RMDIR,
        "FUSE_RENAME": FUSE_RENAME,
        "FUSE_LINK": FUSE_LINK,
        "FUSE_OPEN": FUSE_OPEN,
        "FUSE_READ": FUSE_READ,
        "FUSE_WRITE": FUSE_WRITE,
        "FUSE_STATFS": FUSE_STATFS,
        "FUSE_RELEASE": FUSE_RELEASE,
        "FUSE_FSYNC": FUSE_FSYNC,
        "FUSE_SETXATTR": FUSE_SETXATTR,
        "FUSE_GETXATTR": FUSE_GETXATTR,
        "FUSE_LISTXATTR": FUSE_LISTXATTR,
        "FUSE_REMOVEXATTR": FUSE_REMOVEXATTR,
        "FUSE_FLUSH": FUSE_FLUSH,
        "FUSE_INIT": FUSE_INIT,
        "FUSE_OPENDIR": FUSE_OPENDIR,
        "FUSE_READDIR": FUSE_READDIR,
        "FUSE_RELEASEDIR": FUSE_RELEASEDIR,
        "FUSE_FSYNCDIR": FUSE_FSYNCDIR,
        "FUSE_GETLK": FUSE_GETLK,
        "FUSE_SETLK": FUSE_SETLK,
        "FUSE_SETLKW": FUSE_SETLKW,
        "FUSE_ACCESS": FUSE_ACCESS,
        "FUSE_CREATE": FUSE_CREATE,
        "FUSE_INTERRUPT": FUSE_INTERRUPT,
        "FUSE_BMAP": FUSE_BMAP,
        "FUSE_DESTROY": FUSE_DESTROY,
        "FUSE_IOCTL": FUSE_IOCTL,
        "FUSE_POLL": FUSE_POLL,
        "FUSE_NOTIFY_REPLY": FUSE_NOTIFY_REPLY,
        "FUSE_BATCH_FORGET": FUSE_BATCH_FORGET,
        "FUSE_FALLOCATE": FUSE_FALLOCATE,
        "FUSE_READDIRPLUS": FUSE_READDIRPLUS,
        "FUSE_RENAME2": FUSE_RENAME2,
        "FUSE_LSEEK": FUSE_LSEEK,
        "FUSE_COPY_FILE_RANGE": FUSE_COPY_FILE_RANGE,
        "FUSE_SETUPMAPPING": FUSE_SETUPMAPPING,
        "FUSE_REMOVEMAPPING": FUSE_REMOVEMAPPING,
        "FUSE_SYNCFS": FUSE_SYNCFS,
        "FUSE_TMPFILE": FUSE_TMPFILE,
        "FUSE_STATX": FUSE_STATX,
        "FUSE_COPY_FILE_RANGE_64": FUSE_COPY_FILE_RANGE_64,
        "FUSE_OPCODES": FUSE_OPCODES,
        "FUSE_NOTIFY_POLL": FUSE_NOTIFY_POLL,
        "FUSE_NOTIFY_INVAL_INODE": FUSE_NOTIFY_INVAL_INODE,
        "FUSE_NOTIFY_INVAL_ENTRY": FUSE_NOTIFY_INVAL_ENTRY,
        "FUSE_NOTIFY_STORE": FUSE_NOTIFY_STORE,
        "FUSE_NOTIFY_RETRIEVE": FUSE_NOTIFY_RETRIEVE,
        "FUSE_NOTIFY_DELETE": FUSE_NOTIFY_DELETE,
        "FUSE_NOTIFY_RESEND": FUSE_NOTIFY_RESEND,
        "FUSE_NOTIFY_INC_EPOCH": FUSE_NOTIFY_INC_EPOCH,
        "FUSE_NOTIFY_PRUNE": FUSE_NOTIFY_PRUNE,
        "FUSE_ASYNC_READ": FUSE_ASYNC_READ,
        "FUSE_POSIX_LOCKS": FUSE_POSIX_LOCKS,
        "FUSE_ATOMIC_O_TRUNC": FUSE_ATOMIC_O_TRUNC,
        "FUSE_EXPORT_SUPPORT": FUSE_EXPORT_SUPPORT,
        "FUSE_BIG_WRITES": FUSE_BIG_WRITES,
        "FUSE_DONT_MASK": FUSE_DONT_MASK,
        "FUSE_SPLICE_WRITE": FUSE_SPLICE_WRITE,
        "FUSE_SPLICE_MOVE": FUSE_SPLICE_MOVE,
        "FUSE_SPLICE_READ": FUSE_SPLICE_READ,
        "FUSE_FLOCK_LOCKS": FUSE_FLOCK_LOCKS,
        "FUSE_HAS_IOCTL_DIR": FUSE_HAS_IOCTL_DIR,
        "FUSE_AUTO_INVAL_DATA": FUSE_AUTO_INVAL_DATA,
        "FUSE_DO_READDIRPLUS": FUSE_DO_READDIRPLUS,
        "FUSE_READDIRPLUS_AUTO": FUSE_READDIRPLUS_AUTO,
        "FUSE_ASYNC_DIO": FUSE_ASYNC_DIO,
        "FUSE_WRITEBACK_CACHE": FUSE_WRITEBACK_CACHE,
        "FUSE_NO_OPEN_SUPPORT": FUSE_NO_OPEN_SUPPORT,
        "FUSE_PARALLEL_DIROPS": FUSE_PARALLEL_DIROPS,
        "FUSE_HANDLE_KILLPRIV": FUSE_HANDLE_KILLPRIV,
        "FUSE_POSIX_ACL": FUSE_POSIX_ACL,
        "FUSE_ABORT_ERROR": FUSE_ABORT_ERROR,
        "FUSE_MAX_PAGES": FUSE_MAX_PAGES,
        "FUSE_CACHE_SYMLINKS": FUSE_CACHE_SYMLINKS,
        "FUSE_NO_OPENDIR_SUPPORT": FUSE_NO_OPENDIR_SUPPORT,
        "FUSE_EXPLICIT_INVAL_DATA": FUSE_EXPLICIT_INVAL_DATA,
        "FUSE_MAP_ALIGNMENT": FUSE_MAP_ALIGNMENT,
        "FUSE_SUBMOUNTS": FUSE_SUBMOUNTS,
        "FUSE_HANDLE_KILLPRIV_V2": FUSE_HANDLE_KILLPRIV_V2,
        "FUSE_SETXATTR_EXT": FUSE_SETXATTR_EXT,
        "FUSE_INIT_EXT": FUSE_INIT_EXT,
        "FATTR_MODE": FATTR_MODE,
        "FATTR_UID": FATTR_UID,
        "FATTR_GID": FATTR_GID,
        "FATTR_SIZE": FATTR_SIZE,
        "FATTR_ATIME": FATTR_ATIME,
        "FATTR_MTIME": FATTR_MTIME,
        "FATTR_FH": FATTR_FH,
        "FATTR_ATIME_NOW": FATTR_ATIME_NOW,
        "FATTR_MTIME_NOW": FATTR_MTIME_NOW,
        "FATTR_LOCKOWNER": FATTR_LOCKOWNER,
        "FATTR_CTIME": FATTR_CTIME,
        "FATTR_KILL_SUIDGID": FATTR_KILL_SUIDGID,
        "FOPEN_DIRECT_IO": FOPEN_DIRECT_IO,
        "FOPEN_KEEP_CACHE": FOPEN_KEEP_CACHE,
        "FOPEN_NONSEEKABLE": FOPEN_NONSEEKABLE,
        "FOPEN_CACHE_DIR": FOPEN_CACHE_DIR,
        "FOPEN_STREAM": FOPEN_STREAM,
        "FOPEN_NOFLUSH": FOPEN_NOFLUSH,
        "FOPEN_PARALLEL_DIRECT_WRITES": FOPEN_PARALLEL_DIRECT_WRITES,
        "FOPEN_PASSTHROUGH": FOPEN_PASSTHROUGH,
        "FUSE_GETATTR_FH": FUSE_GETATTR_FH,
        "FUSE_OPEN_KILL_SUIDGID": FUSE_OPEN_KILL_SUIDGID,
        "FUSE_WRITE_CACHE": FUSE_WRITE_CACHE,
        "FUSE_WRITE_LOCKOWNER": FUSE_WRITE_LOCKOWNER,
        "FUSE_WRITE_KILL_SUIDGID": FUSE_WRITE_KILL_SUIDGID,
        "FUSE_READ_LOCKOWNER": FUSE_READ_LOCKOWNER,
        "FUSE_RELEASE_FLUSH": FUSE_RELEASE_FLUSH,
        "FUSE_RELEASE_FLOCK_UNLOCK": FUSE_RELEASE_FLOCK_UNLOCK,
        "FUSE_FSYNC_FDATASYNC": FUSE_FSYNC_FDATASYNC,
        "FUSE_SETXATTR_ACL_KILL_SGID": FUSE_SETXATTR_ACL_KILL_SGID,
        "FUSE_LK_FLOCK": FUSE_LK_FLOCK,
        "FUSE_IOCTL_COMPAT": FUSE_IOCTL_COMPAT,
        "FUSE_IOCTL_UNRESTRICTED": FUSE_IOCTL_UNRESTRICTED,
        "FUSE_IOCTL_RETRY": FUSE_IOCTL_RETRY,
        "FUSE_IOCTL_32BIT": FUSE_IOCTL_32BIT,
        "FUSE_IOCTL_DIR": FUSE_IOCTL_DIR,
        "FUSE_POLL_SCHEDULE_NOTIFY": FUSE_POLL_SCHEDULE_NOTIFY,
        "FUSE_ATTR_SUBMOUNT": FUSE_ATTR_SUBMOUNT,
        "FUSE_EXPIRE_ONLY": FUSE_EXPIRE_ONLY,
        "FUSE_EXT_GROUPS": FUSE_EXT_GROUPS,
        "FUSE_SECURITY_CTX": FUSE_SECURITY_CTX,
        "FUSE_HAS_INODE_DAX": FUSE_HAS_INODE_DAX,
        "FUSE_CREATE_SUPP_GROUP": FUSE_CREATE_SUPP_GROUP,
        "FUSE_HAS_EXPIRE_ONLY": FUSE_HAS_EXPIRE_ONLY,
        "FUSE_DIRECT_IO_ALLOW_MMAP": FUSE_DIRECT_IO_ALLOW_MMAP,
        "FUSE_PASSTHROUGH": FUSE_PASSTHROUGH,
        "FUSE_NO_EXPORT_SUPPORT": FUSE_NO_EXPORT_SUPPORT,
        "FUSE_HAS_RESEND": FUSE_HAS_RESEND,
        "FUSE_ALLOW_IDMAP": FUSE_ALLOW_IDMAP,
        "FUSE_OVER_IO_URING": FUSE_OVER_IO_URING,
        "FUSE_REQUEST_TIMEOUT": FUSE_REQUEST_TIMEOUT,
        "FUSE_UNIQUE_RESEND": FUSE_UNIQUE_RESEND,
        "FUSE_INVALID_UIDGID": FUSE_INVALID_UIDGID,
    }
