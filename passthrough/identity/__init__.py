"""Ids and credentials, as far as the plugin and the start of a worker need them.

The modules, from the top down:

    credentials  the worker's capabilities and groups
    idmap        maps ids of containers to ids of the host, and squashes them
"""
