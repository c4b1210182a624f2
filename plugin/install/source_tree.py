"""The source tree that a plugin is built from: its files, their digest, and the build context."""

import hashlib
import io
import json
import re
import tarfile
import tomllib
from pathlib import Path
from typing import IO, Any

from plugin.install.installation import InstallationError

CONTEXT = (
    *("Dockerfile", "LICENSE", "README.md"),
    *("packaging/passfs.1", "passthrough", "plugin", "pyproject.toml", "setup.py"),
)
"""The files of the image build; .dockerignore lists the same for `docker build`."""

BUNDLE = "ca-bundle.crt"
"""Name of the CA bundle in the build's context."""

_NO_IMAGE = "scratch"  # the empty base of a Dockerfile


def read_manifest(tree: Path) -> dict[str, Any]:
    """Return the config.json of *tree*, with the version in the description.

    Raises:
        InstallationError: *tree* is not a source tree of this project.
    """
    missing = [name for name in (*CONTEXT, "config.json") if not (tree / name).exists()]
    if missing:
        raise InstallationError(
            f"{tree} is not the source tree of passfs (no {', '.join(missing)}), and the plugin is "
            "built from the source tree. Run `passfs install` from a checkout's .venv (`make up` "
            "makes one), or name the checkout with --tree."
        )
    manifest: dict[str, Any] = json.loads((tree / "config.json").read_text(encoding="utf-8"))
    manifest["description"] = f"passfs {version(tree)}: {manifest['description']}"
    return manifest


def version(tree: Path) -> str:
    """Return the version of *tree*; pyproject.toml has the only copy."""
    project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def base_images(tree: Path) -> list[str]:
    """Return the names of the images that the Dockerfile of *tree* starts from."""
    text = (tree / "Dockerfile").read_text(encoding="utf-8")
    names = re.findall(r"^FROM\s+(\S+)", text, re.MULTILINE)
    return [name for name in dict.fromkeys(names) if name != _NO_IMAGE]


def write_context(file: IO[bytes], tree: Path, ca_bundle: Path | None) -> None:
    """Write the files of the image build as a tar archive to *file*, and rewind *file*.

    *ca_bundle* (PEM) becomes BUNDLE, which the Dockerfile uses if it exists.
    """
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in CONTEXT:
            archive.add(tree / name, arcname=name, filter=_plain)
        if ca_bundle is not None:
            archive.add(ca_bundle.resolve(), arcname=BUNDLE, filter=_plain)
    file.seek(0, io.SEEK_SET)


def digest(tree: Path) -> str:
    """Return a digest (SHA-256) of the files in *tree* that a plugin is made from.

    All checkouts of one commit have the same digest: it ignores times, owners and the umask. It
    ignores the CA bundle too, because the plugin does not contain the bundle.
    """

    def timeless(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.mtime = 0
        member.mode = 0o755 if member.mode & 0o100 else 0o644
        return _plain(member)

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in (*CONTEXT, "config.json"):
            archive.add(tree / name, arcname=name, filter=timeless)
    return hashlib.sha256(content.getbuffer()).hexdigest()


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    # Owners differ from checkout to checkout and would defeat the engine's build cache.
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    compiled = "__pycache__" in member.name or member.name.endswith((".c", ".so"))
    return None if compiled else member
