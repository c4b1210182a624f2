"""A passthrough FUSE file system over one host directory; it knows nothing of Docker.

The rooms from the top down. A module imports from its own room and from the rooms below it:

    __main__    serves a directory from the command line, in the foreground
    worker/     one process for one mount: its start, its sandbox, its report
    session/    FUSE: the kernel's protocol spoken directly, or through pyfuse3
    native/     the request path, compiled
    core/       the request path: inodes, open files, one method for each operation
    identity/   credentials and ids: the ids that a request acts with, the owners that callers see
    options/    the options of a volume, as requested and as in force
    linux/      wrappers of the system calls that `os` lacks, and the features of the running kernel

The docstring of each room lists its modules in the same way.

Only session/libfuse.py imports pyfuse3. An OSError passes unchanged from the system call to the
session, which turns it into the errno of the reply. File names are bytes. The worker never joins
paths below the source: it opens one name in one directory descriptor. `..` is the exception, and
core/names.py resolves it from the source downwards.
"""
