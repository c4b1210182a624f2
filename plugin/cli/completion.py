"""The completion of arguments in a shell: it waits for nothing, and reports no error."""

import io
import re
import sys
from collections.abc import Collection, Iterable, Iterator, MutableMapping
from contextlib import contextmanager, redirect_stdout
from itertools import pairwise
from typing import Final

import typer

from plugin.admin.settings import SETTINGS

# The scripts of shells split and evaluate an answer. Only volumes of an older passfs have others.
_HARMLESS: Final = re.compile(r"[\w./-]+", re.ASCII)

ANSWER_S: Final = 1.0
"""A shell shows nothing meanwhile. The plugin answers in milliseconds."""


@contextmanager
def whole_words(environment: MutableMapping[str, str]) -> Iterator[None]:
    """Let the block complete a whole word, also for bash, which splits words at `=`.

    The words in *environment* are joined. bash replaces only the text behind the last `=`, so the
    text before is left out of the lines that the block prints.
    """
    if environment.get("_PASSFS_COMPLETE") != "complete_bash":
        yield
        return
    kept = _join_words(environment)
    answer = io.StringIO()
    try:
        with redirect_stdout(answer):
            yield
    finally:
        sys.stdout.writelines(
            line.removeprefix(kept) for line in answer.getvalue().splitlines(keepends=True)
        )


def _join_words(environment: MutableMapping[str, str]) -> str:
    """Join the words in *environment*; return the part of the last one that bash keeps."""
    # The script of typer puts a newline between words. The word to complete ends them.
    words = environment["COMP_WORDS"].split("\n")[: int(environment["COMP_CWORD"]) + 1]
    joined: list[str] = []
    for before, word in pairwise(["", *words]):
        if word and "=" in {before, word}:
            joined[-1] += word
        else:
            joined.append(word)
    environment["COMP_WORDS"] = "\n".join(joined)
    environment["COMP_CWORD"] = str(len(joined) - 1)
    return joined[-1].removesuffix(words[-1].lstrip("="))


def volumes(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of volumes that begin with *incomplete*; none if no plugin answers."""
    from plugin.commands import inquiry  # noqa: PLC0415
    from plugin.commands.asking import CommandError, Plugin  # noqa: PLC0415

    plugin = Plugin(context.params.get("data_dir") or SETTINGS["data_dir"].default)
    try:
        names = inquiry.names(plugin, ANSWER_S)
    except CommandError:
        return []
    return [name for name in names if name.startswith(incomplete) and _HARMLESS.fullmatch(name)]


def mount_options(incomplete: str) -> list[str]:
    """Return what may stand in `-o` in place of *incomplete*; the last word is not complete."""
    from passthrough.options.parsing import FOR_A_NEW_DIRECTORY, OF_A_SOURCE  # noqa: PLC0415

    before, comma, word = incomplete.rpartition(",")
    found = _assignments(word, _options(without=(*OF_A_SOURCE, *FOR_A_NEW_DIRECTORY)))
    return [f"{before}{comma}{each}" for each in found]


def changes(incomplete: str) -> list[str]:
    """Return the options of `passfs set` that may stand in place of *incomplete*."""
    return _assignments(incomplete, _changeable())


def changed_options(incomplete: str) -> list[str]:
    """Return the names for `passfs set --unset` that begin with *incomplete*."""
    return [name for name in _changeable() if name.startswith(incomplete)]


def _changeable() -> list[str]:
    from passthrough.options.parsing import FOR_A_NEW_DIRECTORY, OF_A_SOURCE  # noqa: PLC0415

    return _options(without=(*OF_A_SOURCE, *FOR_A_NEW_DIRECTORY))


def _options(without: Collection[str]) -> list[str]:
    from passthrough.options.table import OPTIONS  # noqa: PLC0415

    return [name for name in OPTIONS if name not in without]


def _assignments(word: str, names: Iterable[str]) -> list[str]:
    """Return what may stand in place of *word*: options, or the values if one option fits."""
    from passthrough.options.table import words_of  # noqa: PLC0415
    from passthrough.options.vocabulary import ALIASES  # noqa: PLC0415

    values = {f"{name}=": words_of(name) for name in names} | dict.fromkeys(ALIASES, ())
    name, equals, _ = word.partition("=")
    found = sorted(each for each in values if each.startswith(f"{name}{equals}"))
    if len(found) == 1:
        found = [f"{found[0]}{value}" for value in values[found[0]]] or found
    return [each for each in found if each.startswith(word)]
