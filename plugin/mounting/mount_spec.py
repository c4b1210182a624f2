"""The order to make one mount, and the deadline of its steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import trio

from passthrough.options.effective import Effective
from plugin.errors import MountFailed
from plugin.mounting.worker import Worker
from plugin.volume import FileName, VolumeName

# For all steps of a mount, and the wait for earlier requests on the volume. The limit of dockerd is
# 120 s, and an administrator may set it to 30 s (docker plugin enable --timeout). The plugin's own
# error says more than dockerd's "timeout". The undo of a failed mount takes more time after that.
MOUNT_DEADLINE_S = 18.0


class MountSpec(NamedTuple):
    """A mount to be made: its options, the source, and the limits and callbacks of the attempt."""

    name: VolumeName
    directory: FileName
    """The name of the mount point."""
    options: Effective
    origin: str
    """The source, as messages name it."""
    open_source: Callable[[], int]
    """Returns an O_PATH descriptor that the caller owns; may block for ever."""
    limiter: trio.CapacityLimiter
    """For the threads that call *open_source*."""
    deadline: float
    """The deadline of the steps that may hang, by trio's clock: `MOUNT_DEADLINE_S` after the
    request."""
    on_loss: Callable[[str], None]
    """Called with the reason if the worker ends while the volume is mounted."""
    on_step: Callable[[str], object] = lambda _: None
    """Called with the name of each step that may hang, before the step."""


@contextmanager
def step(spec: MountSpec, name: str, worker: Worker | None = None) -> Iterator[None]:
    """Run one step of a mount, which may hang, until the deadline of *spec*.

    Raises:
        MountFailed: the step has failed or is not done at the deadline; the message names it.
    """
    spec.on_step(name)
    try:
        with trio.fail_at(spec.deadline):
            yield
    except trio.TooSlowError as error:
        last_log = "" if worker is None else worker.last_log
        raise MountFailed(
            f"volume {spec.name!r}: {name} has not finished within {MOUNT_DEADLINE_S:g} s of the"
            f" Mount; check that the file system of its source answers{last_log}"
        ) from error
    except OSError as error:
        raise MountFailed(f"volume {spec.name!r}: {name} failed: {error.strerror}") from error
