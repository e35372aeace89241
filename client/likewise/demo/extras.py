"""What the demo needs beside the client, asked for only when it is used."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class DemoError(Exception):
    """Something the person who runs the demo can set right; its message says how."""


def need(module: str) -> Any:
    """Import a module of the demo's extra. Raises DemoError with the line that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise _missing(error.name or module) from error


def package_folder(package: str) -> Path:
    """Return where a package of the demo's extra is installed, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package)
    return Path(next(iter(spec.submodule_search_locations)))


def _missing(package: str) -> DemoError:
    return DemoError(f"the demo needs {package}, which is not installed: pip install 'likewise[demo]'")
