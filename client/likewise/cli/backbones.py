"""`likewise backbones`: list them, and rank them on pictures of one's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likewise.cli.output import (
    ADDRESS,
    AsJson,
    Server,
    connect,
    interval,
    print_json,
    print_table,
    report_failures,
    say,
)

if TYPE_CHECKING:
    from likewise.ranking import RankedBackbone, Ranking
    from likewise.sync import Collection
    from likewise_indexer.sources import Entry

Picture = tuple[Any, str]  # an image, and its label

app = typer.Typer(
    help="List the backbones that the server serves, or rank them.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


@app.callback()
def backbones(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are known but not served.")] = False,
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """List the backbones that the server serves; or rank them, see `likewise backbones rank --help`."""
    if context.invoked_subcommand:
        sources = map(context.get_parameter_source, context.params)
        given = any(source is not None and source.name == "COMMANDLINE" for source in sources)
        if given:
            raise typer.BadParameter(f"options go behind {context.invoked_subcommand!r}")
        return
    with connect(server) as lw:
        found = lw.backbones(served_only=not everything)
    if as_json:
        print_json(found)
        return
    rows = [
        (b.name, b.dim, b.input_size, b.device, b.precision, b.execution, b.fingerprint)
        if b.served
        else (b.name, "not served")
        for b in found
    ]
    print_table(
        ("name", "dim", "pixels", "device", "precision", "runs", "fingerprint"),
        [(*row, *[""] * (7 - len(row))) for row in rows],
    )


@app.command()
def rank(
    path: Annotated[
        str | None, typer.Argument(help="Labelled pictures: a folder of class folders, or a list.", metavar="PATH")
    ] = None,
    label_from: Annotated[
        str, typer.Option(help="Of PATH: dir, csv or auto, as for `likewise index`.", metavar="WHERE")
    ] = "dir",
    collection: Annotated[
        str, typer.Option("--collection", "-c", help="Its labelled items whose uri is a file here, instead of PATH.")
    ] = "",
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            help="A backbone the server serves, or some joined by +; repeatable. By default all.", metavar="B"
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(metavar="COLLECTION", help="Compare collections by their stored vectors instead; repeat it."),
    ] = None,
    limit: Annotated[int, typer.Option(min=4, help="Pictures at most, as many of each label as can be.")] = 500,
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Rank backbones by how well they tell labelled pictures apart. Status 3 if some could not be measured."""
    if sum(map(bool, (path, collection, compare))) != 1:
        raise typer.BadParameter("give PATH, --collection or --compare")
    if compare and backbone:
        raise typer.BadParameter("collections have a backbone each: leave --backbone out")
    with connect(server) as lw:
        pictures: list[Picture] = []
        if compare:
            found = lw.rank_backbones(collections=compare)
        else:
            pictures = _in_source(path, label_from, limit) if path else _in_collection(lw.collection(collection), limit)
            images, labels = [image for image, _ in pictures], [label for _, label in pictures]
            found = lw.rank_backbones(images, labels, backbone)
    if as_json:
        facts = {name: getattr(found, name) for name in ("items", "classes", "chance", "reason")}
        print_json({"ranked": list(found), **facts, "errors": found.errors})
    else:
        _print(found)
    names = [image if isinstance(image, Path) else f"picture {i}" for i, (image, _) in enumerate(pictures)]
    failed: list[tuple[object, Exception]] = [(names[i], error) for i, error in found.errors.items()]
    report_failures([*failed, *((_name(each), each.error) for each in found if each.error)])


def _in_source(path: str, label_from: str, limit: int) -> list[Picture]:
    """Return pictures of a folder, a pattern or a list."""
    from likewise.errors import InvalidArgument
    from likewise_indexer.sources import open_source

    source = open_source(path, label_from=label_from)
    entries: list[Entry] = []
    for entry in source:
        if entry.path is None and not entry.error:
            raise InvalidArgument(f"{source.name} is read from front to back and cannot be drawn from: unpack it first")
        if entry.label and not entry.error:
            entries.append(entry)
    if not entries:
        raise InvalidArgument(
            f"{source.name} has no labelled pictures: put each class into a folder of its own, or say --label-from"
        )
    return [(entry.path, entry.label or "") for entry in _drawn(entries, lambda entry: entry.label, limit)]


def _in_collection(collection: Collection, limit: int) -> list[Picture]:
    """Return pictures of labelled items, those that are files here."""
    from likewise.demo.page import file_here
    from likewise.errors import NotFound

    elsewhere, example = 0, ""
    here: list[tuple[Path, str]] = []
    for item in collection.items("label is not null"):
        file = file_here(item.uri)
        if file is not None:
            here.append((file, item.label or ""))
        else:
            elsewhere, example = elsewhere + 1, example or item.uri or item.id
    if not here:
        where = (
            f"none of its {elsewhere} labelled items is a file here, as {example!r}"
            if elsewhere
            else "it has no labels"
        )
        raise NotFound(
            f"no pictures of {collection.name!r} to rank on: {where}. Give a folder of them as PATH, "
            "or index them with each backbone and use --compare"
        )
    if elsewhere:
        say(f"{elsewhere} labelled items are no files here, as {example!r}: the other {len(here)} are ranked on")
    return [*_drawn(here, lambda picture: picture[1], limit)]


def _drawn(items: Sequence[Any], label: Callable[[Any], Any], limit: int) -> Iterable[Any]:
    """Return at most `limit` items, drawn at random and in turn from each label, always the same ones."""
    by_label: dict[Any, list[Any]] = {}
    for item in items:
        by_label.setdefault(label(item), []).append(item)
    draw = random.Random(0)  # noqa: S311  # a sample, no secret
    for group in by_label.values():
        draw.shuffle(group)
    deepest = max(map(len, by_label.values()))
    turns = (group[turn] for turn in range(deepest) for group in by_label.values() if turn < len(group))
    return [item for item, _ in zip(turns, range(limit), strict=False)]


def _name(one: RankedBackbone) -> str:
    return f"{one.collection} ({one.backbone})" if one.collection and one.backbone else one.collection or one.backbone


def _print(found: Ranking) -> None:
    rows = [
        (
            _name(one),
            one.dim,
            interval(one.knn_accuracy, one.knn_low, one.knn_high),
            interval(one.ridge_accuracy, one.ridge_low, one.ridge_high),
            f"{one.log_me:.3f}",
            f"{one.h_score:.2f}",
            "-" if one.ms_per_image is None else f"{one.ms_per_image:.1f}",
        )
        for one in found
        if not one.error
    ]
    print_table(("backbone", "dim", "kNN", "ridge", "LogME", "H-score", "ms an image"), rows)
    say(f"{found.items} items of {found.classes} classes; guessing the largest is right on {100 * found.chance:.1f} %")
    say(found.reason)
