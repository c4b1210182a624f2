"""The requests and replies of Docker's volume plugin protocol as types.

The names of fields are written as in Docker's documentation; dockerd itself ignores their case.
Like dockerd, the types ignore unknown fields.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Self

import msgspec

from plugin.counted import Counters
from plugin.errors import BadRequest

# 16 volumes of 1.5 KiB. Other requests wait while one piece is sent.
VOLUMES_PER_PIECE = 16

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"

CONTROL_SOCKET = "control.sock"
"""The name of the control socket in the data directory."""
BENCH_ID = "passfs-bench"
"""The mount id of the reference that `passfs bench` has."""


class Request(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Base of the requests; `parse` builds each from the body of one HTTP request."""

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Return the request from the JSON object in *body*.

        Raises:
            BadRequest: the body is empty or no JSON, or a field is missing or of the wrong type.
        """
        # If the connection breaks under a request, dockerd repeats it with an empty body.
        if not body.strip():
            fields = " and ".join(cls.__struct_encode_fields__)
            raise BadRequest(f"the request's body is empty; expected a JSON object with {fields}")
        try:
            return msgspec.json.decode(body, type=cls)
        # RecursionError: too many levels for msgspec, which also descends into unknown fields.
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            reason = str(error)
            raise BadRequest(
                f"the request's body is not accepted: {reason[:1].lower()}{reason[1:]}"
            ) from error

    @property
    def subject(self) -> str:
        """The volume and the mount id in the request, for the log."""
        return "-"


class EmptyRequest(Request, frozen=True, kw_only=True):
    """Activate, List and Capabilities: no field, and the body may be missing."""

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Return the request from *body*; an empty body is an empty object."""
        return super().parse(body.strip() or b"{}")


class VolumeRequest(Request, frozen=True, kw_only=True):
    """Get, Path and Remove."""

    name: str

    @property
    def subject(self) -> str:
        """The volume."""
        return self.name


class CreateRequest(VolumeRequest, frozen=True, kw_only=True):
    """Create; if there are no options, dockerd may omit the field or send null."""

    opts: dict[str, str] | None = None

    @property
    def options(self) -> Mapping[str, str]:
        """The options as the user gave them."""
        return self.opts or {}


class MountRequest(VolumeRequest, frozen=True, kw_only=True):
    """Mount and Unmount; *id* is of one mount of one container, and may repeat."""

    id: str = msgspec.field(name="ID")

    @property
    def subject(self) -> str:
        """The volume, and the mount id cut to 12 characters, as `docker ps` cuts ids."""
        return f"{self.name} id={self.id[:12]}"


class SetRequest(VolumeRequest, frozen=True, kw_only=True):
    """A change of options, on the control socket; the name is in the path."""

    name: str = ""
    options: Mapping[str, str | None]
    """As `docker volume create -o` takes them; null takes an option away."""
    dry_run: bool = False
    """Only tell what the change would do."""


class ReplyPart(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Base of the replies and of their parts."""

    def encode(self) -> bytes:
        """Return the object as JSON."""
        return msgspec.json.encode(self)


class Reply(ReplyPart, frozen=True, kw_only=True):
    """Base of the replies, and the reply of the verbs that return nothing."""

    @property
    def content_type(self) -> str:
        """The media type of the reply."""
        return CONTENT_TYPE

    def pieces(self) -> Iterator[bytes]:
        """Return the reply as JSON in pieces; the server may answer others between two of them."""
        yield self.encode()


class ActivateReply(Reply, frozen=True, kw_only=True):
    """The kinds of plugin behind this socket."""

    implements: tuple[str, ...] = ("VolumeDriver",)


class Capability(ReplyPart, frozen=True, kw_only=True):
    """The scope of a volume: one machine, or a cluster."""

    scope: str = "local"


class CapabilitiesReply(Reply, frozen=True, kw_only=True):
    """The capabilities of the driver."""

    capabilities: Capability = Capability()


class MountpointReply(Reply, frozen=True, kw_only=True):
    """Mount and Path: the mount point, empty if the volume is not mounted."""

    mountpoint: str


class VolumeInfo(ReplyPart, frozen=True, kw_only=True, omit_defaults=True):
    """A volume as `docker volume inspect` shows it.

    *created_at* must have a time zone. Without one, dockerd fails to decode the whole reply, and
    takes the volume for one that does not exist.
    """

    name: str
    created_at: datetime
    mountpoint: str = ""
    status: msgspec.Raw
    """A JSON object."""


class GetReply(Reply, frozen=True, kw_only=True):
    """One volume."""

    volume: VolumeInfo


class ListReply(Reply, frozen=True, kw_only=True):
    """All volumes."""

    volumes: Sequence[msgspec.Raw]
    """The VolumeInfo of each, as JSON."""

    def pieces(self) -> Iterator[bytes]:
        """Return the reply as JSON in pieces of up to VOLUMES_PER_PIECE volumes."""
        return _listed(b"{", self.volumes)


class VolumeProgram(ReplyPart, frozen=True, kw_only=True):
    """The program that serves a mount."""

    name: str
    older: str
    """Why an older program serves it; empty if the plugin's own does."""
    lost: str = ""
    """How its worker has ended, which makes the mount dead; else empty."""
    milliseconds: float
    """The time that the replacement of an older program took; 0 if there was none."""


class ProgramsReply(Reply, frozen=True, kw_only=True):
    """The programs that serve the mounts; not a part of the volume plugin protocol.

    Of detached mounts, it lists those that an older program serves.
    """

    program: str
    """The identity of the plugin's own program."""
    done: bool
    """True if the plugin has tried to replace each older program since its start."""
    volumes: Sequence[VolumeProgram]


class HealthReply(Reply, frozen=True, kw_only=True):
    """The plugin as a whole, on the control socket."""

    program: str
    """The identity of the plugin's own program."""
    pid: int
    """In the plugin's own pid namespace, as all process ids on the control socket."""
    volumes: int
    mounted: int
    lost: int
    """The number of volumes with references to a mount that has ended."""


class Feature(ReplyPart, frozen=True, kw_only=True):
    """A feature of FUSE's INIT."""

    name: str
    wanted: bool
    used: bool
    reason: str
    """The benefit of the feature and the options that it depends on, or why it cannot be had."""


class MountDetails(ReplyPart, frozen=True, kw_only=True):
    """The mount of a volume, and the processes that serve it."""

    device: str
    """MAJOR:MINOR, as in mountinfo."""
    number: int
    """Another mount of the volume has another number, and counts from zero."""
    loss: str
    """How its worker has ended, which makes the mount dead; else empty."""
    worker: int
    """0 if it is not known."""
    guards: Sequence[int]
    """Those that live."""
    log: Sequence[str]
    """The last lines that its processes have logged."""


class VolumeCounters(ReplyPart, frozen=True, kw_only=True):
    """A mount with its counters."""

    name: str
    """The volume."""
    mount: int
    """Its number, as in MountDetails."""
    worker: int
    """0 if it is not known."""
    counters: Counters | None
    """None if they are unknown: a worker of an older passfs, or the mount has ended."""


class CountersReply(Reply, frozen=True, kw_only=True):
    """The counters of all mounts, on the control socket."""

    at_ns: int
    """When they were read, by CLOCK_MONOTONIC of clock_gettime(2)."""
    volumes: Sequence[msgspec.Raw]
    """The VolumeCounters of each, as JSON."""

    def pieces(self) -> Iterator[bytes]:
        """Return the reply as JSON in pieces of up to VOLUMES_PER_PIECE volumes."""
        return _listed(b'{"AtNs":%d,' % self.at_ns, self.volumes)


class DetailsReply(Reply, frozen=True, kw_only=True):
    """One volume, on the control socket."""

    volume: VolumeInfo
    state: str
    """As in `State` of volume.py."""
    users: Mapping[str, int]
    """The count of references by mount id."""
    dead: Mapping[str, int]
    """The references to mounts that have ended."""
    mount: MountDetails | None
    at_ns: int
    """As in CountersReply."""
    counters: Counters | None
    """None if it is not mounted; else as in VolumeCounters."""
    features: Sequence[Feature]
    """Empty if they are unknown: not mounted, session=libfuse, or a worker of an older passfs."""


class OptionChange(ReplyPart, frozen=True, kw_only=True):
    """An option with another value."""

    option: str
    before: str
    """Empty if it is not known, because the options of before are not accepted any more."""
    after: str
    when: str
    """"now" or "next mount"."""


class SetReply(Reply, frozen=True, kw_only=True):
    """A change of options, on the control socket."""

    changes: Sequence[OptionChange]
    notes: Sequence[str]


class Finding(ReplyPart, frozen=True, kw_only=True, order=True):
    """A disagreement of the registry, the disk and the mount table."""

    volume: str
    """The volume, or the name of a directory that belongs to none; empty for all volumes."""
    problem: str
    meaning: str
    remedy: str


CANNOT_BE_MOUNTED = "it cannot be mounted: "
"""The beginning of the problem of a volume that no further container can have."""


class CheckReply(Reply, frozen=True, kw_only=True):
    """The result of a check, on the control socket."""

    findings: Sequence[Finding]
    """Empty if all is well."""


class ErrorReply(Reply, frozen=True, kw_only=True):
    """A refusal, or a bug; its status is never 200, because podman then ignores `Err`."""

    err: str


def _listed(head: bytes, volumes: Sequence[msgspec.Raw]) -> Iterator[bytes]:
    """Return a JSON object that begins with *head* and ends with *volumes*, in pieces."""
    yield head + b'"Volumes":['
    for first in range(0, len(volumes), VOLUMES_PER_PIECE):
        some = b",".join(volumes[first : first + VOLUMES_PER_PIECE])
        yield b",%b" % some if first else some
    yield b"]}"
