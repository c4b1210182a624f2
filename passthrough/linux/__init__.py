"""Wrappers of the system calls that `os` lacks, and the features of the running kernel.

The modules, from the top down:

    privileges       the system calls that reduce the rights of a process
    mountinfo        /proc/self/mountinfo
    filehandles      whether a file system supports kernel file handles
    memory           the memory of the C library
    pidfd            the ends of processes, by their process descriptors
    kernel_features  the release of Linux, and the features that are enabled
    syscalls         the other system calls that `os` lacks
    fdpath           the path of the file behind a descriptor
    errors           makes an OSError from an errno
"""
