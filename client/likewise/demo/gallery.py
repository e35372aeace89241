"""The report's pictures: queries with what was found, predictions with what they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from likewise.demo.fewshot import Answers
from likewise.demo.page import figure
from likewise.demo.pictures import Picture
from likewise.demo.search import Found
from likewise.head_results import Prediction

MOST_RIGHT, MOST_WRONG = 6, 4
BARS = 3  # likeliest classes shown


def searches(found: Sequence[Found], pictures: Sequence[Picture], *, right: bool) -> str:
    """Show some queries whose first hit was right, or wrong: one of each kind of change first."""
    by_id = {picture.id: picture for picture in pictures}
    chosen = _spread([answer for answer in found if answer.right == right], MOST_RIGHT if right else MOST_WRONG)
    rows = []
    for answer in chosen:
        query = answer.query
        change = query.attributes.get("change")
        asked = _picture(query, f"asked: {query.label}" + (f", {change}" if change else ""), "asked")
        hits = [
            _picture(
                by_id[hit.id],
                f"{'✓' if hit.label == query.label else '✗'} {hit.label} {hit.score:.3f}",
                "right" if hit.label == query.label else "wrong",
            )
            for hit in answer.hits
        ]
        rows.append(f'<div class="row">{asked}{"".join(hits)}</div>')
    return f'<div class="rows">{"".join(rows)}</div>' if rows else ""


def predictions(answers: Answers, pictures: Sequence[Picture], kind: str) -> str:
    """Show some predictions: "right", "wrong", "let through" (never seen, yet named) or "turned away"."""
    by_id = {picture.id: picture for picture in pictures}
    pairs = list(zip(answers.asked, answers.predictions, strict=True))
    chosen = [(asked, said) for asked, said in pairs if _verdict(asked, said, answers.head.classes) == kind]
    order = np.random.default_rng(0).permutation(len(chosen))[: MOST_RIGHT if kind == "right" else MOST_WRONG]
    cards = [_card(chosen[i][0], chosen[i][1], by_id, kind) for i in sorted(order.tolist())]
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _verdict(asked: Picture, said: Prediction, classes: Sequence[str]) -> str:
    if asked.label not in classes:
        return "let through" if said.label else "turned away"
    if said.label is None:
        return "called unknown"
    return "right" if said.label == asked.label else "wrong"


def _card(asked: Picture, said: Prediction, by_id: dict[str, Picture], kind: str) -> str:
    good = kind in ("right", "turned away")
    answer = said.label or f"unknown (likeliest: {said.best})"
    likeliest = sorted(said.probabilities.items(), key=lambda pair: -pair[1])[:BARS]
    bars = "".join(
        f'<li><span>{escape(label)}</span><span><i style="width:{100 * p:.0f}%"></i></span>'
        f"<span>{100 * p:.0f} %</span></li>"
        for label, p in likeliest
    )
    supports = "".join(
        _picture(by_id[n.id], f"{n.label} {n.similarity:.2f}", "right" if n.label == asked.label else "wrong")
        for n in said.neighbours
        if n.id in by_id
    )
    return (
        f'<div class="row">{_picture(asked, f"truth: {asked.label}", "asked")}<div class="answer">'
        f'{"✓" if good else "✗"} answered <b class="{"right" if good else "wrong"}">{escape(answer)}</b>'
        f'<ul class="bars">{bars}</ul><div class="supports">{supports}</div></div></div>'
    )


def _picture(picture: Picture, caption: str, kind: str) -> str:
    return figure(picture.source, caption, kind)


def _spread(found: list[Found], most: int) -> list[Found]:
    """Return up to `most`, of as many changes and classes as there are."""
    rest, chosen = list(found), list[Found]()
    while rest and len(chosen) < most:
        seen = [(answer.query.attributes.get("change"), answer.query.label) for answer in chosen]

        def repeats(answer: Found, seen: list[tuple[str | None, str]] = seen) -> int:
            change, label = answer.query.attributes.get("change"), answer.query.label
            return sum((c == change) + 2 * (name == label) for c, name in seen)

        best = min(rest, key=repeats)
        rest.remove(best)
        chosen.append(best)
    return chosen
