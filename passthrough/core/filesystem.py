"""PassthroughFs: one method per FUSE operation, on one host directory.

Plain and synchronous: a method does its system calls and returns, or raises the OSError that the
caller of the operation shall see. It knows no transport; a session decodes requests into calls and
encodes what comes back. Permissions are the kernel's to check before a request is sent
(default_permissions); what a method adds is the caller's identity on what it creates.

The methods are in operations/, in groups by what they act on.

Inode numbers and handle numbers are the ones that earlier replies gave. Every Entry that a method
returns counts as one lookup, which the session must give back with `forget` if it cannot deliver
the reply. Names are bytes and single components. Only regular files and directories are ever
opened for real: opening a device, fifo or socket here would act on the host's (CVE-2020-35517).
"""

from passthrough.core.operations.directories import DirectoryOperations
from passthrough.core.operations.entries import EntryOperations
from passthrough.core.operations.extended import ExtendedOperations
from passthrough.core.operations.files import FileOperations
from passthrough.core.operations.flags import FlagOperations
from passthrough.core.operations.locking import LockingOperations
from passthrough.core.operations.metadata import MetadataOperations
from passthrough.core.operations.ranges import RangeOperations


class PassthroughFs(
    DirectoryOperations,
    EntryOperations,
    ExtendedOperations,
    FileOperations,
    FlagOperations,
    LockingOperations,
    MetadataOperations,
    RangeOperations,
):
    """The operations on one source directory. Not for use by several mounts at once."""
