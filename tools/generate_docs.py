"""Write docs/cli.md and docs/settings.md from the program itself: `python tools/generate_docs.py [OUT]`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pydantic_core import PydanticUndefined

from likewise_server.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = [
    *([name] for name in ("serve", "tune", "demo", "index", "embed", "search", "classify", "backbones", "info")),
    ["backbones", "rank"],
    *([name] for name in ("distill", "finetune")),
    *(["collections", name] for name in ("list", "create", "update", "info", "duplicates", "delete", "export")),
    *(["collections", name] for name in ("backup", "restore", "fsck")),
    *(["heads", name] for name in ("train", "update", "list", "eval", "delete")),
    *(["labels", name] for name in ("set", "review", "select", "pseudo")),
    *(["tokens", name] for name in ("create", "list", "revoke")),
]


def cli_page() -> str:
    """Return the help of every command."""
    parts = ["# The command line\n\nWhat `--help` says, written by `tools/generate_docs.py`.\n"]
    environment = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    for command in [[], *COMMANDS]:
        arguments = [sys.executable, "-m", "likewise.cli", *command, "--help"]
        text = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment).stdout  # noqa: S603
        text = text.replace("python -m likewise.cli", "likewise")
        body = "\n".join(line.rstrip() for line in text.strip().splitlines())
        parts.append(f"## {' '.join(['likewise', *command])}\n\n```text\n{body}\n```\n")
    return "\n".join(parts)


def settings_page() -> str:
    """Return a table of the server's settings."""
    lines = [
        "# Settings of the server",
        "",
        "Each is a flag of `likewise serve` (or `--set NAME=VALUE` for those without a flag of their own),",
        "`LIKEWISE_…` in the environment, and a key in `likewise.toml` in the working directory. Flags win,",
        "then the environment, then the file. Written by `tools/generate_docs.py`.",
        "",
        "| setting | environment | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, PydanticUndefined) else f"`{field.default}`"
        lines.append(f"| `{name}` | `LIKEWISE_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write both pages."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    (out / "cli.md").write_text(cli_page())
    (out / "settings.md").write_text(settings_page())


if __name__ == "__main__":
    main()
