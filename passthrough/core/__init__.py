"""The request path in Python: PassthroughFs, one synchronous method for each operation.

The modules, from the top down:

    squashed       SquashedFs: PassthroughFs for volumes that squash ids, acting as the caller
    filesystem     PassthroughFs, composed of the groups in operations/; raises OSError
    operations/    entries, metadata, files, ranges, directories, locks, xattrs, file flags
    inodes         identity <-> nodeid <-> lookup count
    locks          locks on the host's files, by file and by owner
    inode_file     how an inode is held: O_PATH descriptor or kernel file handle
    handles        open files and directory streams, by fh
    xattrs         the extended attributes that pass
    readonly       the operations that a read-only volume refuses
    opening        the flags of open(2) that reach the host
    names          checks of names, and the resolution of `..` and of mount points
    waiting        system calls that may block for ever, and how they are interrupted
    mount_devices  the mount and the device of a file
    listing        the entries of a directory, from any offset
    freshness      names and attributes that the kernel was told a moment ago
"""
