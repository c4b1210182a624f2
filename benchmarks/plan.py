"""What is to be measured, as the command passes it on to the process that measures."""

import msgspec


class Passfs(msgspec.Struct, frozen=True):
    """A subject: this program's own file system with options, a volume's."""

    options: dict[str, str]


class Peer(msgspec.Struct, frozen=True):
    """A subject: any program that mounts; *command* has places for {source} and {mountpoint}."""

    command: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    passfs: dict[str, Passfs]
    peers: dict[str, Peer]
    rounds: int
    size: float
    """How much of everything, as a factor: 1 is 1,000 small files, 64 MiB, a tree of 3,000."""
    least_s: float
    """A line is repeated within a round until its repetitions have taken this long."""
    lines: tuple[str, ...]
    """Patterns, fnmatch(3), of which a line's name must match one."""
    busy: bool
    costs: bool
    """Whether to measure what a volume costs, too."""
    stage: str
    """An empty directory of the run's own, in which everything happens."""
    on_tmpfs: bool
    """Whether to mount one there, with the source on it."""
    seed: int
    """Decides in which order the subjects take their turns."""

    def scaled(self, count: int, *, least: int = 1) -> int:
        """*count* by the size of this run."""
        return max(least, round(count * self.size))


BARE = "bare"
"""The subject that is no mount, and that all others are compared with."""
