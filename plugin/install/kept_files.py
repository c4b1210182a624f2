"""Files in data directories that an install leaves for later ones.

    ca-bundle.crt        a symbolic link to the certificates that builds trust
    install-<name>.json  the settings of a plugin while it is replaced

An engine has the settings of a plugin only as long as it has the plugin. The second file lies in
the default data directory, because a later install has to find it before it knows the settings.
"""

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import msgspec

from plugin.install.directories import unwritable
from plugin.install.installation import InstallationError, Progress
from plugin.install.source_tree import BUNDLE

PRIVATE_MODE = 0o600


def settings_file(default_data_dir: str, name: str) -> Path:
    """Return the file that keeps the settings of the plugin *name* while it is replaced."""
    return Path(default_data_dir, f"install-{quote(name.removesuffix(':latest'), safe='')}.json")


def read(file: Path) -> dict[str, str]:
    """Return the settings in *file*, or none if no install that was cut off has left the file.

    Raises:
        InstallationError: *file* cannot be read.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, str])
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise InstallationError(
            f"an install that was cut off has left its settings in {file}, which cannot be read: "
            f"{error}; remove the file and give the settings again."
        ) from error


@contextmanager
def kept(file: Path, settings: Mapping[str, str]) -> Iterator[None]:
    """Keep *settings* in *file* until the block succeeds.

    Raises:
        InstallationError: from the block; says as well how to get the settings back.
    """
    is_kept = _write(file, settings)
    try:
        yield
    except InstallationError as error:
        text = " ".join(shlex.quote(f"{name}={value}") for name, value in settings.items())
        advice = (
            "The settings are kept: run `passfs install` again."
            if is_kept
            else f"The settings are lost: give them again, by options of `passfs install`: {text}"
        )
        raise InstallationError(f"{error} {advice}") from error
    remove(file)


def remove(file: Path) -> None:
    """Remove *file* if it exists: the engine has the settings."""
    with suppress(OSError):
        file.unlink()


def _write(file: Path, settings: Mapping[str, str]) -> bool:
    """Write *settings* to *file* and to disk; return False if that fails."""
    unfinished = file.with_suffix(".new")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_MODE)
        with open(fd, "wb") as new:
            new.write(msgspec.json.encode(settings))
            new.flush()
            os.fsync(new.fileno())
        unfinished.replace(file)
    except OSError:  # the default data directory may be on a read-only disk
        return False
    return True


def choose_bundle(wanted: str | None, data_dirs: Iterable[str]) -> Path | None:
    """Return the CA bundle for a build: *wanted*, else the first that *data_dirs* have a link to.

    The file behind a link may be missing; an empty *wanted* means no bundle.

    Raises:
        InstallationError: *wanted* is not a PEM file.
    """
    if wanted == "":
        return None
    if wanted is None:
        links = (Path(directory, BUNDLE) for directory in data_dirs)
        return next((link.readlink() for link in links if link.is_symlink()), None)
    try:
        text = Path(wanted).read_bytes()
    except OSError as error:
        raise InstallationError(
            f"--ca-bundle '{wanted}' cannot be read: {error.strerror}; expected a PEM file."
        ) from error
    if b"-----BEGIN " not in text:
        raise InstallationError(
            f"--ca-bundle '{wanted}' holds no certificate; expected a PEM file, "
            "which has lines such as -----BEGIN CERTIFICATE-----."
        )
    return Path(os.path.abspath(wanted))


def existing_bundle(bundle: Path | None, progress: Progress) -> Path | None:
    """Return *bundle*, or report that the file is missing and return None."""
    if bundle is None or bundle.is_file():
        return bundle
    progress.line(f"building without the CA bundle {bundle} of an earlier install: it is missing")
    return None


def keep_bundle(data_dir: str, bundle: Path | None) -> None:
    """Have later installs with *data_dir* trust *bundle*, or none.

    A link and not a copy, because a proxy's certificates change.

    Raises:
        InstallationError: the data directory cannot be written to.
    """
    link = Path(data_dir, BUNDLE)
    if (link.readlink() if link.is_symlink() else None) == bundle:
        return
    try:
        link.unlink(missing_ok=True)
        if bundle is not None:
            link.symlink_to(bundle)
    except OSError as error:
        raise unwritable(data_dir, error) from error
