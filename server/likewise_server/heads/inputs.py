"""What comes in: checked vectors and labels, and warnings about labels that look like mistakes."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np

from likewise_server.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

# A class this many times larger than another is worth a word.
_UNEQUAL = 5
_NAMED = 3


def check_vectors(vectors: ArrayLike, *, dim: int | None = None) -> NDArray[np.float64]:
    """Return the vectors as (n, d) float64 with n, d ≥ 1, finite and none of length zero.

    Raises InvalidArgument, naming the first offending row.
    """
    try:
        X = np.asarray(vectors, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgument("vectors must be an array of numbers of shape (n, d)") from error
    if X.ndim != 2 or 0 in X.shape:  # noqa: PLR2004
        raise InvalidArgument(f"vectors must have shape (n, d) with at least one row, not {X.shape}")
    if dim is not None and X.shape[1] != dim:
        raise InvalidArgument(f"vectors have {X.shape[1]} dimensions, the head has {dim}: use its backbone")
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(X, axis=1)
    if not np.isfinite(lengths).all():
        row = int(np.flatnonzero(~np.isfinite(lengths))[0])
        raise InvalidArgument(f"vector {row} holds NaN, infinity or numbers too large: leave it out")
    if not lengths.all():
        row = int(np.flatnonzero(lengths == 0)[0])
        raise InvalidArgument(f"vector {row} is all zeros and has no direction: leave it out")
    return X


def check_labels(labels: Sequence[object], n: int) -> list[str]:
    """Return the labels as they are; InvalidArgument unless they are n non-empty strings."""
    if len(labels) != n:
        raise InvalidArgument(f"{n} vectors came with {len(labels)} labels: give each vector one label")
    checked = []
    for i, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise InvalidArgument(f"label {i} is {label!r}: give each vector a label that is not empty")
        # A numpy.str_ is a str, but not one that every serialiser takes.
        checked.append(str(label))
    return checked


def check_ids(ids: Sequence[str], n: int) -> list[str]:
    """Return the ids as they are; InvalidArgument unless they are n different strings."""
    if len(ids) != n:
        raise InvalidArgument(f"{n} vectors came with {len(ids)} ids: give each vector one id")
    if len(set(ids)) != n:
        twice = next(i for i, count in Counter(ids).items() if count > 1)
        raise InvalidArgument(f"id {twice!r} is given twice: ids must differ")
    return [str(i) for i in ids]


def check_mean(mean: ArrayLike | None, dim: int) -> NDArray[np.float64] | None:
    """Return the collection's mean as (d,) float64; InvalidArgument unless finite and of that shape."""
    if mean is None:
        return None
    checked = np.asarray(mean, dtype=np.float64)
    if checked.shape != (dim,) or not np.isfinite(checked).all():
        raise InvalidArgument(f"pool_mean must be {dim} finite numbers, not shape {checked.shape}")
    return checked


def check_hashes(hashes: Sequence[str], n: int) -> None:
    """Raise InvalidArgument unless there are n content hashes, or none."""
    if len(hashes) not in {0, n}:
        raise InvalidArgument(f"{n} vectors came with {len(hashes)} content hashes: give all or none")


def check_blocks(blocks: Sequence[int], dim: int) -> tuple[int, ...]:
    """Return the widths of a vector's parts; InvalidArgument unless they are positive and `dim` in sum, or none."""
    widths = tuple(int(width) for width in blocks)
    if widths and (min(widths) < 1 or sum(widths) != dim):
        raise InvalidArgument(f"blocks {widths} must be the widths of the parts of vectors of {dim} dimensions")
    return widths


def label_warnings(labels: Sequence[str], pictures: Sequence[Hashable], ids: Sequence[str]) -> tuple[str, ...]:
    """Return warnings about the examples; `pictures` is equal where two examples are the same picture."""
    sizes = Counter(labels)
    return (*_near_names(sizes), *_duplicates(labels, pictures, ids), *_sizes(sizes))


def _near_names(sizes: Mapping[str, int]) -> Iterable[str]:
    alike: dict[str, list[str]] = defaultdict(list)
    for label in sorted(sizes):
        alike["".join(label.split()).casefold()].append(label)
    for names in alike.values():
        if len(names) > 1:
            listed = ", ".join(map(repr, names))
            yield f"labels that differ only in case or spaces are separate classes: {listed}"
    for label in sorted(sizes):
        if label != label.strip():
            yield f"label {label!r} begins or ends with a space"


def _duplicates(labels: Sequence[str], pictures: Sequence[Hashable], ids: Sequence[str]) -> Iterable[str]:
    same: dict[Hashable, list[int]] = defaultdict(list)
    for i, picture in enumerate(pictures):
        same[picture].append(i)
    groups = [rows for rows in same.values() if len(rows) > 1]
    torn = [rows for rows in groups if len({labels[i] for i in rows}) > 1]
    for rows in torn[:_NAMED]:
        where = ", ".join(f"{ids[i]!r} as {labels[i]!r}" for i in rows[:_NAMED])
        yield f"the same picture is in more than one class: {where}"
    if len(torn) > _NAMED:
        yield f"{len(torn) - _NAMED} more pictures are in more than one class"
    if repeated := sum(len(rows) - 1 for rows in groups):
        yield f"{repeated} of {len(labels)} examples repeat a picture, which flatters the measured accuracy"


def _sizes(sizes: Mapping[str, int]) -> Iterable[str]:
    if len(sizes) == 1:
        yield "there is one class: the head can only accept or reject"
        return
    small, large = min(sizes, key=lambda c: (sizes[c], c)), max(sizes, key=lambda c: (sizes[c], c))
    if sizes[large] >= _UNEQUAL * sizes[small]:
        yield f"classes are of unequal size: {sizes[small]} of {small!r}, {sizes[large]} of {large!r}"
    single = [label for label, count in sizes.items() if count == 1]
    if single and len(single) < len(sizes):
        yield f"{len(single)} of {len(sizes)} classes have one example and are in no measured rate"
