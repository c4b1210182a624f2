from passthrough.core.face import Core

def fuzz(
    core: Core, count: int, seed: int, threads: int = 0
) -> tuple[int, bytes, dict[int, int], float, int]: ...
