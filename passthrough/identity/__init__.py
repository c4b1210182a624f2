"""Credentials and ids: as whom a request acts, and which owner a caller sees.

The modules, from the top down:

    powerless    runs a call as a squashed user, without capabilities
    ownership    owners: as whom to create, which owner to show
    squashing    decides as whom to act where ids are squashed
    credentials  takes on the caller's fsuid and fsgid
    attributes   the attributes in replies, and the changes of SETATTR
    idmap        maps ids between host and container, and squashes them
"""
