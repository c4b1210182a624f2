from typing import Final

SIZE: Final[int]
LAST_BUCKET: Final[int]

def bucket(ns: int) -> int: ...
def count_many(row: int, opcode: int, error: int, times: int) -> None: ...
