"""What one sees, in sentences made from the figures: they say when the baseline is better, too."""

from __future__ import annotations

from likewise.charts import confused_pairs
from likewise.demo.fewshot import Answers, ShotFigures
from likewise.demo.run import BUNDLED, TIDY, Figures
from likewise.head_results import Evaluation


def opening(figures: Figures) -> str:
    """Say what was done."""
    what = "Photographs and handwritten digits" if figures.data == BUNDLED else f"The pictures of {figures.data}"
    return (
        f"{what} went to a likewise server as a caller sends them. Its backbone, {figures.backbone}, stayed frozen: it"
        " was not trained on any of this here. The vectors it returned were searched, and light heads were trained"
        " on a few examples of each class."
    )


def search(figures: Figures) -> str:
    """Say what was searched and how that compares."""
    s = figures.search
    if s.by_change:
        how = (
            f"{s.indexed} pictures are indexed: photographs, whole and in pieces. Each of {s.queries} queries is a"
            " piece from another place and at another size, some of them also mirrored, darkened, shrunk or compressed."
            " A hit is a piece of the same photograph."
        )
    else:
        how = (
            f"{s.indexed} pictures are indexed. Each of {s.queries} of them is the query once and left out of its own"
            " answer. A hit is a picture of the same class."
        )
    return f"{how} The first hit is right in {s.hit_at_1.percent}, with raw pixels in {s.pixels_at_1.percent}."


def few_shot(figures: Figures) -> str:
    """Say how the accuracies came about and which side is ahead."""
    first = figures.few_shot[0]
    counts = list(dict.fromkeys(str(shot.shots) for shot in figures.few_shot))
    how = (
        f"A head sees {_listed(counts, 'or')} pictures of each of {first.classes} classes and then names"
        f" {first.test_images} others; it always says the likeliest class. The"
        " upper bar is likewise, the lower one the same head on raw pixels, the line across a bar its 95 % interval."
    )
    tasks = dict.fromkeys(shot.task for shot in figures.few_shot)
    verdicts = [_verdict([shot for shot in figures.few_shot if shot.task == task]) for task in tasks]
    note = ""
    if TIDY in tasks:
        note = (
            " As they come, the digits all fill the same small frame, so that comparing pixel by pixel works well."
            " Moved about, at another size and tilt in each picture, they are what pictures are like."
        )
    return " ".join([how + note, *verdicts])


def _verdict(shots: list[ShotFigures]) -> str:
    ahead = [str(shot.shots) for shot in shots if shot.accuracy.low > shot.pixels.high]
    behind = [str(shot.shots) for shot in shots if shot.accuracy.high < shot.pixels.low]
    said = []
    if ahead:
        said.append(f"the backbone is clearly ahead of raw pixels with {_listed(ahead)} a class")
    if behind:
        said.append(f"raw pixels are clearly ahead with {_listed(behind)}")
    if not said:
        said.append("neither is clearly ahead")
    return f"{shots[0].task.capitalize()}: {'; '.join(said)}."


def head(taught: Answers) -> str:
    """Say what was trained and why that kind."""
    made = taught.head
    counts = sorted(set(made.class_counts.values()))
    shown = examples(counts[0]) if len(counts) == 1 else f"{counts[0]} to {examples(counts[-1])}"
    accuracy = taught.evaluation.accuracy or 0.0
    return (
        f"Trained with kind “auto” on {shown} a class. Its choice and reason: “{made.reason}”. Each row of the matrix"
        f" is a true class, each column an answer. {100 * accuracy:.1f} % of {taught.evaluation.known_items} answers"
        " are right, where “unknown” counts as a mistake."
    )


def confusions(evaluation: Evaluation) -> str:
    """Name the most frequent mistakes."""
    pairs = confused_pairs(evaluation)
    if not pairs:
        return "No class was taken for another."
    return "Most often: " + ", ".join(f"{true} taken for {said} ({count} times)" for true, said, count in pairs) + "."


def unknown(figures: Figures) -> str:
    """Say what was hidden from the heads and what became of it."""
    first = figures.unknown[0]
    classes = first.known_classes + first.unknown_classes
    said = (
        f"{first.unknown_classes} of {classes} classes are hidden from a head, which learns the others from"
        f" {examples(first.shots)} each and is then asked about all; {first.draws} draws. What lies too far from every"
        f" example it was shown, it calls unknown. It turned away {first.false_rejects.percent} of its own classes and"
        f" {first.rejected.percent} of those it never saw ({first.task})."
    )
    if first.rejected.value < 0.5:  # noqa: PLR2004  # most got through
        said += (
            " So most of what is new, and like what it knows, gets a known name here: do not rely on it to tell"
            " such classes apart, and teach it examples of what it should not take for its own."
        )
    if first.strangers_rejected:
        said += f" Of photographs, which are no digits at all, it turned away {first.strangers_rejected.percent}."
    return f"{said} The matrix shows one of the draws, and its last row those it never saw."


def speed(figures: Figures) -> str:
    """Say how the times were taken."""
    indexing = figures.indexing
    repeats = next(iter(figures.latency_ms.values())).repeats
    return (
        f"{indexing.images} images were sent, decoded, embedded and durably stored in {indexing.seconds:.1f} s:"
        f" {indexing.images_per_second:.0f} images a second on {figures.device}, demo and server sharing the machine."
        f" Below, one call after another, {repeats} of each after a warm-up, as the caller sees them."
    )


def examples(shots: int) -> str:
    """Return the number with its noun."""
    return f"{shots} example{'s' if shots > 1 else ''}"


def _listed(shots: list[str], last: str = "and") -> str:
    return shots[0] if len(shots) == 1 else ", ".join(shots[:-1]) + f" {last} {shots[-1]}"
