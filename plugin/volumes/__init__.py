"""Volumes: the verbs of the protocol, the records on disk, the directories.

The modules, from the top down:

    check         the registry against the disk and the mount table, for `passfs check`
    details       the details of a volume for `passfs status`
    changing      changes options of a volume, for `passfs set`
    driver        the nine verbs
    creating      the steps of a Create that look at the host
    upgrade       has this program take over the volumes that an older one serves
    inventory     the volumes on disk: records, and directories of volumes without a source
    registry      the volumes, references and mounts, changed in transactions
    schema        the tables of the registry, and the upgrade of older formats
    source_check  checks the source of each volume after a start
    health        the health of a volume in a word, from its status
    status        the status that Get and List report
    differences   the options that differ between two mounts of a volume
    old_names     directory names of volumes in a registry of an older format
    volume_locks  one request at a time for each volume
    storage       the directories of volumes without a source, and their deletion
    database      the SQLite file of the registry
"""
