"""Every page: links lead somewhere, Python compiles, names exist, tests that are named exist."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

import rtkit
from tests.docs.blocks import ROOT, blocks, pages, prose, table

PAGES = pages()
every_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
#: `rtkit.brokers`, `src/rtkit/codes.py`, `tests/docs`: names and paths that a page mentions.
CODE = re.compile(r"`([^`\n]+)`")


def anchors(page: Path) -> set[str]:
    """The headings of a page, as a web page would name them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / unquote(path)).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


def test_every_page_can_be_found() -> None:
    """From the two front pages, by links alone."""
    todo, found = [ROOT / "README.md"], {ROOT / "README.md"}
    while todo:
        page = todo.pop()
        for link in LINK.findall(prose(page)):
            path = link.partition("#")[0]
            target = (page.parent / path).resolve()
            if path.endswith(".md") and "://" not in link and target not in found:
                found.add(target)
                todo.append(target)
    assert set(PAGES) <= found, [str(page.relative_to(ROOT)) for page in set(PAGES) - found]


@every_page
def test_python_compiles_and_imports_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block.text, filename=block.where)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rtkit":
                module = importlib.import_module(node.module or "")
                for name in node.names:
                    assert hasattr(module, name.name), f"{block.where}: no {name.name} in {node.module}"
            elif isinstance(node, ast.Import):
                for name in node.names:
                    if name.name.split(".")[0] == "rtkit":
                        importlib.import_module(name.name)


@every_page
def test_names_and_paths_in_prose_exist(page: Path) -> None:
    for text in CODE.findall(prose(page)):
        name = text.removesuffix("()").partition("(")[0]
        if re.fullmatch(r"rtkit(\.\w+)+", name) and not name.startswith(UNBUILT):
            assert resolves(name), f"no {name}"
        elif re.match(r"(src|tests|examples|benchmarks|docs|rtkit)/", text) and "…" not in text:
            path, _, test = text.partition("::")
            path = f"src/{path}" if path.startswith("rtkit/") else path
            assert list(ROOT.glob(path)), f"no {path}"
            if test:
                source = (ROOT / path).read_text()
                assert re.search(rf"^(async )?(def|class) {test}\b", source, flags=re.M), f"no {text}"


#: What a page may name although it does not exist: it says that it is not built.
UNBUILT = ("rtkit.sync", "rtkit.v1")


def resolves(name: str) -> bool:
    module, parts = "rtkit", name.split(".")[1:]
    found: object = rtkit
    for part in parts:
        try:
            found = importlib.import_module(f"{module}.{part}")
            module = f"{module}.{part}"
        except ImportError:
            found = getattr(found, part, None)
            if found is None:
                return False
    return True


def test_mutants_that_the_design_names_exist() -> None:
    source = (ROOT / "tests/property/test_streams_property.py").read_text()
    mutants = set(re.findall(r"^class (\w+)\((?:CatchUp|Feed|ModelRoom)\)", source, flags=re.M))
    named = {
        name
        for line in re.findall(r"ttacked by ([^.;]*)", prose("docs/explanation/design.md"))
        for name in re.findall(r"`(\w+)`", line)
    }
    assert named == mutants - {"NeverSaysReading", "NeverOffers"}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if re.match(r"\d{4}-", page.name)], ids=lambda page: page.stem
)
def test_a_record_has_its_parts(page: Path) -> None:
    text = page.read_text()
    parts = re.findall(r"^## (.*)$", text, flags=re.M)
    assert parts == ["Situation", "Choices", "Choice", "Price", "What would change our mind"]
    assert text.startswith(f"# {int(page.name[:4])}: ")
    assert len(text.splitlines()) <= 60


def test_the_readme_says_what_the_specification_says() -> None:
    spec = "docs/reference/spec.md"
    marks: dict[str, set[str]] = {}
    for point, mark in re.findall(r"^- \*\*([A-Z]\d+)\*\* \*(built|in part)\*", prose(spec), flags=re.M):
        marks.setdefault(point[0], set()).add(mark)
    for row in table(spec, "point", "what is missing"):
        marks.setdefault(row["point"][0], set()).add("not yet")
    said = {row["area"][0]: row["state"] for row in table("README.md", "area", "state")}
    assert said == {
        letter: found.pop() if len(found) == 1 else "in part" for letter, found in sorted(marks.items())
    }
