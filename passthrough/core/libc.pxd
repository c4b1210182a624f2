"""System calls and constants, declared once; all without the interpreter's lock.

A call fails with -1 and `errno`, which holds until the thread's next call: save it at once. The
functions at the end are calls for which glibc has no wrapper, or one that changes every thread.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "<sys/types.h>" nogil:
    ctypedef int64_t off_t
    ctypedef int64_t ssize_t
    ctypedef uint32_t mode_t
    ctypedef uint64_t dev_t
    ctypedef uint64_t ino_t
    ctypedef uint32_t uid_t
    ctypedef uint32_t gid_t
    ctypedef int32_t pid_t


cdef extern from "<errno.h>" nogil:
    int errno
    enum:
        EPERM, ENOENT, ESRCH, EINTR, EIO, ENXIO, E2BIG, ENOEXEC, EBADF, ECHILD, EAGAIN, ENOMEM
        EACCES, EFAULT, ENOTBLK, EBUSY, EEXIST, EXDEV, ENODEV, ENOTDIR, EISDIR, EINVAL, ENFILE
        EMFILE, ENOTTY, ETXTBSY, EFBIG, ENOSPC, ESPIPE, EROFS, EMLINK, EPIPE, ERANGE, EDEADLK
        ENAMETOOLONG, ENOLCK, ENOSYS, ENOTEMPTY, ELOOP, ENODATA, EPROTO, EOVERFLOW, EOPNOTSUPP
        ECONNABORTED, ENOTCONN, ETIMEDOUT, ESTALE, EDQUOT, ECANCELED


cdef extern from "<time.h>" nogil:
    struct timespec:
        int64_t tv_sec
        long tv_nsec
    enum:
        CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE, CLOCK_REALTIME, CLOCK_REALTIME_COARSE
        CLOCK_THREAD_CPUTIME_ID
    int clock_gettime(int clock, timespec *now)


cdef extern from "<sys/stat.h>" nogil:
    struct struct_stat "stat":
        dev_t st_dev
        ino_t st_ino
        mode_t st_mode
        uint64_t st_nlink
        uid_t st_uid
        gid_t st_gid
        dev_t st_rdev
        off_t st_size
        long st_blksize
        int64_t st_blocks
        timespec st_atim
        timespec st_mtim
        timespec st_ctim
    struct statx_timestamp:
        int64_t tv_sec
        uint32_t tv_nsec
    struct struct_statx "statx":
        uint32_t stx_mask
        uint32_t stx_blksize
        uint64_t stx_attributes
        uint32_t stx_nlink
        uint32_t stx_uid
        uint32_t stx_gid
        uint16_t stx_mode
        uint64_t stx_ino
        uint64_t stx_size
        uint64_t stx_blocks
        uint64_t stx_attributes_mask
        statx_timestamp stx_atime
        statx_timestamp stx_btime
        statx_timestamp stx_ctime
        statx_timestamp stx_mtime
        uint32_t stx_rdev_major
        uint32_t stx_rdev_minor
        uint32_t stx_dev_major
        uint32_t stx_dev_minor
        uint64_t stx_mnt_id
    enum:
        S_IFMT, S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK
        S_ISUID, S_ISGID, S_ISVTX, S_IRWXU, S_IRWXG, S_IRWXO, S_IXGRP
        STATX_TYPE, STATX_MODE, STATX_NLINK, STATX_INO, STATX_SIZE, STATX_BASIC_STATS, STATX_BTIME
        STATX_MNT_ID
        STATX_ATTR_MOUNT_ROOT
        UTIME_NOW, UTIME_OMIT
    int fstat(int fd, struct_stat *st)
    int fstatat(int dir_fd, const char *path, struct_stat *st, int flags)
    int statx(int dir_fd, const char *path, int flags, unsigned int mask, struct_statx *st)
    int mknodat(int dir_fd, const char *path, mode_t mode, dev_t dev)
    int mkdirat(int dir_fd, const char *path, mode_t mode)
    int fchmod(int fd, mode_t mode)
    int fchmodat(int dir_fd, const char *path, mode_t mode, int flags)
    int futimens(int fd, const timespec *times)
    int utimensat(int dir_fd, const char *path, const timespec *times, int flags)
    mode_t umask(mode_t mask)


cdef extern from "<sys/sysmacros.h>" nogil:
    unsigned int major(dev_t dev)
    unsigned int minor(dev_t dev)
    dev_t makedev(unsigned int major, unsigned int minor)


cdef extern from "<sys/vfs.h>" nogil:
    struct struct_statfs "statfs":
        long f_type
        long f_bsize
        uint64_t f_blocks
        uint64_t f_bfree
        uint64_t f_bavail
        uint64_t f_files
        uint64_t f_ffree
        long f_namelen
        long f_frsize
        long f_flags
    int fstatfs(int fd, struct_statfs *st)


cdef extern from "<fcntl.h>" nogil:
    struct struct_flock "flock":
        short l_type
        short l_whence
        off_t l_start
        off_t l_len
        pid_t l_pid
    struct file_handle:
        unsigned int handle_bytes  # in: the room in f_handle; out: the length
        int handle_type
        unsigned char f_handle[1]  # as long as handle_bytes says
    enum:
        AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW, AT_REMOVEDIR
        AT_NO_AUTOMOUNT, AT_EACCESS, AT_STATX_SYNC_AS_STAT, AT_STATX_DONT_SYNC
        O_ACCMODE, O_RDONLY, O_WRONLY, O_RDWR, O_APPEND, O_CREAT, O_EXCL, O_TRUNC, O_DIRECT
        O_DIRECTORY, O_NOFOLLOW, O_NOATIME, O_NONBLOCK, O_CLOEXEC, O_PATH, O_SYNC, O_DSYNC
        O_NOCTTY, O_TMPFILE
        F_DUPFD_CLOEXEC, F_GETFD, F_GETFL, F_SETFL, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW
        F_RDLCK, F_WRLCK, F_UNLCK
        FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_COLLAPSE_RANGE
        FALLOC_FL_ZERO_RANGE, FALLOC_FL_INSERT_RANGE, FALLOC_FL_UNSHARE_RANGE
        MAX_HANDLE_SZ
    int openat(int dir_fd, const char *path, int flags, ...)
    int fcntl(int fd, int command, ...)
    int fallocate(int fd, int mode, off_t offset, off_t length)
    int name_to_handle_at(int dir_fd, const char *path, file_handle *handle, int *mount, int flags)
    int open_by_handle_at(int mount_fd, file_handle *handle, int flags)


cdef extern from "<stdio.h>" nogil:
    enum:
        RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT
    int renameat2(int old_fd, const char *old, int new_fd, const char *new, unsigned int flags)


cdef extern from "<unistd.h>" nogil:
    enum:
        R_OK, W_OK, X_OK, F_OK
        SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE
    int close(int fd)
    int dup(int fd)
    int pipe2(int *fds, int flags)
    int symlinkat(const char *target, int dir_fd, const char *path)
    int linkat(int old_fd, const char *old, int new_fd, const char *new, int flags)
    int unlinkat(int dir_fd, const char *path, int flags)
    ssize_t readlinkat(int dir_fd, const char *path, char *target, size_t size)
    int faccessat(int dir_fd, const char *path, int mode, int flags)
    int fchownat(int dir_fd, const char *path, uid_t uid, gid_t gid, int flags)
    int fchown(int fd, uid_t uid, gid_t gid)
    int truncate(const char *path, off_t length)
    int ftruncate(int fd, off_t length)
    ssize_t read(int fd, void *data, size_t size)
    ssize_t write(int fd, const void *data, size_t size)
    ssize_t pread(int fd, void *data, size_t size, off_t offset)
    ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
    off_t lseek(int fd, off_t offset, int whence)
    ssize_t copy_file_range(
        int fd_in, off_t *off_in, int fd_out, off_t *off_out, size_t size, unsigned int flags
    )
    int fsync(int fd)
    int fdatasync(int fd)
    int syncfs(int fd)
    long sysconf(int name)
    long syscall(long number, ...)
    void _exit(int status)


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    enum:
        RWF_APPEND, RWF_DSYNC, RWF_NOWAIT, RWF_SYNC
    ssize_t readv(int fd, const iovec *parts, int count)
    ssize_t writev(int fd, const iovec *parts, int count)
    ssize_t preadv(int fd, const iovec *parts, int count, off_t offset)
    ssize_t pwritev(int fd, const iovec *parts, int count, off_t offset)
    ssize_t preadv2(int fd, const iovec *parts, int count, off_t offset, int flags)
    ssize_t pwritev2(int fd, const iovec *parts, int count, off_t offset, int flags)


cdef extern from "<sys/file.h>" nogil:
    enum:
        LOCK_SH, LOCK_EX, LOCK_UN, LOCK_NB
    int flock(int fd, int operation)


cdef extern from "<sys/xattr.h>" nogil:
    enum:
        XATTR_CREATE, XATTR_REPLACE
    ssize_t getxattr(const char *path, const char *name, void *value, size_t size)
    ssize_t lgetxattr(const char *path, const char *name, void *value, size_t size)
    ssize_t fgetxattr(int fd, const char *name, void *value, size_t size)
    int setxattr(const char *path, const char *name, const void *value, size_t size, int flags)
    int fsetxattr(int fd, const char *name, const void *value, size_t size, int flags)
    ssize_t listxattr(const char *path, char *names, size_t size)
    ssize_t flistxattr(int fd, char *names, size_t size)
    int removexattr(const char *path, const char *name)
    int fremovexattr(int fd, const char *name)


cdef extern from "<linux/limits.h>" nogil:
    enum:
        NAME_MAX, PATH_MAX, XATTR_NAME_MAX, XATTR_SIZE_MAX, XATTR_LIST_MAX


cdef extern from "<sys/ioctl.h>" nogil:
    const unsigned long TCGETS
    int ioctl(int fd, unsigned long request, ...)


cdef extern from "<linux/fs.h>" nogil:
    struct fsxattr:
        uint32_t fsx_xflags
        uint32_t fsx_extsize
        uint32_t fsx_nextents
        uint32_t fsx_projid
        uint32_t fsx_cowextsize
    const unsigned long FS_IOC_GETFLAGS
    const unsigned long FS_IOC_SETFLAGS
    const unsigned long FS_IOC_FSGETXATTR
    const unsigned long FS_IOC_FSSETXATTR


cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_NONE, PROT_READ, PROT_WRITE
        MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_POPULATE, MAP_NORESERVE, MAP_FIXED
        MADV_DONTNEED, MADV_REMOVE, MADV_DONTDUMP, MADV_DONTFORK
        MFD_CLOEXEC
    void *MAP_FAILED
    void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
    int munmap(void *address, size_t size)
    void *mremap(void *address, size_t old_size, size_t new_size, int flags, ...)
    int madvise(void *address, size_t size, int advice)
    int mlock(const void *address, size_t size)
    int munlock(const void *address, size_t size)
    int memfd_create(const char *name, unsigned int flags)


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLIN, POLLOUT, POLLERR, POLLHUP
    int poll(pollfd *fds, unsigned long count, int milliseconds)


cdef extern from "<sched.h>" nogil:
    enum:
        CLONE_FS
    int unshare(int flags)
    int sched_yield()


cdef extern from "<sys/prctl.h>" nogil:
    enum:
        PR_SET_NAME, PR_SET_SECUREBITS, PR_GET_SECUREBITS
    int prctl(int option, ...)


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_mutexattr_t:
        pass
    enum:
        PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_ROBUST
    int pthread_mutexattr_init(pthread_mutexattr_t *attributes)
    int pthread_mutexattr_setpshared(pthread_mutexattr_t *attributes, int shared)
    int pthread_mutexattr_setrobust(pthread_mutexattr_t *attributes, int robust)
    int pthread_mutexattr_destroy(pthread_mutexattr_t *attributes)
    int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    # These return the error, and leave errno alone.
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_mutex_consistent(pthread_mutex_t *mutex)


cdef extern from "<linux/openat2.h>" nogil:
    struct open_how:
        uint64_t flags
        uint64_t mode
        uint64_t resolve
    enum:
        RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH
        RESOLVE_IN_ROOT


cdef extern from "<sys/syscall.h>" nogil:
    enum:
        SYS_openat2, SYS_getdents64, SYS_setfsuid, SYS_setfsgid, SYS_capget, SYS_capset
        SYS_setgroups, SYS_gettid, SYS_open_tree


cdef extern from "<linux/capability.h>" nogil:
    enum:
        _LINUX_CAPABILITY_VERSION_3
        CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_SETGID
        CAP_SETUID, CAP_SYS_ADMIN, CAP_MKNOD, CAP_SETFCAP
    struct cap_header "__user_cap_header_struct":
        uint32_t version  # _LINUX_CAPABILITY_VERSION_3
        int pid  # 0: the calling thread
    struct cap_data "__user_cap_data_struct":  # two of them: the low and the high 32
        uint32_t effective
        uint32_t permitted
        uint32_t inheritable


# An entry that getdents64 writes, getdents(2); d_reclen bytes each, d_name ends with a 0 byte.
cdef struct linux_dirent64:
    uint64_t d_ino
    int64_t d_off
    uint16_t d_reclen
    uint8_t d_type
    char d_name[1]


cdef inline int openat2(int dir_fd, const char *path, const open_how *how) noexcept nogil:
    """Open *path* by openat2(2)."""
    return <int>syscall(SYS_openat2, <long>dir_fd, path, how, sizeof(open_how))


cdef inline int open_again(int fd) noexcept nogil:
    """Open the file behind a descriptor with O_PATH, open_tree(2); no path is walked."""
    return <int>syscall(
        SYS_open_tree, <long>fd, <const char *>b"", <unsigned long>(AT_EMPTY_PATH | O_CLOEXEC)
    )


cdef inline ssize_t getdents64(int fd, void *entries, size_t size) noexcept nogil:
    """Read entries of a directory; 0 at its end."""
    return syscall(SYS_getdents64, <long>fd, entries, size)


cdef inline uint32_t setfsuid(uint32_t uid) noexcept nogil:
    """Set the thread's file system uid; return the one before, setfsuid(2) reports no failure."""
    return <uint32_t>syscall(SYS_setfsuid, <unsigned long>uid)


cdef inline uint32_t setfsgid(uint32_t gid) noexcept nogil:
    """Set the thread's file system gid; return the one before, setfsgid(2) reports no failure."""
    return <uint32_t>syscall(SYS_setfsgid, <unsigned long>gid)


cdef inline int setgroups(size_t count, const gid_t *groups) noexcept nogil:
    """Set the supplementary groups of this thread alone."""
    return <int>syscall(SYS_setgroups, count, groups)


cdef inline int capget(cap_header *header, cap_data *data) noexcept nogil:
    """Read a thread's capabilities into two elements of *data*."""
    return <int>syscall(SYS_capget, header, data)


cdef inline int capset(cap_header *header, const cap_data *data) noexcept nogil:
    """Set the thread's capabilities from two elements of *data*."""
    return <int>syscall(SYS_capset, header, data)
