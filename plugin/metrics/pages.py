"""The pages at the address of the metrics, as replies."""

from collections.abc import Iterator
from typing import Final

from plugin.protocol import Reply

# Other requests wait while one piece is sent.
BYTES_PER_PIECE: Final = 1 << 16


class Liveness(Reply, frozen=True, kw_only=True, rename=None):
    """The plugin as a whole, at the address of the metrics."""

    status: str = "ok"
    """The plugin answers; no volume makes it unhealthy."""
    version: str
    program: str
    """The identity of the plugin's own program."""
    volumes: int
    mounted: int
    lost: int
    """As in HealthReply."""

    @property
    def content_type(self) -> str:
        """The media type of the reply."""
        return "application/json"


class Exposition(Reply, frozen=True, kw_only=True):
    """The metrics in a text format of Prometheus."""

    text: bytes
    form: str
    """The media type of the format."""

    @property
    def content_type(self) -> str:
        """The media type of the reply."""
        return self.form

    def pieces(self) -> Iterator[bytes]:
        """Return the text in pieces; the server may answer others between two of them."""
        for first in range(0, len(self.text), BYTES_PER_PIECE):
            yield self.text[first : first + BYTES_PER_PIECE]
