from passthrough.core.face import Core

THREADS: int
PARKED: int
WAITS: int

def held(core: Core) -> dict[str, int]: ...
