"""The applications of ``examples/hosts``. A hub can be started again after it closed, so most are loaded once."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

__all__ = ["ALONE", "FOLDER", "NAMES", "application", "load"]

FOLDER: Final = Path(__file__).parents[2] / "examples/hosts"
#: What is in there, by the name of the framework.
NAMES: Final = {
    "Starlette": "starlette_app",
    "FastAPI": "fastapi_app",
    "Litestar": "litestar_app",
    "Quart": "quart_app",
    "Django": "django_app",
    "aiohttp": "aiohttp_app",
    "websockets": "websockets_server",
}
#: The hub without any: on an ASGI server, at the root, or on our own.
ALONE: Final = "rtkit alone"


def load(framework: str) -> ModuleType:
    """The module of a framework's example."""
    if framework == ALONE:
        from tests.hosts import alone

        return alone
    name = NAMES[framework]
    # An application of aiohttp's is one event loop's for ever; Django's settings are the process's.
    if name not in sys.modules or framework == "aiohttp":
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None and spec.loader is not None
        # Django looks for its URLs in the module, by name.
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def application(module: ModuleType) -> Any:
    """What the example has its server serve."""
    return getattr(module, "application", None) or getattr(module, "app", None) or module.hub
