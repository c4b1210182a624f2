"""The volume plugin protocol: HTTP on a Unix socket.

The modules, from the top down:

    server          HTTP; the one place where a PluginError becomes a reply
    verbs           the table from path to verb
    listening       the socket
    engine_restart  ends a managed plugin after a restart of its engine
"""
