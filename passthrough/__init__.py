"""A passthrough FUSE file system over one host directory; it knows nothing of Docker.

Where a request goes, each module importing only those below it:

    __main__.py     serve a directory from the command line, in the foreground
    forkserver.py   forks worker processes, which share what it has loaded
    worker.py       the worker process of one volume: hand-over, lifetime, report
    sandbox.py      what a worker can see and do: namespaces, capabilities, limits
    session/        what speaks FUSE: kernel.py itself, libfuse.py over pyfuse3
    squashed.py     SquashedFs: the same for volumes that squash ids, acting as the caller
    filesystem.py   PassthroughFs: one synchronous method per operation; raises OSError
    operations/     the methods: entries, metadata, files and ranges of them, directories, locks,
                    extended attributes, file flags
    squashing.py    as whom to act where ids are squashed
    readonly.py     what a read-only volume refuses
    ownership.py    who owns what: as whom to create, whom to show
    attributes.py   what replies say about a file, and what SETATTR changes
    names.py        which names are components, where `..` and mount points lead
    xattrs.py       which extended attributes pass
    opening.py      which flags of open(2) reach the host
    locks.py        locks on the host's files, by file and by owner
    waiting.py      system calls that may last for ever, and how they are ended
    handles.py      open files and directory streams, by number
    listing.py      a directory's entries, from any offset
    inodes.py       identity <-> inode number <-> lookup count
    inode_file.py   how an inode is held: O_PATH descriptor or kernel file handle
    places.py       which mount and device a file lies on
    freshness.py    what the kernel was told of a moment ago
    powerless.py    acting as a user that squashing leaves, without a capability
    credentials.py  acting as the caller
    idmap.py        whose ids are whose, squashing
    decisions.py    what applies of what was asked for, and why
    cache.py        policy -> timeouts and open flags
    handover.py     what keeper and worker tell each other
    mount.py        /dev/fuse, mount(2), umount2(2)
    mountinfo.py    what is mounted where
    filehandles.py  whether files can be held by kernel file handles
    fdpath.py       a path to the file behind a descriptor
    config.py       Config and its options: the one contract with who serves
    choices.py      the words that options choose from
    running.py      which Linux this is, and what is switched on in it
    values.py       the values of options from text, and back
    vocabulary.py   other words for options: aliases, and those of other programs
    callfilter.py   the system calls that a worker may not make
    privileges.py   the system calls by which a process gives up what it can do
    memory.py       what interpreter and C library keep of it, and how it goes back
    errors.py       an OSError of our own
    filecalls.py    the system calls on single files that `os` lacks
    syscalls.py     the other ones that it lacks

The rules: nothing but session/libfuse.py knows pyfuse3. An OSError travels untouched
from the system call to the session, which turns it into the reply's errno. File names are bytes.
Paths are never joined below the source: a directory descriptor and one name reach everything but
`..`, which names.py looks for from the source downwards.
"""
