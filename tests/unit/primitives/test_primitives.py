from __future__ import annotations

import subprocess
import sys

from rtkit import primitives


def test_everything_exported_exists_and_is_named_once() -> None:
    assert len(set(primitives.__all__)) == len(primitives.__all__)
    for name in primitives.__all__:
        assert getattr(primitives, name).__doc__ or name == "Overflow"


def test_importing_loads_no_framework() -> None:
    code = (
        "import sys, rtkit; before = set(sys.modules); import rtkit.primitives;"
        "print({m.partition('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() in ("{'rtkit'}", "set()")
