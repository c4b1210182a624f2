BUILT: bool
WORD_AT: int
DYING: int
TWICE: int
STEPS: dict[str, int]
