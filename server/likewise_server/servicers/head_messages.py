"""Messages of HeadService, out of the engine's values and into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from likewise_proto.v1 import head_pb2 as hpb
from likewise_server.engine.classification import Evaluated
from likewise_server.engine.gathering import Example, Examples
from likewise_server.engine.sources import Adaptation
from likewise_server.errors import LikewiseError
from likewise_server.heads import Metrics, Prediction
from likewise_server.servicers import convert
from likewise_server.store.types import CollectionInfo, HeadRow


def examples_from(request: hpb.TrainHeadRequest | hpb.UpdateHeadRequest) -> Examples:
    """Return the examples in a request."""
    examples = [example_from(example) for example in request.examples]
    return Examples(examples, request.fingerprint, convert.views_from(request.views))


def adaptation_from(request: hpb.TrainHeadRequest) -> Adaptation | None:
    """Return the adaptation that a request asks for, None without one."""
    if not request.HasField("adaptation"):
        return None
    asked = request.adaptation
    return Adaptation(asked.method, asked.target, asked.target_where)


def example_from(message: hpb.Example) -> Example:
    """Return a labelled example. Raises InvalidArgument for a broken vector."""
    content = message.WhichOneof("content")
    return Example(
        label=message.label,
        id=message.id,
        image=message.image.data if content == "image" else None,
        vector=convert.vector_from(message.vector) if content == "vector" else None,
    )


def head_to(row: HeadRow, info: CollectionInfo) -> hpb.Head:
    """Return the message of a stored head, for which nobody has to read its arrays."""
    head = row.meta["head"]
    metrics = Metrics(**head["metrics"])
    return hpb.Head(
        name=row.name,
        version=row.version,
        kind=row.kind,
        collection=info.name,
        space=convert.space_to(convert.collection_space(info)),
        classes=head["classes"],
        class_counts=metrics.per_class,
        metrics=metrics_to(metrics),
        reason=head["reason"],
        warnings=head["warnings"],
        options=convert.attributes_to(row.meta.get("options", {})),
        create_time=convert.time_to(row.created_at),
        adaptation=_report_to(row.meta.get("adaptation")),
    )


def _report_to(report: Mapping[str, Any] | None) -> hpb.AdaptationReport | None:
    """Return the message of the report that `engine.sources.train_adapted` made."""
    if report is None:
        return None
    return hpb.AdaptationReport(
        method=report["method"],
        source_items=report["source_items"],
        target_items=report["target_items"],
        measured_items=report["measured_items"],
        accuracy_before=report.get("accuracy_before"),
        accuracy_after=report.get("accuracy_after"),
        gain_low=report.get("gain_low"),
        gain_high=report.get("gain_high"),
    )


def metrics_to(metrics: Metrics) -> hpb.HeadMetrics:
    """Return the message of what training measured."""
    return hpb.HeadMetrics(
        accuracy=metrics.accuracy,
        accuracy_low=metrics.accuracy_low,
        accuracy_high=metrics.accuracy_high,
        folds=metrics.n_folds,
        items=metrics.n,
        chance=metrics.chance,
        false_reject_rate=metrics.false_reject_rate,
        unknown_accept_rate=metrics.unknown_accept_rate,
        note=metrics.note,
        method=metrics.method,
        held_out=metrics.n_held_out,
        temperature=metrics.temperature,
    )


def prediction_to(prediction: Prediction | LikewiseError) -> hpb.Prediction:
    """Return the message of one answer, or of what was wrong with its query."""
    if isinstance(prediction, LikewiseError):
        return hpb.Prediction(error=convert.status_of(prediction))
    return hpb.Prediction(
        label=prediction.label,
        best=prediction.best,
        score=prediction.score,
        probabilities=prediction.probabilities.tolist(),
        novelty=prediction.novelty,
        threshold=prediction.threshold,
        neighbours=[hpb.Neighbour(id=n.id, label=n.label, similarity=n.similarity) for n in prediction.neighbours],
    )


def evaluation_to(done: Evaluated) -> hpb.EvaluateHeadResponse:
    """Return the message of how a head did."""
    found = done.evaluation
    return hpb.EvaluateHeadResponse(
        version=done.stored.row.version,
        items=found.n,
        known_items=found.n_known,
        training_items=done.training_items,
        accuracy=found.accuracy,
        accuracy_low=found.accuracy_low,
        accuracy_high=found.accuracy_high,
        macro_f1=found.macro_f1,
        ece=found.ece,
        false_reject_rate=found.false_reject_rate,
        unknown_accept_rate=found.unknown_accept_rate,
        rejection_auroc=found.rejection_auroc,
        classes=[
            hpb.ClassReport(label=label, precision=r.precision, recall=r.recall, f1=r.f1, support=r.support)
            for label, r in found.per_class.items()
        ],
        confusion=found.confusion.ravel().tolist(),
        labels=done.stored.head.classes,
        coverages=[coverage for coverage, _ in found.rejection_curve],
        accuracies=[accuracy for _, accuracy in found.rejection_curve],
        reliability=[
            hpb.ReliabilityBin(score=part.score, accuracy=part.accuracy, items=part.n) for part in found.reliability
        ],
        mistakes=[
            hpb.ConfusedItem(id=m.id, label=m.label, answer=m.answer, score=m.score, uri=m.uri) for m in done.mistakes
        ],
        timings=convert.timings_to(done.timings),
    )
