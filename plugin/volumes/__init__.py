"""Volumes: the verbs of the protocol, the records on disk, the directories.

The modules, from the top down:

    driver        the nine verbs
    inventory     a volume on disk: its record and, without a source, its directory
    registry      the records of all volumes
    source_check  checks, after a start, the source of each volume
    status        the status that Get and List report
    old_names     directories of volumes with names that are no longer accepted
    volume_locks  one request at a time for each volume
    storage       the directories of volumes without a source, and their deletion
    database      the SQLite file of the registry
"""
