"""The specification names every point once, and marks as built only what the code or a test cites."""

from __future__ import annotations

import re
import subprocess
import sys

import rtkit
from tests.docs.blocks import ROOT, prose, table

PAGE = "docs/reference/spec.md"
MARKED = dict(re.findall(r"^- \*\*([A-Z]\d+)\*\* \*(built|in part)\*", prose(PAGE), flags=re.M))
UNBUILT = {row["point"] for row in table(PAGE, "point", "what is missing")}
#: How many points each letter has.
POINTS = {
    "C": 5,
    "T": 11,
    "W": 5,
    "H": 10,
    "D": 5,
    "A": 5,
    "F": 5,
    "B": 9,
    "M": 4,
    "L": 3,
    "K": 4,
    "P": 4,
    "X": 2,
}

SOURCES = {
    path: path.read_text()
    for tree in ("src", "tests")
    for path in sorted((ROOT / tree).rglob("*.py"))
    if path.parent.name != "docs"
}


def test_every_point_is_there_once() -> None:
    listed = re.findall(r"^- \*\*([A-Z]\d+)\*\*|^\| ([A-Z]\d+) \|", prose(PAGE), flags=re.M)
    points = sorted(one or other for one, other in listed)
    assert points == sorted(f"{letter}{n + 1}" for letter, count in POINTS.items() for n in range(count))
    assert set(MARKED) | UNBUILT == set(points)


def test_every_mark_is_one_we_know() -> None:
    assert len(re.findall(r"^- \*\*", prose(PAGE), flags=re.M)) == len(MARKED)


def test_what_is_built_is_cited() -> None:
    uncited = [
        point for point in MARKED if not any(re.search(rf"\b{point}\b", text) for text in SOURCES.values())
    ]
    assert uncited == []


def test_what_is_in_part_says_what_is_missing() -> None:
    points = re.split(r"^- (?=\*\*)|^## ", prose(PAGE), flags=re.M)
    for text in points:
        if "*in part*" in text.partition("\n")[0]:
            assert "Not yet:" in " ".join(text.split()), text.partition("\n")[0]


def test_what_the_code_cites_exists() -> None:
    """`(H4)`, `(B1-B9)`, `(A1 to A4)` in a docstring or comment: each is a point of the specification."""
    known = set(MARKED) | UNBUILT
    for path, text in SOURCES.items():
        if "src" not in path.relative_to(ROOT).parts:
            continue
        for group in re.findall(r"\(([A-Z]\d+(?:(?:, | and | to |-|–)[A-Z]\d+)*)\)", text):
            for point in re.findall(r"[A-Z]\d+", group):
                if point[0] in POINTS:
                    assert point in known, f"{path.relative_to(ROOT)} cites {point}"
        for numbers in re.findall(r"\(api ([0-9]+(?:(?:, | and )[0-9]+)*)", text):
            for number in re.findall(r"\d+", numbers):
                assert f"| api {number} |" in prose(PAGE), f"{path.relative_to(ROOT)} cites api {number}"


def test_the_names_are_few_and_light() -> None:
    """api 12."""
    assert len(rtkit.__all__) <= 35
    code = "import rtkit, sys; sys.exit(bool({'websockets', 'h11'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
