"""Credentials and ids: the ids that a request acts with, and the owner that a caller sees.

The modules, from the top down:

    powerless    runs calls as another user, without capabilities
    ownership    the owners of files: for creation, chown(2) and replies
    squashing    decides the ids to act with in a volume that squashes ids
    credentials  sets the caller's fsuid and fsgid, and removes single capabilities
    attributes   the attributes in replies, and the changes of SETATTR
    idmap        maps ids between host and container, and squashes them
"""
