"""Put a run's weights into the package, with a card of facts and measured figures beside them.

python -m recipes.tiny.package --run build/tiny-run --figures figures.json
"""

import argparse
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from recipes.tiny.evaluate import PACKAGED, SEEN, UNSEEN

from likewise_server.backbones import tiny

DOCS: Final = Path(__file__).parents[2] / "docs/likewise-tiny.md"
BEGIN: Final = "<!-- figures: written by recipes.tiny.package -->"
CHANCE: Final = 20.0  # of five classes, in percent
END: Final = "<!-- end of figures -->"


def card(weights: bytes, facts: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """Return the card of a weights file, from what its run and its evaluation wrote."""
    return {
        "name": "likewise-tiny",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "bytes": len(weights),
        "parameters": sum(p.numel() for p in tiny.build().parameters()),
        "dim": tiny.DIM,
        "precision": "float16",
        "preprocessing": dataclasses.asdict(tiny.PREPROCESSING),
        "method": "distilled from random weights; no weight value of a teacher is in the file",
        "teachers": ["torchvision mobilenet_v2 (ImageNet-1k)", "timm mobileone_s0 (ImageNet-1k)"],
        "trained_on": "22,045 pictures from imagenette, Caltech-101, PACS, ImageNet samples and CIFAR-10 "
        "(for research use), and drawn strokes and textures",
        "never_trained_on": list(UNSEEN),
        "other_pictures_of_the_source_trained_on": list(SEEN),
        "recipe": [
            "python -m recipes.tiny.prepare --cache CACHE --seed 0",
            facts.pop("command"),
        ],
        "run": facts,
        "measured_with": "python -m recipes.tiny.evaluate",
        "measure": "5-way accuracy in percent, nearest centroid by cosine on L2-normalised pooled features, "
        "15 queries a class; [mean, half-width of the 95 % interval over the episodes]; precision@10 by class of each "
        "picture among the others of its set, over the pictures",
        **figures,
    }


def distance(figures: dict[str, Any], shots: str, teacher: str = "mobilenet_v2") -> float:
    """Return how far above chance the student is, in percent of its teacher, on average over the unseen sets."""
    shares = [
        (figures["student"][data][shots][0] - CHANCE) / (figures[teacher][data][shots][0] - CHANCE) for data in UNSEEN
    ]
    return float(100 * sum(shares) / len(shares))


def summary(card: dict[str, Any]) -> str:
    """Return what the table comes to, in a sentence."""
    five, one = (round(distance(card["figures"], shots)) for shots in ("5-shot", "1-shot"))
    return (
        f"On average over the first four sets it is {five} % as far above chance as mobilenet_v2 with five examples, "
        f"and {one} % with one."
    )


def table(card: dict[str, Any]) -> str:
    """Return the card's figures as a Markdown table of rows "set, figure" and a column a network."""
    names = list(card["figures"])
    lines = [f"| set | figure | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for data in UNSEEN + SEEN:
        for figure in ("5-shot", "1-shot", "precision@10"):
            cells = ["{} ± {}".format(*card["figures"][name][data][figure]) for name in names]
            lines.append(f"| {data} | {figure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Copy the weights, write the card, renew the table in the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--figures", type=Path, required=True, help="JSON that recipes.tiny.evaluate wrote")
    args = parser.parse_args(argv)
    facts = json.loads((args.run / "likewise-tiny.json").read_text())["origin"] | {
        "torch": torch.__version__.split("+")[0]
    }
    weights = args.run / "likewise-tiny.safetensors"
    PACKAGED.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, PACKAGED)
    written = card(PACKAGED.read_bytes(), facts, json.loads(args.figures.read_text()))
    PACKAGED.with_suffix(".json").write_text(json.dumps(written, indent=1) + "\n")
    before, rest = DOCS.read_text().split(BEGIN)
    after = rest.split(END)[1]
    DOCS.write_text(f"{before}{BEGIN}\n{summary(written)}\n\n{table(written)}\n{END}{after}")
    print(f"{PACKAGED}: {written['bytes']} bytes, sha256 {written['sha256']}")


if __name__ == "__main__":
    main()
