"""The Docker volume plugin: what dockerd talks to. It knows what a volume is, never what a file is.

The way of a request, which is also the order of imports: a module uses those below it, never one
above.

    __main__      the `passfs` command
    engine        what the installer asks of the Docker engine
    daemon        what an engine says of itself: rootless, with other users, on Linux
    remembered    what an install leaves for the next one
    installation  what makes up a managed plugin and its settings
    server        HTTP on the Unix socket; the one place where an error becomes a reply
    greetings     what the engine's connections without a word mean
    listening     the socket itself
    verbs         the table from path to verb
    driver        the nine verbs
    status        what Get and List say of a volume
    survey        a look, after the start, at what each volume serves
    turns         one request at a time for each volume
    keeper        keeps mounts alive: mount point, FUSE descriptor, worker
    detaching     takes mounts down
    mounts        one mount with its worker, and what an earlier plugin has left of them
    targets       mount points, and what lies on them
    worker        one worker process, from its start to its end
    forkserver    the process that forks workers
    manager       the service manager: the socket it listens on, the descriptors it keeps
    output        what our processes write, line by line, to our own log
    source        opens the host's directory that a volume serves, if it may be served
    machine       process ids and paths as the host knows them
    network       file systems on which other machines write too, and what is wrong there
    inventory     what a volume is on disk: its record and, without a source, its directory
    storage       the directories of volumes without a source, and their deletion
    registry      the volumes on disk
    database      the SQLite file of the registry
    reserve       room that is set aside for a full disk
    oldnames      the directories of volumes with names that are accepted no more
    volume        a volume: record, state, references
    settings      the environment
    policy        what an administrator has decided: default options and forbidden ones
    options       `-o key=value` and its refusals
    protocol      the protocol's requests and replies
    blocking      system calls that may never return
    log           the two streams of log lines
    errors        what is refused, with its HTTP status

Engine, daemon and installation put the managed plugin into an engine; requests never pass them.

Only server, driver, survey, turns, keeper, detaching, worker, forkserver, output and blocking know
trio, only server knows HTTP. The rest is synchronous, and runs in threads where it may wait.

Each start finds what an earlier plugin has left, and settles it before the first request: mounts go
on or are cleared away, half of a removal is undone or finished.

Three rules hold the rest together. What an answer promises is on disk before it is given. Get, List
and Path answer from memory and never touch a mount, because dockerd forgets a volume whose Get
fails. And each volume has a lock of its own: a source that hangs holds up its volume and no other.

From the package `passthrough` come the contract with a worker (config, handover), the system calls
around a mount (mount, mountinfo, filehandles, syscalls), whose ids are whose (idmap), what the
machine has (running), and nothing of the file system itself.
"""
