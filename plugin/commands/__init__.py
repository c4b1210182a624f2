"""The commands about volumes, such as `passfs ls`; the plugin runs nothing of this room.

They run on the host as root, and ask the plugin by the control socket in its data directory. So
they work alike with a managed plugin and with the service. Facts about processes come from the
host's /proc, which a managed plugin does not see. `bench` alone works in a mount, which may hang.

The modules, from the top down:

    screen        shows the volumes by load on a terminal, live
    terminal      shows a document: with colours and lines on a terminal, else as plain text
    bench         measures a volume against its source
    workloads     the calls that `bench` measures
    inquiry       asks the plugin about volumes, and adds facts about processes
    changes       changes options of volumes, and shows the differences
    sampling      takes samples of the load of all volumes
    ranking       the volumes by load as rows and a document
    volume_view   one volume as a document
    views         other answers of the plugin as rows and documents
    process_view  processes as a table
    load          rates and times of requests by the counters
    document      a document of pairs and tables, and its plain text
    units         durations, times, rates and sizes as text
    mounts        mounts without Docker
    journal       the lines about a volume in the log
    directory     the directory of a volume on the host: whose it is
    processes     the processes of a volume, by their ids on the host
    asking        questions to the plugin
    connection    HTTP on a Unix socket
"""
