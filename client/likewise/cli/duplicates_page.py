"""Duplicates on a page with pictures: people would rather look than read."""

from __future__ import annotations

from html import escape
from pathlib import Path

from likewise.demo import page
from likewise.results import DuplicateGroup, Duplicates

MOST_GROUPS, MOST_PICTURES = 300, 12  # on a page that a browser still likes


def write(found: Duplicates, collection: str, path: Path) -> Path:
    """Write the page and return where it is. Pictures are those whose uri is a file that can be read here."""
    shown = found[:MOST_GROUPS]
    more = len(found) - len(shown)
    groups = "".join(_group(number, group) for number, group in enumerate(shown, 1))
    exact = "" if found.exact else " An approximate index was searched: some pairs may be missing."
    rest = f"<p>{more:,} smaller groups are not shown; --csv and --json have all.</p>" if more else ""
    body = (
        f"<header><h1>Near-duplicates in {escape(collection)}</h1><p>{found.items:,} items, {len(found):,} groups; "
        f"{found.spare:,} items could go if one of each group stayed. Two items are linked where their score reaches "
        f"{found.min_score:g}; under each picture stands its score to the first of its group.{exact}</p></header>"
        f'<div class="rows">{groups}</div>{rest}'
    )
    return page.write(path, f"likewise: near-duplicates in {collection}", body)


def _group(number: int, group: DuplicateGroup) -> str:
    shown = group.items[:MOST_PICTURES]
    pictures = "".join(
        page.figure(
            page.file_here(item.uri), f"{item.id} {'' if i == 0 else f'{item.score:.3f}'}", "asked" if i == 0 else ""
        )
        for i, item in enumerate(shown)
    )
    more = f"<p>and {len(group.items) - len(shown):,} more</p>" if len(group.items) > len(shown) else ""
    return f'<section class="row" aria-label="Group {number}">{pictures}{more}</section>'
