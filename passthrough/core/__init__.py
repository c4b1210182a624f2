"""The request path, compiled: bytes of requests in, bytes of replies out, no Python object between.

The modules, from the top down:

    binding       the objects of pyfuse3: filled from replies, and waits for requests
    face          the core for Python: a volume that serves requests
    clone         processes that share their table of descriptors
    configure     the options of a volume as numbers
    watch         the main thread: samples the threads until the session ends
    queues        the threads that serve a queue of io_uring each
    sweep         has the kernel forget files without a name
    service       a thread in service: reads, serves, replies
    resumed       requests that a predecessor had in hand
    takeover      goes on where a predecessor was killed
    damage        what a predecessor has left: checked before it is used
    crew          the pools of threads
    entry         requests over io_uring
    uring         the io_uring system calls
    device        /dev/fuse: reads requests, writes replies
    settle        changes of the tables, taken back for requests without a reply
    lost          descriptors and ids that a predecessor has lost
    loop          finds the function of an opcode, and makes a reply of its result
    renames       rename(2), also with RENAME_* flags
    entries       names in directories: lookup, forget, create, link, unlink, readlink
    opens         OPEN, CREATE, TMPFILE: a regular file is opened for a caller
    setattr       SETATTR: the fields that change
    data          data of open files: read and written
    ranges        fallocate, lseek, copy_file_range
    flags         flags and project ids of files, by ioctl(2)
    directories   directory streams: opendir, readdir, readdirplus
    dirents       entries of listings, written into replies
    forgotten     lookups that the kernel gives back
    listing       entries of an open directory, from any offset that was given as one
    offsets       offsets of directory streams that each stand for one place
    stream_marks  marks and openers of directory streams, for the next worker
    xattrs        extended attributes
    changes       changes of mode, owner, size and times
    files         open files: added and found, brought to stable storage, closed
    syncs         whether another thread takes over before a call that may wait for a disk
    attributes    attributes in replies: entries, getattr, statx, statfs, access, syncfs
    locks         fcntl(2) and flock(2) locks, INTERRUPT
    host_locks    locks on the host's files
    descriptions  the open file description of an owner of locks
    waits         waiting for a lock
    lock_table    owners, their locks, and their waits
    lock_records  the owners' locks as the next worker finds them
    held          the locks of bytes of one owner on one file
    backing       FUSE passthrough: ids of the host's files for the kernel
    repeated      requests that are served once more: what is done of them
    opening       flags of open(2) that reach the host, and the opening of a file
    squash        the ids that a request acts with, where ids are squashed
    names         names in directories: found and counted, and their removal
    inodes        inodes in use: borrowed, changed, closed
    grants        files as lookups find them: counted, held, each on its mount
    recent        inodes that are held by file handle, kept open
    reach         paths from the source downwards, for `..` and for squashed callers
    identity      acts as the caller: file system ids, suid and sgid bits
    owners        owners of files: checked before changes
    powerless     acts as another user, without capabilities
    idmap         maps ids between containers and the host
    inode_calls   system calls on inodes, without a path where the kernel can
    notify        notifications to the kernel
    rare          calls of Python: INIT, mounts below the source, the log
    crash         the request in which a thread crashes, noted for the next worker
    memory        the memory of the tables: made, mapped, recovered, given back
    tables        inodes and open files: found, given out, taken back
    places        mounts and places: where inodes lie
    slots         free slots of the tables, and their hash
    counters      requests, data and opens counted; numbers of inodes and open files
    steps         steps of a request at which a test ends the process
    state         the structures of a volume and of a thread
    timeouts      timeouts of names and attributes, which the plugin can change
    journal       how far a request in hand has come, for a successor
    layout        the tables' flat memory, which another process can map
    shared        memory that workers of a volume share
    libc          system calls and constants
    abi           the kernel's FUSE protocol, linux/fuse.h
"""
