"""The requests and replies of Docker's volume plugin protocol as types, not what they do.

dockerd matches names without regard to case and ignores what it does not know; we write them as its
documentation does, and ignore unknown fields in turn.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Self

import msgspec

from plugin.errors import BadRequest

# 16 volumes of 1.5 KiB: other requests wait while a piece is sent, and no more than one of them.
VOLUMES_A_PIECE = 16

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"


class Request(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Base of the requests; each is built by `parse` from the body of one HTTP request."""

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read a request from the JSON object in *body*.

        Raises:
            BadRequest: the body is empty, no JSON, or lacks a field; says which and where.
        """
        # dockerd repeats a request with an empty body when the connection broke under the first.
        if not body.strip():
            fields = " and ".join(cls.__struct_encode_fields__)
            raise BadRequest(f"the request's body is empty; expected a JSON object with {fields}")
        try:
            return msgspec.json.decode(body, type=cls)
        # RecursionError: msgspec descends no deeper than Python calls, in unknown fields as well.
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            reason = str(error)
            raise BadRequest(
                f"the request's body is not accepted: {reason[:1].lower()}{reason[1:]}"
            ) from error

    @property
    def subject(self) -> str:
        """The volume and the mount id that the request is about, for a line in the log."""
        return "-"


class EmptyRequest(Request, frozen=True, kw_only=True):
    """Activate, List and Capabilities: no field, and the body itself may be missing."""

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read a request from *body*, where nothing at all stands for the empty object."""
        return super().parse(body.strip() or b"{}")


class VolumeRequest(Request, frozen=True, kw_only=True):
    """Get, Path and Remove."""

    name: str

    @property
    def subject(self) -> str:
        """The volume."""
        return self.name


class CreateRequest(VolumeRequest, frozen=True, kw_only=True):
    """Create; without options dockerd may leave them out, or send null."""

    opts: dict[str, str] | None = None

    @property
    def options(self) -> Mapping[str, str]:
        """The options as the user gave them."""
        return self.opts or {}


class MountRequest(VolumeRequest, frozen=True, kw_only=True):
    """Mount and Unmount; *id* stands for one mount of one container and may repeat."""

    id: str = msgspec.field(name="ID")

    @property
    def subject(self) -> str:
        """The volume, and as much of the id as tells two containers apart."""
        return f"{self.name} id={self.id[:12]}"


class Reply(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Base of the replies; by itself the answer of the verbs that return nothing."""

    def encode(self) -> bytes:
        """The reply as JSON."""
        return msgspec.json.encode(self)

    def pieces(self) -> Iterator[bytes]:
        """Return the reply as JSON in pieces, each of which is sent in one go."""
        yield self.encode()


class ActivateReply(Reply, frozen=True, kw_only=True):
    """The kinds of plugin that listen here."""

    implements: tuple[str, ...] = ("VolumeDriver",)


class Capability(Reply, frozen=True, kw_only=True):
    """Whether a volume exists on one machine or in a whole cluster."""

    scope: str = "local"


class CapabilitiesReply(Reply, frozen=True, kw_only=True):
    """What dockerd may expect of the driver's volumes."""

    capabilities: Capability = Capability()


class MountpointReply(Reply, frozen=True, kw_only=True):
    """Mount and Path: where the volume is mounted, empty when it is not."""

    mountpoint: str


class VolumeInfo(Reply, frozen=True, kw_only=True, omit_defaults=True):
    """A volume as `docker volume inspect` shows it.

    *created_at* must carry a time zone: dockerd fails to decode the whole reply otherwise, and
    takes that for a volume that does not exist.
    """

    name: str
    created_at: datetime
    mountpoint: str = ""
    status: msgspec.Raw | None = None
    """A JSON object."""


class GetReply(Reply, frozen=True, kw_only=True):
    """One volume."""

    volume: VolumeInfo


class ListReply(Reply, frozen=True, kw_only=True):
    """All volumes."""

    volumes: Sequence[msgspec.Raw]
    """Each a VolumeInfo, encoded."""

    def pieces(self) -> Iterator[bytes]:
        """Return the reply as JSON in pieces of some volumes."""
        yield b'{"Volumes":['
        for first in range(0, len(self.volumes), VOLUMES_A_PIECE):
            some = b",".join(self.volumes[first : first + VOLUMES_A_PIECE])
            yield b",%b" % some if first else some
        yield b"]}"


class ErrorReply(Reply, frozen=True, kw_only=True):
    """A refusal; never sent with status 200, where podman would not look for it."""

    err: str
