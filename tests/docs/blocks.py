"""What the documentation's pages are made of: code blocks, tables, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Block", "blocks", "pages", "prose", "table"]

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^(?P<fence>```+)(?P<info>[^`\n]*)\n(?P<text>.*?)^(?P=fence)[ \t]*$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    :param info: the words after the opening fence: the language first.
    """

    page: Path
    line: int
    info: tuple[str, ...]
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def code(self) -> object:
        """Compiled, with the page's own line numbers in its tracebacks."""
        return compile("\n" * self.line + self.text, str(self.page), "exec", dont_inherit=True)


def pages() -> list[Path]:
    """Every page that people read."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


def blocks(page: Path | str, *info: str) -> Iterator[Block]:
    """The page's code blocks; with *info* those whose first words are these."""
    path = ROOT / page
    text = path.read_text()
    for found in _FENCE.finditer(text):
        words = tuple(found["info"].split())
        if words[: len(info)] == info:
            yield Block(path, text.count("\n", 0, found.start()) + 1, words, found["text"])


def prose(page: Path | str) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", (ROOT / page).read_text())


def table(page: Path | str, *columns: str) -> list[dict[str, str]]:
    """The rows of all tables of the page that have exactly these columns."""
    rows: list[dict[str, str]] = []
    header: list[str] | None = None
    for line in prose(page).splitlines():
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if header is None:
            header = cells
        elif header == list(columns) and not set("".join(cells)) <= set("-: "):
            rows.append(dict(zip(header, cells, strict=True)))
    return rows
