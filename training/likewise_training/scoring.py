"""What a student is watched and reported by: few-shot accuracy on pictures kept from training, or agreement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from likewise_server.errors import InvalidArgument
from likewise_training import fewshot, pictures
from likewise_training.lesson import Teachers
from likewise_training.pictures import Picture
from likewise_training.student import Student

EPISODES: Final = 200
REPORTED_EPISODES: Final = 600
MOST_AGREEING: Final = 512  # held-out pictures that are compared pairwise
FEWEST_AGREEING: Final = 8  # of fewer, a correlation says nothing

Score = Callable[[Student], float]


def score_on(held: Sequence[Picture], teachers: Teachers | None, *, shots: int, seed: int) -> tuple[str, Score | None]:
    """Return the measure in words and what scores a student on held-out pictures; more is better.

    Few-shot accuracy where the labels allow it, else agreement with the teachers, else nothing.
    """
    how = fewshot.fitting(pictures.numbered(held, pictures.classes_of(held)), shots=shots)
    if how:
        words = "{ways}-way {shots}-shot accuracy in percent on held-out pictures, by nearest means".format(**how)
        return words, lambda student: accuracy(student, held, shots=shots, seed=seed, episodes=EPISODES)[0]
    if teachers is None or len(held) < FEWEST_AGREEING:
        return "nothing: too few pictures could be held out", None
    some = held[:MOST_AGREEING]
    said = teachers.embed(some)
    words = "correlation with the teachers' similarities of held-out pictures"
    return words, lambda student: fewshot.agreement(student.embed(some), said)


def accuracy(
    student: Student, held: Sequence[Picture], *, shots: int, seed: int, episodes: int = REPORTED_EPISODES
) -> tuple[float, float]:
    """Return few-shot accuracy in percent on labelled pictures and the half-width of its 95 % interval.

    Raises InvalidArgument where there are not two classes of two pictures each.
    """
    labels = pictures.numbered(held, pictures.classes_of(held))
    how = fewshot.fitting(labels, shots=shots)
    if how is None:
        raise InvalidArgument("the pictures of --test need labels, and each of two classes or more two pictures")
    labelled = [picture for picture, label in zip(held, labels.tolist(), strict=True) if label >= 0]
    return fewshot.few_shot(student.embed(labelled), labels[labels >= 0], episodes=episodes, seed=seed, **how)
