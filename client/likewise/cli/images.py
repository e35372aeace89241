"""`likewise embed`, `search` and `classify`: commands that take pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    k: Annotated[int, typer.Option("-k", help="Hits per query.")] = 10,
    where: Where = "",
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Find the nearest items of image files, or of a stored item."""
    if bool(files) == (item is not None):
        raise typer.BadParameter("give image files, or --id of a stored item")
    with connect(server) as lw:
        pets = lw.collection(collection)
        if files:
            names = [str(path) for path in files]
            found = pets.search_many(files, k=k, where=where)
        else:
            names = [str(item)]
            found = pets.search_many(ids=names, k=k, where=where)
    if as_json:
        print_json(
            [
                {"query": name, "exact": hits.exact, "error": hits.error, "hits": list(hits)}
                for name, hits in zip(names, found, strict=True)
            ]
        )
    else:
        rows = [
            (name if rank == 0 else "", rank + 1, f"{hit.score:.4f}", hit.label, hit.id, hit.attributes or None)
            for name, hits in zip(names, found, strict=True)
            for rank, hit in enumerate(hits)
        ]
        print_table(("query", "#", "score", "label", "id", "attributes"), rows)
    report_failures((name, hits.error) for name, hits in zip(names, found, strict=True) if hits.error)


def classify(
    collection: InCollection,
    head: Annotated[str, typer.Option("--head", "-h", help="Name of a trained head.")],
    files: Files,
    version: Annotated[int, typer.Option(help="Version of the head; 0 is the latest.")] = 0,
    accept_all: Annotated[bool, typer.Option("--accept-all", help='Never answer "unknown".')] = False,
    neighbours: Annotated[int, typer.Option(help="Nearest training items to show with each answer.")] = 1,
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Say which class each image file is of, or that it is of none the head knows."""
    with connect(server) as lw:
        answers = lw.collection(collection).classify(
            files, head=head, version=version, reject=not accept_all, neighbours=neighbours
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
                ", ".join(f"{n.id} ({n.similarity:.2f})" for n in answer.neighbours),
            )
            for path, answer in zip(files, answers, strict=True)
            if not answer.error
        ]
        print_table(("file", "label", "score", "novelty / limit", "like"), rows)
    report_failures((path, answer.error) for path, answer in zip(files, answers, strict=True) if answer.error)
