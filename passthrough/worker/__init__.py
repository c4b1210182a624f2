"""The worker: one process for one mount, and its confinement.

The modules, from the top down:

    forkserver  forks worker processes, which share the modules that it has loaded
    process     the worker process of one volume: hand-over, lifetime, report
    sandbox     what the worker can see and do: namespaces, capabilities, limits
    seccomp     the system calls that the worker may not make
    handover    the messages between keeper and worker
    fuse_mount  /dev/fuse, mount(2), umount2(2)
"""
