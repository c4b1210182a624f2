"""The pictures in docs/pictures are those of today's commands.

`python -m tests.support.tools.pictures` writes them anew.
"""

import re

import pytest

from tests.support.tools.generated import REPOSITORY
from tests.support.tools.pictures import COMMANDS, PLACE, lines, path_of, pictures, shape

pytestmark = [pytest.mark.full, pytest.mark.slow]

MOST_BYTES = 60_000
PLACES = (f"{PLACE}/", "/dev/fuse", "/sys/", "/proc/")
COMMAND = "run `python -m tests.support.tools.pictures`"


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    """Return the pictures of the commands, which run now."""
    if REPOSITORY.is_relative_to(PLACE):
        pytest.skip(f"the test mounts a file system on {PLACE}, which has this checkout")
    return pictures()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_picture_has_the_shape_of_what_the_command_prints(
    drawn: dict[str, str], name: str
) -> None:
    assert shape(name, path_of(name).read_text()) == shape(name, drawn[name]), COMMAND


@pytest.mark.parametrize("name", COMMANDS)
def test_a_picture_needs_no_other_file_and_is_small(name: str) -> None:
    text = path_of(name).read_text()
    assert re.findall(r'https?:[^"]*|@import|url\([^#]', text) == ["http://www.w3.org/2000/svg"]
    assert len(text.encode()) < MOST_BYTES


@pytest.mark.parametrize("name", COMMANDS)
def test_a_picture_has_no_path_of_the_machine_that_made_it(name: str) -> None:
    shown = " ".join(lines(path_of(name).read_text()))
    paths = re.findall(r"(?<![\w.)])/[\w.-]+/[\w/.-]+", shown)
    assert [path for path in paths if not path.startswith(PLACES)] == []
