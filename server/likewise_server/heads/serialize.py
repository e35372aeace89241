"""Heads at rest: safetensors for arrays, JSON for the rest, and nothing that runs when it is read."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from likewise_server.errors import FailedPrecondition
from likewise_server.heads import registry
from likewise_server.heads.head import Metrics, TrainedHead
from likewise_server.heads.likeness import Likeness
from likewise_server.heads.moments import Ledger, Moments
from likewise_server.heads.rejection import Rejection

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1
_SCORER = "scorer."


def to_bytes(head: TrainedHead) -> bytes:
    """See TrainedHead.to_bytes. The ids are there too, since meta should stay small."""
    from safetensors.numpy import save  # noqa: PLC0415

    arrays: dict[str, np.ndarray[Any, Any]] = {
        "supports": head.supports,
        "support_classes": head.support_classes,
        "support_ids": _packed(head.support_ids),
        "log_prior": head.log_prior,
    }
    if head.mean is not None:
        arrays["mean"] = head.mean
    if head.pool_mean is not None:
        arrays["pool_mean"] = head.pool_mean
    if head.rejection.likeness is not None:
        arrays["likeness"] = head.rejection.likeness.W
    if head.support_hashes:
        arrays["support_hashes"] = _packed(head.support_hashes)
    if head.ledger is not None:
        arrays |= _ledger_arrays(head.ledger)
    arrays |= {_SCORER + name: array for name, array in head.scorer.arrays().items()}
    # safetensors writes memory as it lies: a view or a transposed array would be stored wrongly.
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def _packed(texts: tuple[str, ...]) -> np.ndarray[Any, Any]:
    return np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)


def _unpacked(array: np.ndarray[Any, Any] | None) -> tuple[str, ...]:
    return () if array is None else tuple(json.loads(array.tobytes()))


def _likeness(arrays: Mapping[str, np.ndarray[Any, Any]]) -> Likeness | None:
    return Likeness(arrays["likeness"], arrays.get("pool_mean")) if "likeness" in arrays else None


def _ledger_arrays(ledger: Ledger) -> dict[str, np.ndarray[Any, Any]]:
    arrays = {
        "ledger.ids": _packed(ledger.ids),
        "ledger.classes": ledger.classes,
        "ledger.hashes": ledger.hashes,
        "ledger.sums": ledger.moments.sums,
        "ledger.counts": ledger.moments.counts.astype(np.int64),
    }
    return arrays if ledger.moments.gram is None else {**arrays, "ledger.gram": ledger.moments.gram}


def _ledger(arrays: Mapping[str, np.ndarray[Any, Any]]) -> Ledger | None:
    if "ledger.ids" not in arrays:
        return None
    moments = Moments(arrays.get("ledger.gram"), arrays["ledger.sums"], arrays["ledger.counts"].astype(np.intp))
    return Ledger(moments, _unpacked(arrays["ledger.ids"]), arrays["ledger.classes"], arrays["ledger.hashes"])


def to_meta(head: TrainedHead) -> dict[str, object]:
    """See TrainedHead.meta."""
    return {
        "version": VERSION,
        "kind": head.kind,
        "classes": list(head.classes),
        "dim": head.dim,
        "metrics": {**asdict(head.metrics), "per_class": dict(head.metrics.per_class)},
        "rejection": head.rejection.facts(),
        "options": dict(head.options),
        "chosen": dict(head.chosen),
        "reason": head.reason,
        "warnings": list(head.warnings),
    }


def restore(blob: bytes, meta: Mapping[str, Any]) -> TrainedHead:
    """See TrainedHead.from_bytes."""
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.numpy import load  # noqa: PLC0415

    if meta.get("version") != VERSION:
        raise FailedPrecondition(
            f"the head is stored in version {meta.get('version')!r}, not {VERSION}: train it again"
        )
    try:
        arrays = load(blob)
        scorer = {name.removeprefix(_SCORER): array for name, array in arrays.items() if name.startswith(_SCORER)}
        return TrainedHead(
            kind=meta["kind"],
            classes=tuple(meta["classes"]),
            dim=meta["dim"],
            metrics=Metrics(**meta["metrics"]),
            rejection=Rejection(**meta["rejection"], likeness=_likeness(arrays)),
            pool_mean=arrays.get("pool_mean"),
            options=meta["options"],
            chosen=meta["chosen"],
            reason=meta["reason"],
            warnings=tuple(meta["warnings"]),
            support_ids=_unpacked(arrays["support_ids"]),
            support_classes=arrays["support_classes"],
            supports=arrays["supports"],
            mean=arrays.get("mean"),
            log_prior=arrays["log_prior"],
            scorer=registry.load(meta["kind"]).restore(scorer),
            support_hashes=_unpacked(arrays.get("support_hashes")),
            ledger=_ledger(arrays),
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FailedPrecondition("the stored head is damaged: train it again") from error
