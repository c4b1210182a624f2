"""The administrator's decisions, and the facts about the host that they depend on.

The modules, from the top down:

    settings       the settings in the environment
    address        the address of a listener
    source         opens the directory that a volume serves, if the administrator allows it
    users          looks up names of the host's users and groups
    policy         default options and forbidden options
    network        network file systems, and the cache policies that are wrong on them
    new_directory  makes a directory that is missing
    host           process ids and paths as the host sees them
"""
