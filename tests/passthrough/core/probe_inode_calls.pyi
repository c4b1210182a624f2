from contextlib import AbstractContextManager

TIMES: int
MODE: int
ATTRIBUTES: int

def using(calls: int) -> AbstractContextManager[int]: ...
