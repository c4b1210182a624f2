"""Extended attributes that one process sets, creates, replaces and removes, each with a model."""

import errno
import os
from collections.abc import Callable, Sequence
from functools import partial

from tests.soak.model import WrongError, expect
from tests.standby.load import Load, Task
from tests.support.tools.callers import Caller

FILES = 3
NAMES = 5
PROCESSES = 2


def setxattr(path: str, name: str, value: bytes, flags: int) -> None:
    """Set an attribute, setxattr(2)."""
    os.setxattr(path, name, value, flags)


class Xattrs(Load):
    """Processes, each with files of its own."""

    def tasks(self) -> Sequence[tuple[Caller, Callable[[], Task]]]:
        """Return the processes."""
        return [(self.caller(n), partial(_Process, self, n)) for n in range(PROCESSES)]

    def wrong(self, results: Sequence[object]) -> list[str]:
        """Compare the attributes on the host with those of the models."""
        found = []
        for model in (result for result in results if isinstance(result, dict)):
            for name, right in model.items():
                path = str(self.place.beneath / name)
                seen = {key: os.getxattr(path, key) for key in _own(path)}
                if seen != right:
                    found.append(f"{name}: {seen}, expected {right}")
        return found


def _own(path: str) -> list[str]:
    return [name for name in os.listxattr(path) if name.startswith("user.")]


class _Process:
    def __init__(self, load: Xattrs, number: int) -> None:
        self.steps = load.steps(number)
        self._top = load.place.seen
        self._model: dict[str, dict[str, bytes]] = {}
        for file in range(FILES):
            name = f"{number}.{file}"
            (self._top / name).touch()
            self._model[name] = {}

    def step(self) -> None:
        """Change an attribute, and compare all of its file."""
        rng = self.steps.rng
        file = rng.choice(list(self._model))
        name, value = f"user.{rng.randrange(NAMES)}", rng.randbytes(rng.randrange(200))
        flags = rng.choice((0, os.XATTR_CREATE, os.XATTR_CREATE, os.XATTR_REPLACE, None))
        path, model = str(self._top / file), self._model[file]
        self.steps.note(flags, file, name, len(value))
        if flags is None:
            wanted = None if name in model else errno.ENODATA
            _with_error(wanted, lambda: os.removexattr(path, name))
            model.pop(name, None)
        else:
            wanted = {os.XATTR_CREATE: errno.EEXIST, 0: None}.get(flags, errno.ENODATA)
            fails = {os.XATTR_CREATE: name in model, os.XATTR_REPLACE: name not in model}
            refused = fails.get(flags, False)
            _with_error(wanted if refused else None, lambda: setxattr(path, name, value, flags))
            if not refused:
                model[name] = value
        expect(f"names of {file}", set(_own(path)), set(model))
        if name in model:
            expect(f"{name} of {file}", os.getxattr(path, name), model[name])

    def end(self) -> dict[str, dict[str, bytes]]:
        """Return the expected attributes of each file."""
        return self._model


def _with_error(number: int | None, call: Callable[[], None]) -> None:
    """Check that *call* fails with the error *number*, or does not fail."""
    try:
        call()
    except OSError as error:
        expect("error", errno.errorcode[error.errno or 0], errno.errorcode.get(number or 0))
    else:
        if number is not None:
            raise WrongError(f"done, expected {errno.errorcode[number]}")
