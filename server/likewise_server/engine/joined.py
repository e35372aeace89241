"""Several backbones as one: "resnet50+likewise-tiny" is a backbone whose vectors are those of both, side by side.

Each part has length 1 before all are scaled so that the whole has: by cosine every backbone counts the same, whatever
its width and the size of its numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from likewise_server.backbones.base import BackboneRef, Space
from likewise_server.errors import InvalidArgument

SCHEME = 1  # of how parts are put together, and of the fingerprint
SIGN = "+"
MOST = 8  # backbones in one: each is a forward for every image


def is_joined(ref: BackboneRef) -> bool:
    """Return whether a reference names several backbones."""
    return SIGN in ref.name


def names(ref: BackboneRef) -> list[str]:
    """Return the names of the backbones that a joined reference names, in their order.

    Raises InvalidArgument for an empty or repeated name, too many of them, and a layer or pooling.
    """
    found = ref.name.split(SIGN)
    if len(found) > MOST or len(set(found)) < len(found) or any(not name or name != name.strip() for name in found):
        raise InvalidArgument(
            f"backbone {ref.name!r}: join up to {MOST} different names by {SIGN}, without spaces between"
        )
    if ref.layer or ref.pooling:
        raise InvalidArgument(
            f"{ref.name!r} has several backbones, which share no layers: leave layer and pooling out. To join other "
            "features, embed with each backbone and put the vectors side by side in a collection made with dim"
        )
    return found


def joined_space(ref: BackboneRef, parts: Sequence[Space]) -> Space:
    """Return the space of `ref`, whose members have the spaces `parts` in this order."""
    facts = {"scheme": SCHEME, "joined": [part.fingerprint for part in parts]}
    fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return Space(fingerprint, sum(part.dim for part in parts), ref)


def side_by_side(parts: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return (n, dim) float32 rows of length 1 out of parts (n, d_i), and which rows have a part without direction.

    Such a part, of zeros, stays zeros.
    """
    missing = np.zeros(len(parts[0]), np.bool_)
    blocks: list[NDArray[np.float64]] = []
    for part in parts:
        rows = part.astype(np.float64)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        missing |= lengths[:, 0] == 0
        blocks.append(rows / np.where(lengths > 0, lengths, 1.0))
    return (np.hstack(blocks) / np.sqrt(len(parts))).astype(np.float32), missing
