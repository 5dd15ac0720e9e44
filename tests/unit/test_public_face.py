"""`import rtkit`: few names, all of them there, and nothing heavy loaded (api 12)."""

from __future__ import annotations

import subprocess
import sys

import rtkit


def test_every_name_exists_and_there_are_at_most_35() -> None:
    assert len(set(rtkit.__all__)) == len(rtkit.__all__) <= 35
    assert all(hasattr(rtkit, name) for name in rtkit.__all__)


def test_everything_public_has_a_docstring() -> None:
    bare = [name for name in rtkit.__all__ if not (getattr(rtkit, name).__doc__ or "").strip()]
    assert bare == []


def test_importing_loads_neither_websockets_nor_h11_nor_any_extra() -> None:
    code = (
        "import sys, rtkit; "
        "heavy = {'websockets', 'h11', 'pydantic', 'fastapi', 'starlette', 'jwt', 'redis', 'pytest'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
