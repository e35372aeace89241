"""Between messages and results."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct, Value

from likewise import head_results, results
from likewise.errors import InvalidArgument, LikewiseError
from likewise.results import Float32
from likewise.transport import error_from
from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1 import head_pb2 as hpb

LARGEST_INTEGER = 2**53
DTYPES = {pb.DTYPE_FLOAT32: "<f4", pb.DTYPE_FLOAT16: "<f2"}
POOLINGS: dict[str, pb.Pooling.ValueType] = {
    "": pb.POOLING_UNSPECIFIED,
    "avg": pb.POOLING_AVG,
    "gem": pb.POOLING_GEM,
    "max": pb.POOLING_MAX,
    "cls": pb.POOLING_CLS,
}
VIEWS: dict[str, hpb.Views.ValueType] = {
    "": hpb.VIEWS_UNSPECIFIED,
    "flip": hpb.VIEWS_FLIP,
    "crops": hpb.VIEWS_CROPS,
}
METRICS: dict[str, cpb.Metric.ValueType] = {
    "cosine": cpb.METRIC_COSINE,
    "dot": cpb.METRIC_DOT,
    "l2": cpb.METRIC_L2,
}
STORAGES: dict[str, cpb.Storage.ValueType] = {"fp32": cpb.STORAGE_FP32, "fp16": cpb.STORAGE_FP16}
OUTCOMES: dict[cpb.Outcome.ValueType, str] = {
    cpb.OUTCOME_CREATED: "created",
    cpb.OUTCOME_UPDATED: "updated",
    cpb.OUTCOME_UNCHANGED: "unchanged",
}


def backbone_ref(name: str | None, layer: str = "", pooling: str = "") -> pb.BackboneRef:
    """Return the reference to a feature; `name` may also be "name?layer=…&pooling=…" as results print it."""
    name, _, query = (name or "").partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    pooling = pooling or options.get("pooling", "")
    if pooling not in POOLINGS:
        raise InvalidArgument(f"unknown pooling {pooling!r}: use avg, gem, max or cls")
    return pb.BackboneRef(name=name, layer=layer or options.get("layer", ""), pooling=POOLINGS[pooling])


def views(name: str | None) -> hpb.Views.ValueType:
    """Return the number of looks at each image. Raises InvalidArgument for an unknown name."""
    if (name or "") not in VIEWS:
        raise InvalidArgument(f"views is {name!r}: use flip (an image and its mirror image) or crops (ten of it)")
    return VIEWS[name or ""]


def backbone_name(space: pb.Space) -> str:
    """Return what `ref_name` does of a space's backbone."""
    return ref_name(space.backbone)


def ref_name(ref: pb.BackboneRef) -> str:
    """Return "name", or "name?layer=…&pooling=…" for another than the default feature; "" for none."""
    pooling = next(name for name, number in POOLINGS.items() if number == ref.pooling)
    options = [f"{key}={value}" for key, value in (("layer", ref.layer), ("pooling", pooling)) if value]
    return ref.name + ("?" + "&".join(options) if options else "")


def matrix(message: pb.Matrix) -> Float32:
    """Return the (rows, cols) float32 array in a message."""
    values: Float32 = np.frombuffer(message.data, DTYPES[message.dtype]).astype(np.float32)
    return values.reshape(message.rows, message.cols)


def matrix_message(vectors: Any) -> pb.Matrix:
    """Return the message of an (n, dim) array. Raises InvalidArgument for another shape."""
    array = np.asarray(vectors, dtype="<f4")
    if array.ndim != 2:  # noqa: PLR2004  # a matrix
        raise InvalidArgument(f"vectors are an (n, dim) array; this one is {array.shape}")
    return pb.Matrix(data=array.tobytes(), dtype=pb.DTYPE_FLOAT32, rows=array.shape[0], cols=array.shape[1])


def struct(values: dict[str, Any]) -> Struct:
    """Return the message of a JSON object. Raises InvalidArgument for what JSON cannot hold."""
    message = Struct()
    for key, value in values.items():
        try:
            message.update({key: _json(value)})
            Struct.FromString(message.SerializeToString())  # protobuf reads only so deep
        except (ValueError, TypeError, OverflowError, RecursionError, DecodeError) as error:
            raise InvalidArgument(f"{key!r} is no JSON value that can be sent: {error}") from error
    return message


def _json(value: Any) -> Any:
    """Return NumPy's numbers as Python's, and refuse integers that a double cannot hold."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise ValueError(f"integers go up to 2**53, {value:.3g} is larger: store it as text")
    if isinstance(value, dict):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(v) for v in value]
    if value is not None and not isinstance(value, (str, int, float)):
        raise TypeError(f"it holds a {type(value).__name__}")
    return value


def plain(message: Struct) -> dict[str, Any]:
    """Return a JSON object, whole numbers as int."""
    values: dict[str, Any] = _integers(MessageToDict(message)) if message.fields else {}
    return values


def _integers(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, list):
        return [_integers(v) for v in value]
    if isinstance(value, dict):
        return {k: _integers(v) for k, v in value.items()}
    return value


def timings(message: pb.StageTimings) -> results.Timings:
    """Return stage timings."""
    return results.Timings(
        message.decode_ms,
        message.queue_ms,
        message.forward_ms,
        message.store_ms,
        message.head_ms,
        message.total_ms,
    )


def outcome(message: cpb.UpsertResult) -> results.Outcome:
    """Return what became of one item."""
    if message.HasField("error"):
        return results.Outcome(message.id, "failed", error_from(message.error))
    return results.Outcome(message.id, OUTCOMES[message.outcome])


def item(message: cpb.Item) -> results.Item:
    """Return a stored item."""
    info = message.info
    vector: Float32 | None = np.frombuffer(message.vector, "<f4").astype(np.float32) if message.vector else None
    return results.Item(
        id=info.id,
        label=info.label if info.HasField("label") else None,
        attributes=plain(info.attributes),
        uri=info.uri,
        content_hash=info.content_hash,
        updated_at=message.update_time.ToNanoseconds() / 1e9,
        vector=vector,
    )


def hits(message: cpb.QueryResult, reply: cpb.SearchResponse) -> results.Hits:
    """Return the hits of one query."""
    groups = [_group(group) for group in message.groups]
    return results.Hits(
        _hits(message, groups),
        exact=reply.exact,
        measured_recall=reply.measured_recall if reply.HasField("measured_recall") else None,
        scanned=reply.scanned,
        filtered_count=reply.filtered_count if reply.HasField("filtered_count") else None,
        error=error_from(message.error) if message.HasField("error") else None,
        timings=timings(reply.timings),
        groups=groups,
    )


def _hits(message: cpb.QueryResult, groups: list[results.Group]) -> list[results.Hit]:
    if groups:
        return [hit for group in groups for hit in group.hits]
    if message.ids:
        return [results.Hit(*pair, None, {}, "") for pair in zip(message.ids, message.scores, strict=True)]
    return [hit(each) for each in message.hits]


def _group(message: cpb.Group) -> results.Group:
    return results.Group(_scalar(message.value), tuple(hit(each) for each in message.hits))


def _scalar(message: Value) -> str | float | bool:
    kind = message.WhichOneof("kind")
    if kind == "string_value":
        return message.string_value
    return message.bool_value if kind == "bool_value" else _integers(message.number_value)


def hit(message: cpb.Hit) -> results.Hit:
    """Return a found item."""
    info = message.info
    label = info.label if info.HasField("label") else None
    return results.Hit(info.id, message.score, label, plain(info.attributes), info.uri)


def collection(message: cpb.Collection) -> results.CollectionInfo:
    """Return a collection's description."""
    return results.CollectionInfo(
        name=message.name,
        count=message.count,
        dim=message.space.dim,
        metric=next(name for name, number in METRICS.items() if number == message.metric),
        backbone=backbone_name(message.space),
        fingerprint=message.space.fingerprint,
        created_at=message.create_time.ToNanoseconds() / 1e9,
        bytes=dict(message.bytes),
        index=message.index,
        indexed=tuple(message.indexed_attributes),
        storage=next((name for name, number in STORAGES.items() if number == message.storage), ""),
        state=_state(message.index_state),
    )


def _state(message: cpb.IndexState) -> results.IndexState:
    return results.IndexState(
        kind=message.kind,
        rows=message.rows,
        delta=message.delta,
        measured_recall=message.measured_recall if message.HasField("measured_recall") else None,
        operating_point=message.operating_point,
        building=message.building,
        progress=message.progress,
    )


def head_metrics(m: hpb.HeadMetrics) -> head_results.HeadMetrics:
    """Return what training measured."""
    return head_results.HeadMetrics(
        accuracy=m.accuracy if m.HasField("accuracy") else None,
        accuracy_low=m.accuracy_low if m.HasField("accuracy_low") else None,
        accuracy_high=m.accuracy_high if m.HasField("accuracy_high") else None,
        chance=m.chance,
        items=m.items,
        held_out=m.held_out,
        method=m.method,
        false_reject_rate=m.false_reject_rate if m.HasField("false_reject_rate") else None,
        unknown_accept_rate=m.unknown_accept_rate if m.HasField("unknown_accept_rate") else None,
        temperature=m.temperature,
        note=m.note,
    )


def _adaptation(m: hpb.AdaptationReport) -> head_results.AdaptationReport:
    measured = m.HasField("accuracy_after")
    return head_results.AdaptationReport(
        method=m.method,
        source_items=m.source_items,
        target_items=m.target_items,
        measured_items=m.measured_items,
        accuracy_before=m.accuracy_before if measured else None,
        accuracy_after=m.accuracy_after if measured else None,
        gain_low=m.gain_low if measured else None,
        gain_high=m.gain_high if measured else None,
    )


def head(message: hpb.Head) -> head_results.Head:
    """Return a head's description."""
    return head_results.Head(
        name=message.name,
        version=message.version,
        kind=message.kind,
        collection=message.collection,
        fingerprint=message.space.fingerprint,
        classes=tuple(message.classes),
        class_counts=dict(message.class_counts),
        metrics=head_metrics(message.metrics),
        reason=message.reason,
        warnings=tuple(message.warnings),
        options=plain(message.options),
        created_at=message.create_time.ToNanoseconds() / 1e9,
        adaptation=_adaptation(message.adaptation) if message.HasField("adaptation") else None,
    )


def prediction(message: hpb.Prediction, reply: hpb.ClassifyResponse) -> head_results.Prediction:
    """Return one answer."""
    error: LikewiseError | None = error_from(message.error) if message.HasField("error") else None
    return head_results.Prediction(
        label=message.label if message.HasField("label") else None,
        best=message.best,
        score=message.score,
        probabilities=dict(zip(reply.classes, message.probabilities, strict=not error)),
        novelty=message.novelty,
        threshold=message.threshold,
        neighbours=tuple(head_results.Neighbour(n.id, n.label, n.similarity) for n in message.neighbours),
        head_version=reply.version,
        fingerprint=reply.fingerprint,
        error=error,
    )


def _class_report(message: hpb.ClassReport) -> head_results.ClassReport:
    return head_results.ClassReport(message.label, message.precision, message.recall, message.f1, message.support)


def evaluation(message: hpb.EvaluateHeadResponse) -> head_results.Evaluation:
    """Return how a head did."""

    def maybe(name: str) -> float | None:
        return float(getattr(message, name)) if message.HasField(name) else None  # type: ignore[arg-type]  # a field's name

    size = len(message.labels) + 1
    return head_results.Evaluation(
        version=message.version,
        items=message.items,
        known_items=message.known_items,
        training_items=message.training_items,
        accuracy=maybe("accuracy"),
        accuracy_low=maybe("accuracy_low"),
        accuracy_high=maybe("accuracy_high"),
        macro_f1=maybe("macro_f1"),
        ece=maybe("ece"),
        false_reject_rate=maybe("false_reject_rate"),
        unknown_accept_rate=maybe("unknown_accept_rate"),
        classes=tuple(map(_class_report, message.classes)),
        labels=tuple(message.labels),
        confusion=np.array(message.confusion, dtype=np.int64).reshape(size, size),
        rejection_curve=tuple(zip(message.coverages, message.accuracies, strict=True)),
        reliability=tuple(head_results.ReliabilityBin(b.score, b.accuracy, b.items) for b in message.reliability),
        rejection_auroc=maybe("rejection_auroc"),
        mistakes=tuple(head_results.ConfusedItem(m.id, m.label, m.answer, m.score, m.uri) for m in message.mistakes),
    )


def backbone(message: epb.BackboneInfo) -> results.BackboneInfo:
    """Return a backbone's description."""
    return results.BackboneInfo(
        name=message.name,
        served=message.served,
        fingerprint=message.space.fingerprint,
        dim=message.space.dim,
        device=message.device,
        precision=message.precision,
        layers=tuple(message.layers),
        input_size=message.input_size,
        execution=message.execution,
    )


def server_info(message: epb.GetServerInfoResponse) -> results.ServerInfo:
    """Return who answers."""
    m = message.limits
    limits = results.Limits(
        m.max_message_bytes, m.max_items, m.max_image_bytes, m.max_pixels, m.max_k, m.stream_window, m.max_hits
    )
    return results.ServerInfo(message.version, message.default_backbone, message.device, message.uptime_s, limits)
