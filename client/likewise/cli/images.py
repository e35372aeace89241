"""`likewise embed`, `search` and `classify`: commands that take pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likewise.cli.output import (
    ADDRESS,
    AsJson,
    InCollection,
    Server,
    Where,
    connect,
    print_json,
    print_table,
    report_failures,
    say,
)

if TYPE_CHECKING:
    from likewise.results import Hits

Files = Annotated[list[Path], typer.Argument(help="Image files.", metavar="FILE...")]


def embed(
    files: Files,
    out: Annotated[Path, typer.Option(help="Where the (n, dim) float32 matrix goes, as .npy.")],
    backbone: Annotated[str | None, typer.Option(help="A backbone the server serves; its first by default.")] = None,
    layer: Annotated[str, typer.Option(help="Another layer than the last, as layer3 or layer3+layer4.")] = "",
    pooling: Annotated[str, typer.Option(help="avg, gem, max or cls; the backbone's own by default.")] = "",
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Write the vectors of image files to a .npy file, one row per file."""
    import numpy as np

    with connect(server) as lw:
        result = lw.embed(files, backbone, layer=layer, pooling=pooling)
    failed = ((f"{files[i]} (row {i} is zero)", error) for i, error in sorted(result.errors.items()))
    if len(result.errors) == len(files):
        report_failures(failed)  # no vector, so no file
    with out.open("wb") as file:
        np.save(file, result.vectors)
    facts = {
        "out": str(out),
        "rows": result.vectors.shape[0],
        "dim": result.vectors.shape[1],
        "backbone": result.backbone,
        "fingerprint": result.fingerprint,
        "errors": {str(files[i]): error for i, error in result.errors.items()},
    }
    if as_json:
        print_json(facts)
    else:
        say(f"{facts['rows']} x {facts['dim']} from {result.backbone} ({result.fingerprint}) in {out}")
    report_failures(failed)


def search(
    collection: InCollection,
    files: Annotated[list[Path] | None, typer.Argument(help="Image files to ask with.", metavar="[FILE...]")] = None,
    item: Annotated[str | None, typer.Option("--id", help="Ask with a stored item instead.")] = None,
    k: Annotated[int, typer.Option("-k", help="Hits per query; with --group-by, groups.")] = 10,
    where: Where = "",
    min_score: Annotated[float | None, typer.Option(help="Only hits that reach this score.")] = None,
    group_by: Annotated[str, typer.Option(help="The best hits of each label, or of each value of an attribute.")] = "",
    group_size: Annotated[int, typer.Option(min=1, help="Hits in a group.")] = 1,
    together: Annotated[
        bool, typer.Option("--together", help="The files are examples of one thing: one query of them all.")
    ] = False,
    unlike: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Counterexample; repeatable. Implies --together.")
    ] = None,
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Find the nearest items of image files, or of a stored item."""
    if bool(files) == (item is not None):
        raise typer.BadParameter("give image files, or --id of a stored item")
    options: dict[str, Any] = {"k": k, "where": where, "min_score": min_score}
    options |= {"group_by": group_by, "group_size": group_size}
    with connect(server) as lw:
        pets = lw.collection(collection)
        ids = [item] if item is not None else []
        if together or unlike:
            names = [" + ".join(map(str, files or ids))]
            found = [pets.search_examples(files or (), unlike or (), positive_ids=ids, **options)]
        else:
            names = [str(name) for name in files or ids]
            found = pets.search_many(files, ids=ids or None, **options)
    if as_json:
        print_json([_hits_json(name, hits) for name, hits in zip(names, found, strict=True)])
    else:
        _print_hits(names, found, group_by)
    report_failures((name, hits.error) for name, hits in zip(names, found, strict=True) if hits.error)


def _print_hits(names: list[str], found: list[Hits], group_by: str) -> None:
    group = (group_by,) if group_by else ()
    rows: list[tuple[Any, ...]] = []
    for name, hits in zip(names, found, strict=True):
        values = [(each.value,) for each in hits.groups for _ in each.hits] if group_by else [()] * len(hits)
        rows += [
            (name if rank == 1 else "", rank, *value, f"{hit.score:.4f}", hit.label, hit.id, hit.attributes or None)
            for rank, (value, hit) in enumerate(zip(values, hits, strict=True), 1)
        ]
    print_table(("query", "#", *group, "score", "label", "id", "attributes"), rows)


def _hits_json(name: str, hits: Hits) -> dict[str, Any]:
    grouped = {"groups": hits.groups} if hits.groups else {}
    return {"query": name, "exact": hits.exact, "error": hits.error, "hits": list(hits), **grouped}


def classify(
    collection: InCollection,
    head: Annotated[str, typer.Option("--head", "-h", help="Name of a trained head.")],
    files: Files,
    version: Annotated[int, typer.Option(help="Version of the head; 0 is the latest.")] = 0,
    accept_all: Annotated[bool, typer.Option("--accept-all", help='Never answer "unknown".')] = False,
    neighbours: Annotated[int, typer.Option(help="Nearest training items to show with each answer.")] = 1,
    views: Annotated[str, typer.Option(help="Average several looks at each file: flip (2) or crops (10).")] = "",
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Say which class each image file is of, or that it is of none the head knows."""
    with connect(server) as lw:
        answers = lw.collection(collection).classify(
            files, head=head, version=version, reject=not accept_all, neighbours=neighbours, views=views
        )
    if as_json:
        print_json([{"file": str(path), "prediction": answer} for path, answer in zip(files, answers, strict=True)])
    else:
        rows = [
            (
                path,
                answer.label if answer.label is not None else f"unknown (nearest: {answer.best})",
                f"{answer.score:.3f}",
                f"{answer.novelty:.3f} / {answer.threshold:.3f}",
                ", ".join(f"{n.id}: {n.label} ({n.similarity:.2f})" for n in answer.neighbours),
            )
            for path, answer in zip(files, answers, strict=True)
            if not answer.error
        ]
        print_table(("file", "label", "score", "novelty / limit", "like"), rows)
        for seen in dict.fromkeys((a.head_version, a.fingerprint) for a in answers if not a.error):
            say(f"by {head} v{seen[0]}, space {seen[1]}")
    report_failures((path, answer.error) for path, answer in zip(files, answers, strict=True) if answer.error)
