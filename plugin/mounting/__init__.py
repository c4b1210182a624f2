"""Mounts: mount points, FUSE descriptors, and the workers that serve them.

The modules, from the top down:

    keeper         makes mounts, keeps them served, takes them down; the deadline of a Mount
    detaching      detaches mounts, with a deadline for each
    mount          one mount with its worker, made by this plugin or adopted from an earlier one
    worker         one worker process, from its start to its end
    spawner        starts worker processes by way of the fork server
    worker_output  the output of workers, line by line into the log
    fd_store       the service manager: its socket, and the descriptors that it stores
    mountpoints    the mount directory: mount points, and the mounts on them
"""
