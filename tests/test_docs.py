"""The generated pages are what the program says now, and the pages by hand leave nothing out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.pictures import ROOT


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs")
    subprocess.run([sys.executable, str(ROOT / "tools/generate_docs.py"), str(out)], check=True)
    return out


@pytest.mark.parametrize("page", ["cli.md", "settings.md"])
def test_generated_pages_are_current(fresh: Path, page: str) -> None:
    assert (ROOT / "docs" / page).read_text() == (fresh / page).read_text(), "run: python tools/generate_docs.py"


def test_every_rpc_is_known_to_the_client() -> None:
    """No RPC exists that the client library cannot reach."""
    source = "".join(path.read_text() for path in (ROOT / "client/likewise").glob("*.py"))
    for proto in (ROOT / "proto/likewise/v1").glob("*.proto"):
        for line in proto.read_text().splitlines():
            if line.strip().startswith("rpc "):
                name = line.split()[1].partition("(")[0]
                assert f".{name}" in source or name == "EmbedStream", name
