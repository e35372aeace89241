"""The client is light: it imports nothing heavy, and misses nothing it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "faiss", "sklearn", "skimage", "pyarrow", "timm", "pydantic_settings")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    "code",
    [
        "import likewise",
        "from likewise import Client, AsyncClient, Collection, LikewiseError",
        "import likewise.cli.main",
        "import likewise.export, likewise.requests, likewise.progress",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    found = run(f"import sys; {code}; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert found == "[]"


def test_importing_likewise_imports_nothing_at_all() -> None:
    assert run("import sys, likewise; print('grpc' in sys.modules, 'numpy' in sys.modules)") == "False False"


@pytest.mark.parametrize(
    ("arguments", "hidden", "hint"),
    [
        (["serve"], "torch", "pip install 'likewise[server]'"),
        (["serve"], "structlog", "pip install 'likewise[server]'"),
        (["collections", "duplicates", "c", "--data", "data"], "faiss", "pip install 'likewise[server]'"),
        (["tokens", "list", "--data", "data"], "structlog", "pip install 'likewise[server]'"),
        (["tokens", "list", "--data", "data"], "pydantic_settings", "pip install 'likewise[server]'"),
    ],
)
def test_a_missing_extra_says_what_to_install(arguments: list[str], hidden: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "likewise.db").touch()
    code = (
        f"import sys; sys.modules[{hidden!r}] = None; sys.argv = ['likewise', *{arguments!r}]\n"
        "from likewise.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    import likewise  # noqa: PLC0415

    with pytest.raises(AttributeError, match="Cliemt"):
        _ = likewise.Cliemt
