"""The volume plugin protocol, the answers to the `passfs` command, and the metrics: HTTP.

The modules, from the top down:

    server          paths, and the one place where a PluginError becomes a reply
    connection      HTTP on one connection
    answers         the table from path to answer, of the control socket
    verbs           the table from path to verb
    listening       the sockets
    engine_restart  ends a managed plugin after a restart of its engine
"""
