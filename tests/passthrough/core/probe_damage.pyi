from passthrough.core.face import Core

LONGEST_REPLY: int
FIRST_OWN: int
JOURNAL: dict[str, int]
MARK: dict[str, int]

def values_of(core: Core, nodeid: int) -> dict[str, tuple[int, int, int]]: ...
def unused_nodeid(core: Core) -> int: ...
def touch_reply(length: int) -> None: ...
