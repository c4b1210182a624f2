"""The worker: one process for one mount, and its confinement.

The modules, from the top down:

    forkserver  forks worker processes, which share the modules that it has loaded
    process     the worker process of one volume: hand-over, lifetime, report
    sandbox     the confinement of a worker: namespaces, capabilities, limits
    seccomp     the system calls that a worker must not make
    handover    the messages between keeper and worker
    fuse_mount  /dev/fuse, mount(2), umount2(2)
"""
