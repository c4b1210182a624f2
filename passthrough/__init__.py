"""A passthrough FUSE file system over one host directory; it knows nothing of Docker.

The rooms from the top down. A module imports from its own room and from the rooms below it:

    __main__      serves a directory from the command line, in the foreground
    mount_helper  the helper of mount(8)
    standalone/   a mount without Docker: its start and its end
    worker/       the processes of one mount: their start, their sandbox, the report
    session/      FUSE: the kernel's protocol spoken directly, or through pyfuse3
    core/         the request path, compiled
    identity/     ids and credentials, for the plugin and the start of a worker
    options/      the options of a volume, as requested and as in force
    linux/        wrappers of system calls that `os` lacks, and the features of the running kernel

The docstring of each room lists its modules in the same way.

session/libfuse.py imports pyfuse3, and core/binding.pyx its C types. In the request path,
functions return 0 or a negative errno, and a reply has the errno of the system call that failed.
File names are bytes. The worker never joins paths below the source: it opens one name in one
directory descriptor. `..` is the exception, and core/reach.pyx resolves it from the source
downwards.
"""
