from typing import Any, TypeAlias

CALLS: dict[str, int]
Row: TypeAlias = tuple[int, int, int, bytes, int]

class Listing:
    def __init__(self, fd: int, *, shared: bool = ..., host: Any = ...) -> None: ...
    def read(self, offset: int, room: int = ...) -> list[Row]: ...
    @property
    def memory(self) -> tuple[int, int]: ...
