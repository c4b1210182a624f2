"""The request path, compiled: bytes of requests in, bytes of replies out, no Python object between.

The modules, from the top down:

    face         the core for Python: sessions, handlers of rare requests, tests
    binding      the objects of pyfuse3: filled from replies, and waits for requests
    loop         finds the function of an opcode, and turns its result into a reply
    device       /dev/fuse: reads requests, writes replies
    polling      polls /dev/fuse for the next request, if trials show that this pays
    entries      names in directories: lookup, forget, create, link, unlink, readlink
    renames      rename(2), also with RENAME_* flags
    opens        OPEN, CREATE, TMPFILE: a regular file is opened for a caller
    data         data of open files: read and written
    files        open files: added and found, brought to stable storage, closed
    syncs        whether another thread takes over before a call that may wait for a disk
    directories  directory streams: opendir, readdir, readdirplus
    listing      entries of an open directory, from any offset that was given as one
    offsets      offsets of directory streams that each stand for one place
    attributes   attributes of inodes: getattr, setattr, statfs, access
    xattrs       extended attributes
    ranges       fallocate, lseek, copy_file_range
    flags        flags and project ids of files: the few ioctls that pass
    locks        fcntl(2) and flock(2) locks on the host's files
    backing      FUSE passthrough: ids of the host's files for the kernel
    opening      flags of open(2) that reach the host, and the opening of what is there
    squash       as whom a request acts where ids are squashed
    names        names in directories: found and counted, and what their removal leaves
    inodes       inodes in use: borrowed, changed, forgotten
    grants       files as lookups find them: counted, held, each on its mount
    recent       directories that are held by file handle and were used last, kept open
    reach        paths from the source downwards, for `..` and for squashed callers
    identity     acts as the caller: file system ids, the right to keep suid and sgid bits
    owners       owners of files: checked before changes
    powerless    acts as another user, without capabilities
    idmap        maps ids between containers and the host
    memory       the memory of the tables: made, mapped, recovered, given back
    tables       inodes and open files: found, given out, taken back
    places       mounts and places: where inodes lie
    slots        free slots of the tables, and their hash
    state        the structures of a volume and of a thread
    layout       the tables' flat memory, which another process can map
    libc         system calls and constants
    abi          the kernel's FUSE protocol, linux/fuse.h
"""
