"""What every report is made of: one HTML file that refers to nothing outside itself, and pictures in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urlsplit

from likewise.demo.pictures import thumbnail_uri


def write(path: Path, title: str, body: str) -> Path:
    """Write a page to `path` and return where it is."""
    style = files("likewise.demo").joinpath("report.css").read_text("utf-8")
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )
    path.write_text(page, "utf-8")
    return path.resolve()


def figure(source: bytes | Path | None, caption: str, kind: str = "") -> str:
    """Return a picture with its caption; `kind` is asked, right, wrong or "", and chooses its frame."""
    uri, text = thumbnail_uri(source) if source is not None else "", escape(caption)
    image = f'<img src="{uri}" alt="{text}">' if uri else '<span class="none">no preview</span>'
    return f'<figure class="pic {kind}">{image}<figcaption>{text}</figcaption></figure>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; headings and cells are HTML."""
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def tiles(shown: Iterable[tuple[str, str]], label: str) -> str:
    """Return key figures, each with what it is; `label` names them all."""
    each = "".join(f'<div class="tile"><b>{escape(b)}</b><span>{escape(text)}</span></div>' for b, text in shown)
    return f'<section class="tiles" aria-label="{escape(label)}">{each}</section>'


def file_here(uri: str) -> Path | None:
    """Return the file that an item's uri names, if it is on this machine."""
    parts = urlsplit(uri)
    path = Path(unquote(parts.path) if parts.scheme == "file" else uri)
    try:
        return path if uri and path.is_file() else None
    except (OSError, ValueError):  # names that no file system takes
        return None
