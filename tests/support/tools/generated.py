"""Generated parts of files that are checked in, and the marks that two of them come from."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[3]


class Section(NamedTuple):
    """A generated part of a file, between two texts that stay."""

    file: Path
    begin: str
    end: str

    def present(self) -> str:
        """Return the text of the part."""
        return self.file.read_text().split(self.begin)[1].split(self.end)[0]

    def write(self, text: str) -> None:
        """Replace the part by *text*."""
        before, rest = self.file.read_text().split(self.begin)
        self.file.write_text(before + self.begin + text + self.end + rest.split(self.end, 1)[1])


def marks(name: str) -> Iterator[tuple[Path, list[str]]]:
    """Yield the file and the literal arguments of each pytest.mark.*name* in tests/posix.

    The marks come in the order of files and lines.
    """
    for path in sorted((REPOSITORY / "tests" / "posix").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == f"pytest.mark.{name}":
                yield path, [ast.literal_eval(argument) for argument in node.args]
