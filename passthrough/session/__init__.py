"""FUSE: reads requests, calls PassthroughFs, writes replies.

There are two sessions: `kernel` speaks the kernel's protocol itself, `libfuse` uses pyfuse3.

    kernel         the session `kernel`: INIT, the threads, the end
    handlers/      one function for each opcode
    thread_pool    the threads that read /dev/fuse
    ring_pools     the threads that serve io_uring entries, per processor
    thread_slots   one thread of a pool, and samples of its work
    session        the state that handlers share, and the boundary where exceptions become errnos
    rings          the io_uring queues of one processor
    backing        backing files of FUSE passthrough
    notifications  notifications to the kernel
    channel        reads requests from /dev/fuse and writes replies
    request        one request in service
    polling        polls /dev/fuse before a thread sleeps
    libfuse_run    the session `libfuse`: its start, and the event loop under pyfuse3
    libfuse        the handlers that pyfuse3 calls
    wire           the bytes of requests and replies
    negotiation    the flags of INIT
    shutdown       signals and the end of the keeper
    uring          the io_uring system calls
    abi            opcodes, flags and structures of linux/fuse.h
"""
