"""Sends requests to the pyfuse3 adapter as pyfuse3 does, without a kernel."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from passthrough.core.filesystem import PassthroughFs
from passthrough.options.cache_policy import Cache
from passthrough.session.libfuse import LibfuseOperations
from tests.support.tools.direct import CALLER
from tests.support.tools.options import effective

# It stands in for pyfuse3.RequestContext: only pyfuse3 can set the fields of that.
CONTEXT = SimpleNamespace(uid=CALLER.uid, gid=CALLER.gid, pid=1, umask=0o022)


class Recording:
    """A file system that records its calls, and returns the same answer to each."""

    squashes = False

    def __init__(self, answer: object = None) -> None:
        self.answer = answer
        self.calls: list[tuple[Any, ...]] = []
        self.config = effective()
        self.cache = Cache(self.config)

    def __getattr__(self, name: str) -> Callable[..., object]:
        def operation(*args: object, **kwargs: object) -> object:
            self.calls.append((name, *args, *kwargs.values()))
            return self.answer

        return operation


def operations(fs: object) -> LibfuseOperations:
    return LibfuseOperations(cast("PassthroughFs", fs), lambda: None)


async def request(fs: object, name: str, *args: object) -> Any:
    return await getattr(operations(fs), name)(*args)
