"""What `passfs install` remembers for the next one, in data directories.

    ca-bundle.crt        a symbolic link to the certificates that builds trust
    install-<name>.json  settings of a plugin that has been removed and not been replaced yet

An engine has a plugin's settings only as long as it has the plugin. The second file lies in the
default data directory, where the next install looks for it whatever the settings say.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import msgspec

from plugin.install.installation import BUNDLE, InstallationError, unwritable

PRIVATE_MODE = 0o600


def settings_file(default_data_dir: str, name: str) -> Path:
    """Return where the settings of the plugin *name* are kept while it is replaced."""
    return Path(default_data_dir, f"install-{quote(name.removesuffix(':latest'), safe='')}.json")


def recall(file: Path) -> dict[str, str]:
    """Return the settings in *file*, which an install that was cut off has left; none if none has.

    Raises:
        InstallationError: *file* cannot be read.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, str])
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise InstallationError(
            f"the settings in {file}, of an install that was cut off, cannot be read: {error}; "
            "remove the file and give the settings anew."
        ) from error


@contextmanager
def kept(file: Path, settings: Mapping[str, str]) -> Iterator[None]:
    """Keep *settings* in *file* until the block succeeds.

    Raises:
        InstallationError: the block has raised it; says where the settings are.
    """
    is_kept = _written(file, settings)
    try:
        yield
    except InstallationError as error:
        told = ", ".join(f"{name}={value}" for name, value in settings.items())
        where = (
            "are kept: run `passfs install` again" if is_kept else f"were {told}: give them anew"
        )
        raise InstallationError(f"{error} The settings {where}.") from error
    forget(file)


def forget(file: Path) -> None:
    """Remove *file*, if it is there: the engine has the settings."""
    with suppress(OSError):
        file.unlink()


def _written(file: Path, settings: Mapping[str, str]) -> bool:
    """Write *settings* to *file*, durably; return whether that is possible."""
    unfinished = file.with_suffix(".new")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_MODE)
        with open(fd, "wb") as new:
            new.write(msgspec.json.encode(settings))
            new.flush()
            os.fsync(new.fileno())
        unfinished.replace(file)
    except OSError:  # the default data directory may be on a disk that no program can write to
        return False
    return True


def choose_bundle(wanted: str | None, data_dirs: Iterable[str]) -> Path | None:
    """Return the CA bundle for a build: *wanted*, else the one remembered in one of *data_dirs*.

    A remembered bundle that is gone is returned as well; `is_file` tells.

    Raises:
        InstallationError: *wanted* is no PEM file.
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


def existing(bundle: Path | None, tell: Callable[[str], object]) -> Path | None:
    """Return *bundle* unless it is gone, which may be so of a remembered one: then *tell* so."""
    if bundle is None or bundle.is_file():
        return bundle
    tell(f"building without the CA bundle {bundle} of an earlier install, which is gone")
    return None


def remember_bundle(data_dir: str, bundle: Path | None) -> None:
    """Have later installs with *data_dir* trust *bundle*, or none.

    By its path and not by its content, because a proxy's certificates change.

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
