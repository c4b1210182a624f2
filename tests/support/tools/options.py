"""Effective options from values, as the plugin and the worker make them."""

from passthrough.linux import kernel_features
from passthrough.options.effective import Effective, resolve
from passthrough.options.table import Requested

RELEASE = kernel_features.linux_release()


def resolved(requested: Requested) -> Effective:
    """Return the options in force on this machine if a volume has those *requested*."""
    return resolve(requested, RELEASE)


def effective(**values: object) -> Effective:
    """Return the options in force on this machine if a volume gives *values*."""
    return resolved(Requested(**values))  # type: ignore[arg-type]
