"""`passfs doctor`: examines the machine, the engine, and the plugin with its volumes.

A check is a function from `Facts` to what it has found. It changes nothing, and touches no mount of
passfs. Each check runs in a child process with a time limit, because a path may lead to a dead
network file system.

The modules, from the top down:

    report       the findings as a document, and their verdict
    examination  the table of checks, in the order of the report
    mounts       dead mounts, sources that a mount hides, propagation
    volumes      the health of the volumes, and the findings of `passfs check`
    running      the engine, the plugin, and their versions
    storage      the data directory and its file system
    limits       limits of descriptors, threads and locked memory
    rights       the user of the command, and the capabilities of the plugin
    kernel       the kernel: its release, FUSE, io_uring, what the sandbox needs
    facts        what several checks need to know
    finding      what a check has found
"""
