"""The identity of the program that the plugin's workers run."""

import hashlib
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

from passthrough.worker import handover

_PACKAGE: Final = Path(handover.__file__).parents[1]
_DIGITS: Final = 32
_CODE: Final = {".py", ".so"}
_NEEDED: Final = ("msgspec", "pyfuse3")


def identity(directory: Path = _PACKAGE) -> str:
    """Return what two plugins have in common if their workers run the same program.

    It depends on the interpreter, on the packages that a worker uses, and on the content of the
    modules below *directory*. Blocks while it reads them, 10 MiB.
    """
    digest = hashlib.blake2b(sys.version.encode(), digest_size=_DIGITS // 2)
    for package in _NEEDED:
        digest.update(f"{package} {version(package)}\0".encode())
    for file in sorted(directory.rglob("*")):
        if file.suffix in _CODE:
            content = hashlib.blake2b(file.read_bytes()).hexdigest()
            digest.update(f"{file.relative_to(directory)} {content}\0".encode())
    return digest.hexdigest()


def version(package: str) -> str:
    """Return the version of the installed *package*; empty if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
