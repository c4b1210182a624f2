"""A program that goes on in place of another one, and dies at a stage of that, or is another one.

STAGE has the name of the stage, after which the process is killed. With VERSION its memory is of
that version.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from passthrough.session import kernel
from passthrough.worker import process, record
from passthrough.worker.predecessor import Predecessor
from passthrough.worker.trial import Trial

STAGES = {
    "examine": Predecessor,
    "stop": Predecessor,
    "retire": Predecessor,
    "copy": Predecessor,
    "enter": Predecessor,
    "go_on": kernel,
    "is_kept": Trial,
    "commit": Predecessor,
    "dismiss": Predecessor,
}


def _dies_after(call: Callable[..., object]) -> Callable[..., object]:
    def called(*args: Any, **kwargs: Any) -> object:
        result = call(*args, **kwargs)
        signal.pidfd_send_signal(os.pidfd_open(os.getpid()), signal.SIGKILL)  # kill(2) is refused
        return result

    return called


if __name__ == "__main__":
    if stage := os.environ.get("STAGE"):
        where = STAGES[stage]
        setattr(where, stage, _dies_after(getattr(where, stage)))
    record.VERSION = int(os.environ.get("VERSION", record.VERSION))  # type: ignore[misc]
    sys.exit(process.main())
