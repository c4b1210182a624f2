"""Mounts: mount points, FUSE descriptors, and the workers that serve them.

The modules, from the top down:

    keeper         makes mounts, keeps them served, takes them down
    succession     processes of a newer program take over a mount
    detaching      detaches mounts, with a deadline for each
    mount_spec     the order to make one mount; the deadline of a Mount
    mount          one mount with its worker, made by this plugin or adopted from an earlier one
    program        the identity of the program that workers run
    worker         the processes that serve one mount, from their start to their end
    failures       requests that fail, as a line of the log at the level debug
    standby        the control page: the worker that serves now, the guards, deaths of workers
    spawner        starts worker processes by way of the fork server
    process        the process of a mount that the plugin has started or adopted
    orphans        reaps the processes of mounts whose parents have ended
    worker_output  the output of workers, line by line into the log
    fd_store       the service manager: its socket, and the descriptors that it stores
    mountpoints    the mount directory: mount points, and the mounts on them
"""
