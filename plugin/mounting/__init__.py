"""Mounts: mount points, FUSE descriptors, and the workers that serve them.

The modules, from the top down:

    keeper         makes mounts and keeps them: mount point, FUSE descriptor, worker
    detaching      takes mounts down
    mount          one mount with its worker, made by this plugin or left by an earlier one
    worker         one worker process, from its start to its end
    spawner        starts worker processes by the fork server
    worker_output  reads the output of workers line by line into the log
    fd_store       the service manager: its socket, and the descriptors that it keeps
    mountpoints    mount points, and the mounts on them
"""
