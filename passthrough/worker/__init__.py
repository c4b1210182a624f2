"""The processes of one mount, the worker and its guards, and their confinement.

The modules, from the top down:

    forkserver  forks worker processes, which share the modules that it has loaded
    process     the worker process of one volume: hand-over, lifetime, report
    guarded     a volume with a standby: what its guard and its workers do
    standby     the guards: processes that make the worker anew when it dies
    successor   a worker that a guard has just made, and the one before it
    trial       the first worker in place of another program
    predecessor  the guards of another program, in whose place this one goes on
    backoff     the wait between the death of a worker and the next one
    sandbox     the confinement of a worker: namespaces, capabilities, limits
    seccomp     the filter of a worker's system calls
    calls       the system calls that a worker makes, and those refused by name
    record      the record of a session, for another program
    control     the page of memory that plugin, guards and worker share
    counters    requests that a volume has served, with their times and errors
    live        timeouts that change while a volume is served
    handover    the messages between keeper and worker
    events      events in the life of a volume, and their lines
    stderr      lines of the log, for which no process waits
    fuse_mount  /dev/fuse, mount(2), umount2(2)
"""
