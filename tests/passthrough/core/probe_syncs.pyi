from typing import Final

FAST: Final[int]

class Probe:
    def sync(self, slow: bool = False) -> bool: ...
