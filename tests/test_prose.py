"""The countable rules of prose, over code, documents and the strings that users read.

CONTRIBUTING.md has all rules. The tests count noun clauses that open a sentence, pronouns that
stand for a program, sentences of over 30 words in documents, and lines of over 100 columns.
"""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("passthrough", "plugin", "benchmarks", "tests")
TESTS = ("tests/README.md", "tests/support/README.md")
DOCUMENTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", *TESTS)

OPENER = re.compile(r"(Who|Whoever|What|Whatever|Where|Wherever|Whose|Whom|Which)\b(?!.*\?$)")
PRONOUN = re.compile(
    r"\b(who|whom|whose|whoever|somebody|nobody|everybody|anybody|whatever)\b", re.IGNORECASE
)
MOST_OPENERS, MOST_PRONOUNS, MOST_LONG = 0.01, 0.001, 0.05
LONG_WORDS, LONG_LINE = 30, 100
SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z`\"'(\[*])|\n\s*\n")
WORD = re.compile(r"[\w'/<>-]+")
HEADING = re.compile(r"^\s*(Raises|Returns|Args|Yields|Attributes):\s*$", re.MULTILINE)
CYTHON_DOCSTRING = re.compile(r'^ *"""(.*?)"""', re.MULTILINE | re.DOTALL)
COMMENT_OF_TOOLS = re.compile(r"#\s*(noqa|type:|ruff|shellcheck|cython:|no-cython-lint|!|pragma)")


class Sentence(NamedTuple):
    """A sentence and where it begins."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text[:120]}"


def sentences(path: Path, line: int, text: str) -> Iterator[Sentence]:
    text = HEADING.sub("", text).replace("**", "")
    for part in SENTENCE_END.split(text):
        joined = " ".join(part.split())
        if len(WORD.findall(joined)) >= 3:
            yield Sentence(path, line, joined)


def docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            match statement:
                case ast.Expr(value=ast.Constant(value=str()) as constant):
                    yield constant


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Each run of comment lines; a comment behind code is a run of its own."""
    block: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or COMMENT_OF_TOOLS.match(token.string):
            continue
        number = token.start[0]
        alone = not token.line[: token.start[1]].strip()
        if block and not (alone and number == last + 1):
            yield first, "\n".join(block)
            block = []
        first = first if block else number
        block.append(token.string.lstrip("# "))
        last = number
    if block:
        yield first, "\n".join(block)


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The literals that people may read: of several words, with a mark for each value."""
    docs = {id(constant) for constant in docstrings(tree)}
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in docs | inner:
                yield node.lineno, text
            case ast.JoinedStr():
                parts = (str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values)
                yield node.lineno, "".join(parts)


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """The prose of a Markdown document: no code, no headings; each cell of a table by itself."""
    fence = re.compile(r"^```.*?^```|^<!--.*?-->", re.MULTILINE | re.DOTALL)
    plain = fence.sub(lambda match: "\n" * match[0].count("\n"), text)
    block: list[str] = []
    first = 0
    for number, line in enumerate([*plain.split("\n"), ""], 1):
        if line.startswith("|"):
            yield from ((number, cell) for cell in line.strip("|").split("|"))
        item = re.match(r"\s*(?:[-*]|\d+\.) ", line)
        if block and (item or not line.strip() or line.startswith(("#", "|", "    "))):
            yield first, "\n".join(block)
            block = []
        if line.strip() and not line.startswith(("#", "|", "    ", "!")):
            first = first if block else number
            block.append(line[item.end() :] if item else line)


def read_code(path: Path, *, with_strings: bool) -> Iterator[Sentence]:
    source = (ROOT / path).read_text()
    tree = ast.parse(source)
    for constant in docstrings(tree):
        yield from sentences(path, constant.lineno, str(constant.value))
    for line, text in comments(source):
        yield from sentences(path, line, text)
    for line, text in strings(tree) if with_strings else ():
        yield from sentences(path, line, text)


def read_cython(path: Path) -> Iterator[Sentence]:
    """Read a module without a syntax tree: its docstrings and comments."""
    source = (ROOT / path).read_text()
    for match in CYTHON_DOCSTRING.finditer(source):
        yield from sentences(path, source[: match.start()].count("\n") + 1, match[1])
    without = CYTHON_DOCSTRING.sub(lambda match: "\n" * match[0].count("\n"), source)
    for line, text in comments(without):
        yield from sentences(path, line, text)


def read_document(path: Path) -> Iterator[Sentence]:
    for line, text in paragraphs((ROOT / path).read_text()):
        yield from sentences(path, line, text)


def files(root: str, suffix: str) -> list[Path]:
    top = ROOT / root
    found = [top] if top.is_file() else sorted(top.rglob(f"*{suffix}"))
    return [path.relative_to(ROOT) for path in found]


def prose() -> dict[str, list[Sentence]]:
    """Every sentence, by what the rules are held for."""
    found = {
        root: [
            sentence
            for path in files(root, ".py")
            for sentence in read_code(path, with_strings=root != "tests")
        ]
        for root in CODE
    }
    for root in ("passthrough/core", "tests/passthrough/core"):
        paths = [path for suffix in (".pyx", ".pxd") for path in files(root, suffix)]
        found[f"{root}, compiled"] = [s for path in paths for s in read_cython(path)]
    for root in DOCUMENTS:
        found[root] = [s for path in files(root, ".md") for s in read_document(path)]
    manifest = json.loads((ROOT / "config.json").read_text())
    texts = [manifest["description"], *(entry["description"] for entry in manifest["env"])]
    found["config.json"] = [s for text in texts for s in sentences(Path("config.json"), 1, text)]
    return found


PROSE = prose()
parts = pytest.mark.parametrize("part", PROSE)


def beyond(found: list[Sentence], most: float) -> str:
    """Nothing if *found* are no more than *most*, else their list."""
    return "\n".join(map(str, found)) if len(found) > most else ""


@parts
def test_sentences_open_with_no_noun_clause(part: str) -> None:
    found = [sentence for sentence in PROSE[part] if OPENER.match(sentence.text)]

    assert beyond(found, MOST_OPENERS * len(PROSE[part])) == ""


@parts
def test_pronouns_stand_for_no_program(part: str) -> None:
    words = sum(len(WORD.findall(sentence.text)) for sentence in PROSE[part])
    found = [s for s in PROSE[part] for _ in PRONOUN.findall(s.text)]

    assert beyond(found, MOST_PRONOUNS * words) == ""


@pytest.mark.parametrize("part", DOCUMENTS)
def test_sentences_of_documents_are_short(part: str) -> None:
    found = [s for s in PROSE[part] if len(WORD.findall(s.text)) > LONG_WORDS]

    assert beyond(found, MOST_LONG * len(PROSE[part])) == ""


@pytest.mark.parametrize("part", DOCUMENTS)
def test_lines_of_documents_are_wrapped(part: str) -> None:
    """A table, a comment, or a line without a blank to wrap at may be longer."""
    long = [
        f"{path}:{number}"
        for path in files(part, ".md")
        for number, line in enumerate((ROOT / path).read_text().split("\n"), 1)
        if len(line) > LONG_LINE
        and not line.startswith(("|", "<!--", "    "))
        and " " in line.strip()
    ]

    assert long == []


def test_names_of_tests_have_no_pronoun_for_a_program() -> None:
    names = [
        f"{path}::{node.name}"
        for path in files("tests", ".py")
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and PRONOUN.search(node.name.replace("_", " "))
    ]

    assert names == []


@pytest.mark.parametrize(
    ("text", "openers", "pronouns"),
    [
        ("Who asks gives way.", 1, 1),
        ("The worker answers. Where it ends, the kernel waits.", 1, 0),
        ("What does a worker keep?", 0, 0),
        ("Between polls the thread yields.", 0, 0),
    ],
)
def test_what_is_counted(text: str, openers: int, pronouns: int) -> None:
    found = list(sentences(Path("x"), 1, text))

    assert sum(bool(OPENER.match(sentence.text)) for sentence in found) == openers
    assert sum(len(PRONOUN.findall(sentence.text)) for sentence in found) == pronouns
