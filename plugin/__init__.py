"""The Docker volume plugin: it answers dockerd's requests, and reads no file in a volume.

The rooms from the top down. A module imports from its own room and from the rooms below it:

    start            the entry point of `passfs`; starts the plugin, or runs __main__
    __main__         the program `passfs` with its commands
    cli/             the commands as typer declares them
    app              the parts of the running plugin put together; its start and its end
    doctor/          examines the machine and the plugin; no request passes here
    install/         installs the managed plugin into an engine; no request passes here
    commands/        the commands about volumes; no request passes here
    api/             the volume plugin protocol and the answers to the commands: HTTP
    metrics/         the metrics for Prometheus
    volumes/         the nine verbs, the records on disk, the directories
    mounting/        mounts: mount points, FUSE descriptors, the workers that serve them
    admin/           the administrator's decisions: settings, policy of options, allowed sources
    volume           a volume: record, state, references
    protocol         the protocol's requests and replies
    counted          the counters of a mount as the control socket tells them
    volume_options   `-o key=value`, and the refusals
    foreign_options  refusals of options of Docker's local driver
    reserve          disk space that the plugin sets aside for a full disk
    events           the events in the life of a volume, with a line of the log for each
    log              the log lines on standard output and standard error
    threads          system calls that may never return, each in a thread
    children         the same for the commands, each in a child process
    process_stat     processor time, memory and start of a process
    errors           refusals, with the HTTP status of each

The docstring of each room lists its modules in the same way.

At its start the plugin finds the mounts of an earlier plugin, and removals that were interrupted.
Before the first request, the keeper adopts the mounts or clears them away, and the inventory
finishes or undoes the removals.

Three rules shape all rooms. The plugin writes a change to disk before it answers the request. Get,
List and Path answer from memory and never touch a mount, because dockerd forgets a volume if its
Get fails. Each volume has a lock of its own, so that a source that hangs delays its own volume
only.

From the package `passthrough` the plugin imports what it shares with a worker: options, hand-over,
control page, counters, system calls, the map of ids, the features of INIT. It imports nothing of
the way of a request.
"""
