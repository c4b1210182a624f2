"""Network file systems, and the cache policies that are wrong on them.

The kernel does not learn of changes on another machine, so a volume on a network file system must
not cache names and attributes for long. Network file systems limit their own caches in the same
way: NFS keeps attributes for 3 to 60 s.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from passthrough.linux import mountinfo, syscalls
from passthrough.options.choices import CachePolicy, Submounts
from passthrough.options.effective import Effective
from passthrough.options.table import OptionError, as_text

LONGEST_S: Final = 5.0
"""The longest timeout of names and attributes on a network file system. A longer one is right only
if no other machine writes."""

# f_type of statfs(2) -> name: from linux/magic.h, and of file systems outside of Linux's tree.
_BY_TYPE: Final = {
    0x6969: "NFS",
    0xFF534D42: "SMB",
    0xFE534D42: "SMB",
    0x517B: "SMB",
    0x00C36400: "CephFS",
    0x01021997: "9P",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
    0x20030528: "OrangeFS",
    0xAAD7AAEA: "PanFS",
    0xBEEFDEAD: "StorNext",
    0x61636673: "ACFS",
    0x786F4256: "a shared folder of VirtualBox",
    0xBACBACBC: "a shared folder of VMware",
}

# The type in mountinfo -> name: for mounts below a source, because statfs(2) of such a mount may
# hang. And for FUSE: all FUSE file systems have the same f_type, but differ in the subtype.
_BY_NAME: Final = {
    "nfs": "NFS",
    "nfs4": "NFS",
    "cifs": "SMB",
    "smb3": "SMB",
    "smbfs": "SMB",
    "ceph": "CephFS",
    "fuse.ceph": "CephFS",
    "fuse.ceph-fuse": "CephFS",
    "9p": "9P",
    "afs": "AFS",
    "coda": "Coda",
    "gfs2": "GFS2",
    "ocfs2": "OCFS2",
    "lustre": "Lustre",
    "gpfs": "GPFS",
    "beegfs": "BeeGFS",
    "orangefs": "OrangeFS",
    "pvfs2": "OrangeFS",
    "panfs": "PanFS",
    "cvfs": "StorNext",
    "acfs": "ACFS",
    "vboxsf": "a shared folder of VirtualBox",
    "vmhgfs": "a shared folder of VMware",
    "fuse.vmhgfs-fuse": "a shared folder of VMware",
    "virtiofs": "virtiofs",
    "fuse.curlftpfs": "curlftpfs",
    "fuse.gcsfuse": "gcsfuse",
    "fuse.glusterfs": "GlusterFS",
    "fuse.goofys": "goofys",
    "fuse.juicefs": "JuiceFS",
    "fuse.lizardfs": "LizardFS",
    "fuse.mfs": "MooseFS",
    "fuse.mount-s3": "Mountpoint for S3",
    "fuse.rclone": "rclone",
    "fuse.s3fs": "s3fs",
    "fuse.seaweedfs": "SeaweedFS",
    "fuse.sshfs": "sshfs",
}


class Limit(NamedTuple):
    """A limit of an option on network file systems."""

    option: str
    is_exceeded: Callable[[Effective], bool]
    accepted: str


def _is_too_long(option: str) -> Callable[[Effective], bool]:
    return lambda options: getattr(options, option) > LONGEST_S


LIMITS: Final = (
    Limit(
        "cache",
        lambda options: options.cache in {CachePolicy.METADATA, CachePolicy.ALWAYS},
        "never or auto",
    ),
    Limit("writeback", lambda options: options.writeback, "false"),
    *(
        Limit(option, _is_too_long(option), f"at most {LONGEST_S:g}s")
        for option in (
            *("entry_timeout", "attr_timeout", "dir_entry_timeout"),
            *("dir_attr_timeout", "negative_timeout"),
        )
    ),
)


def check(source: str, options: Effective, fd: int, mounts: Sequence[mountinfo.MountEntry]) -> None:
    """Refuse the directory *fd* if it is on a network file system and *options* exceed a limit.

    Blocks while the file system does not answer. *source* is the user's name of the directory.

    Raises:
        OptionError: names the option and its limit.
        LookupError: *fd* is on none of *mounts*.
    """
    limit = next((limit for limit in LIMITS if limit.is_exceeded(options)), None)
    if limit is not None and (found := next(_found(source, options, fd, mounts), "")):
        value = as_text(options)[limit.option]
        reason = f"{value!r} is wrong for {found}: this machine does not notice changes by others"
        raise OptionError(limit.option, value, limit.accepted, reason)


def _found(
    source: str, options: Effective, fd: int, mounts: Sequence[mountinfo.MountEntry]
) -> Iterator[str]:
    """Describe each part of the volume that is on a network file system."""
    number, fstype = syscalls.filesystem_type(fd), mountinfo.of(mounts, fd).fstype
    name = _BY_TYPE.get(number) or _BY_NAME.get(fstype)
    if name:
        yield f"{source!r}, which lies on {name}"
    if options.submounts is Submounts.CROSS:
        path = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
        for mount in mounts:
            name = _BY_NAME.get(mount.fstype)
            if name and mount.target != path and mountinfo.is_below(mount.target, path):
                part = os.path.join(source, os.fsdecode(os.path.relpath(mount.target, path)))
                yield f"{part!r}, where {name} is mounted"
