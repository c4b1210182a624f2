"""SIGINT and SIGTERM while a command makes a mount: they wait where the mount could be left behind.

Both raise KeyboardInterrupt. Between mount(2) and the block that undoes the mount, none may.
"""

import signal
from collections.abc import Callable
from typing import Final

_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)


def treat_alike() -> None:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def handle(handler: signal.Handlers | Callable[..., object]) -> None:
    """Have both signals do something else from now on."""
    for number in _NUMBERS:
        signal.signal(number, handler)


def hold() -> None:
    """Let both signals wait until `release`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)


def release() -> None:
    """Let both signals come; one that has waited comes now.

    Raises:
        KeyboardInterrupt: one has waited.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _NUMBERS)
