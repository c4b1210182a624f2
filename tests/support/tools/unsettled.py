"""A program whose first worker reports, and dies before it notes that it serves."""

import signal
import sys

from passthrough.worker import process
from passthrough.worker.successor import Fresh

_serves = Fresh.serves


def _die_first(fresh: Fresh) -> None:
    if fresh.gone is None:
        signal.raise_signal(signal.SIGKILL)
    _serves(fresh)


if __name__ == "__main__":
    Fresh.serves = _die_first  # type: ignore[assignment,method-assign]
    sys.exit(process.main())
