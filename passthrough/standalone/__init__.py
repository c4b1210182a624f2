"""A mount without Docker: from the command line, or for mount(8).

The modules, from the top down:

    statuses    runs a step of a command; its messages and its exit status
    unmounting  unmounts, and waits for the end of the processes
    background  serves a mount in processes of their own
    foreground  serves a mount until this process is told to end
    making      makes the mount: options, checks, mount(2)
    interrupts  holds SIGINT and SIGTERM where a mount could be left behind
    records     the mounts without Docker of this machine, and whether processes serve them
    words       the words of `-o`, as mount(8) splits them
"""
