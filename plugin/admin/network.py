"""File systems that other machines change as well, and which cache policies are wrong on them.

A volume's kernel hears nothing of what happens on another machine, so it must not rely for long on
what it remembers. The file system itself does the same: NFS keeps attributes for 3 to 60 s.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from passthrough.linux import mountinfo, syscalls
from passthrough.options.choices import CachePolicy, Submounts
from passthrough.options.effective import Effective
from passthrough.options.table import OptionError, as_text

LONGEST_S: Final = 5.0
"""How long names and attributes may stay known there: more than this is for who knows that nobody
else writes."""

# f_type of statfs(2) -> name; linux/magic.h, and those of file systems outside of Linux's tree.
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

# The type in mountinfo -> name: what is mounted below a source is not asked itself, because it may
# not answer; and all of FUSE has one f_type, whose subtype tells who serves it.
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


class Wrong(NamedTuple):
    """An option that has a wrong value there."""

    option: str
    is_wrong: Callable[[Effective], bool]
    accepted: str


def _is_too_long(option: str) -> Callable[[Effective], bool]:
    return lambda applies: getattr(applies, option) > LONGEST_S


WRONG: Final = (
    Wrong(
        "cache",
        lambda applies: applies.cache in {CachePolicy.METADATA, CachePolicy.ALWAYS},
        "never or auto",
    ),
    Wrong("writeback", lambda applies: applies.writeback, "false"),
    *(
        Wrong(option, _is_too_long(option), f"at most {LONGEST_S:g}s")
        for option in (
            *("entry_timeout", "attr_timeout", "dir_entry_timeout"),
            *("dir_attr_timeout", "negative_timeout"),
        )
    ),
)


def check(source: str, config: Effective, fd: int, mounts: Sequence[mountinfo.MountEntry]) -> None:
    """Refuse to serve directory *fd* as *config* asks if other machines may change what is in it.

    Blocks where the file system does not answer.

    Raises:
        OptionError: the option that must be another, and why; *source* is what the user calls it.
        LookupError: *fd* lies on none of *mounts*.
    """
    wrong = next((wrong for wrong in WRONG if wrong.is_wrong(config)), None)
    if wrong is not None and (found := next(_found(source, config, fd, mounts), "")):
        value = as_text(config)[wrong.option]
        reason = f"{value!r} is wrong for {found}: other machines may change it unseen"
        raise OptionError(wrong.option, value, wrong.accepted, reason)


def _found(
    source: str, config: Effective, fd: int, mounts: Sequence[mountinfo.MountEntry]
) -> Iterator[str]:
    """Each part of the volume that lies on such a file system, in words."""
    its_type, its_name = syscalls.filesystem_type(fd), mountinfo.of(mounts, fd).fstype
    name = _BY_TYPE.get(its_type) or _BY_NAME.get(its_name)
    if name:
        yield f"{source!r}, which lies on {name}"
    if config.submounts is Submounts.CROSS:
        path = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
        for mount in mounts:
            name = _BY_NAME.get(mount.fstype)
            if name and mount.target != path and mountinfo.is_below(mount.target, path):
                where = os.path.join(source, os.fsdecode(os.path.relpath(mount.target, path)))
                yield f"{where!r}, where {name} is mounted"
