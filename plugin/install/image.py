"""Builds the plugin's image, exports its root file system, and identifies its base images."""

import tarfile
import tempfile
import textwrap
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from plugin.install import engine
from plugin.install.directories import check_space
from plugin.install.installation import InstallationError, Progress
from plugin.install.source_tree import base_images, write_context

IMAGE = "passfs-rootfs:latest"

SCRATCH = "/var/tmp"  # noqa: S108  # for about 100 MB; /tmp may be a small tmpfs
# Bytes. SCRATCH holds the root file system as an archive and unpacked. The temporary directory
# holds docker-py's archive of the plugin.
_SCRATCH_SPACE, _TMP_SPACE = 400_000_000, 200_000_000
_LINE = 90  # characters of a build step, because commands may be long
_CHUNK = 1 << 20  # bytes of an archive that are read from the engine at once
_REASON_LINES = 15  # of a failed build's output, enough for the errors of pip and apt


def check_scratch_space() -> None:
    """Refuse to build if there is too little space for archives of the image.

    Raises:
        InstallationError: names the directory.
    """
    check_space(SCRATCH, _SCRATCH_SPACE)
    check_space(tempfile.gettempdir(), _TMP_SPACE)


def build(client: engine.Client, tree: Path, ca_bundle: Path | None, progress: Progress) -> str:
    """Build IMAGE from *tree* and return its id. During the build pip trusts *ca_bundle* (PEM).

    Raises:
        InstallationError: has the end of the build's output.
    """
    last = deque[str](maxlen=_REASON_LINES)
    image = IMAGE
    with tempfile.TemporaryFile(dir=SCRATCH) as context:
        write_context(context, tree, ca_bundle)
        try:
            for event in client.build(
                fileobj=context, custom_context=True, tag=IMAGE, rm=True, forcerm=True, decode=True
            ):
                if "error" in event:
                    raise InstallationError(_build_failure(client, tree, event["error"], last))
                # By id, because another installation may move the tag at any time.
                image = event.get("aux", {}).get("ID", image)
                text = event.get("stream", "").rstrip()
                last.extend(text.splitlines())
                if text.startswith("Step "):
                    progress.line(textwrap.shorten(text, _LINE, placeholder=" ..."))
        except engine.FAILURES as error:
            reason = engine.reason(error)
            raise InstallationError(_build_failure(client, tree, reason, last)) from error
    return image


def export(client: engine.Client, image: str, directory: Path, progress: Progress) -> None:
    """Unpack the root file system of *image* into the new *directory*, with its owners if root.

    Raises:
        InstallationError: the engine cannot export the image.
    """
    done = 0
    with engine.request("export the image"), tempfile.TemporaryFile(dir=SCRATCH) as file:
        total = client.inspect_image(image)["Size"]
        with _container(client, image) as container:
            for chunk in client.export(container, chunk_size=_CHUNK):
                done += file.write(chunk)
                # The archive is a little longer than the size that the engine reports.
                progress.amount(done, max(done, total))
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            # The stricter filters drop setuid and sticky bits, and our own engine has built the
            # tree. Debian 12's Python 3.11.2 lacks the argument `filter`, so an attribute is set.
            # Devices are left out: the engine makes a plugin's /dev, and the user of a rootless
            # engine cannot make devices.
            archive.extraction_filter = lambda member, _: None if member.isdev() else member
            archive.extractall(directory)  # noqa: S202


def base_ids(client: engine.Client, tree: Path) -> str:
    """Return the ids of the base images of *tree* that the engine has; a pull changes them."""
    with engine.request("list its images"):
        found = [image["Id"] for name in base_images(tree) for image in client.images(name=name)]
    return ",".join(identity.removeprefix("sha256:")[:12] for identity in found)


def _build_failure(client: engine.Client, tree: Path, reason: str, last: deque[str]) -> str:
    with suppress(*engine.FAILURES):  # the engine may be gone
        for base in base_images(tree):
            if not client.images(name=base):
                return (
                    f"the engine has no base image {base} and could not pull it: {reason}. "
                    "If no registry can be reached, `make up` makes the image with debootstrap."
                )
    return "\n".join(["the image could not be built:", *last, reason])


@contextmanager
def _container(client: engine.Client, image: str) -> Iterator[str]:
    """Create a container of *image* for the block; it never runs."""
    with engine.request("create a container to export"):
        container: str = client.create_container(image, network_disabled=True)["Id"]
    try:
        yield container
    finally:
        client.remove_container(container, force=True)
