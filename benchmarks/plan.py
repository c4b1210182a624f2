"""The parameters of a run, which the command passes to the process that measures."""

import msgspec


class Passfs(msgspec.Struct, frozen=True):
    """A subject: passfs with options of a volume."""

    options: dict[str, str]


class Peer(msgspec.Struct, frozen=True):
    """A subject: any program that mounts."""

    command: str
    """Contains {source} and {mountpoint}. {cache} is an empty directory, new for each mount."""
    needs: tuple[str, ...] = ()
    """The programs that the command starts."""

    @property
    def program(self) -> str:
        """Return the first word of the command."""
        return self.command.partition(" ")[0]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    passfs: dict[str, Passfs]
    peers: dict[str, Peer]
    rounds: int
    size: float
    """Factor for all counts and sizes: 1 is 1,000 small files, 64 MiB, a tree of 3,000 files."""
    least_s: float
    """Least duration of a line in a round: the line is repeated until then. Real work runs once."""
    lines: tuple[str, ...]
    """Names of groups and patterns, fnmatch(3): a line runs if one of them fits."""
    busy: int
    """Spinning processes on each processor during the run."""
    costs: bool
    """True: measure the costs of a volume and of a request, too."""
    stage: str
    """An empty directory of the run's own, for the source and the mounts."""
    on_tmpfs: bool
    """True: mount a tmpfs at *stage*, for the source."""
    seed: int
    """Determines the order of the subjects in each round."""

    def scaled(self, count: int, *, least: int = 1) -> int:
        """Return *count* scaled by the size of this run, but no less than *least*."""
        return max(least, round(count * self.size))


BARE = "bare"
"""The subject that is no mount. All others are compared with it."""


def program(subject: str) -> str:
    """Return what stands before the slash of a subject's name: it is that program in one mode."""
    return subject.partition("/")[0]
