"""FUSE: starts and ends the core's service, and answers what the core leaves to Python.

There are two sessions: `kernel` speaks the kernel's protocol itself, `libfuse` uses pyfuse3.

    libfuse_run  the session `libfuse`: its start, and the event loop under pyfuse3
    libfuse      the handlers that pyfuse3 calls
    kernel       the session `kernel`: INIT, the threads, the end
    rare         the calls of the core: INIT, mounts below the source, lines of the log
    backing      FUSE passthrough: the depth of the source, and why files do not pass through
    probe        asks the kernel for its INIT, without a mount
    shutdown     signals and the end of the keeper
    wire         the bytes of requests and replies that Python packs and unpacks
    negotiation  the flags of INIT
    abi          opcodes, flags and other numbers of linux/fuse.h
"""
