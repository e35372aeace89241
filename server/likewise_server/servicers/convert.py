"""Between messages and plain values. Nothing here decides anything but whether a message is well-formed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf import struct_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from numpy.typing import NDArray

from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import head_pb2 as hpb
from likewise_server.backbones.base import BackboneRef, Space
from likewise_server.engine.timings import Timings
from likewise_server.errors import InvalidArgument, LikewiseError
from likewise_server.images import Views
from likewise_server.store.types import CollectionInfo, IndexState, Item, Metric, Storage

DTYPES: dict[int, np.dtype[Any]] = {pb.DTYPE_FLOAT32: np.dtype("<f4"), pb.DTYPE_FLOAT16: np.dtype("<f2")}
POOLINGS: dict[pb.Pooling.ValueType, str] = {
    pb.POOLING_UNSPECIFIED: "",
    pb.POOLING_AVG: "avg",
    pb.POOLING_GEM: "gem",
    pb.POOLING_MAX: "max",
    pb.POOLING_CLS: "cls",
}
POOLING_NUMBERS = {name: number for number, name in POOLINGS.items()}
VIEWS: dict[hpb.Views.ValueType, Views] = {
    hpb.VIEWS_UNSPECIFIED: "",
    hpb.VIEWS_FLIP: "flip",
    hpb.VIEWS_CROPS: "crops",
}
METRICS: dict[int, Metric] = {
    cpb.METRIC_UNSPECIFIED: "cosine",
    cpb.METRIC_COSINE: "cosine",
    cpb.METRIC_DOT: "dot",
    cpb.METRIC_L2: "l2",
}
METRIC_NUMBERS = {"cosine": cpb.METRIC_COSINE, "dot": cpb.METRIC_DOT, "l2": cpb.METRIC_L2}
STORAGES: dict[int, Storage] = {
    cpb.STORAGE_UNSPECIFIED: "fp32",
    cpb.STORAGE_FP32: "fp32",
    cpb.STORAGE_FP16: "fp16",
}
STORAGE_NUMBERS = {"fp32": cpb.STORAGE_FP32, "fp16": cpb.STORAGE_FP16}


def status_of(error: LikewiseError) -> status_pb2.Status:
    """Return the google.rpc.Status of an error, with RetryInfo where it says when to come back."""
    status = status_pb2.Status(code=int(error.code), message=error.message)
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def item_errors(errors: Mapping[int, LikewiseError]) -> list[pb.ItemError]:
    """Return the messages of what is wrong with single items, by position."""
    return [pb.ItemError(index=index, status=status_of(error)) for index, error in sorted(errors.items())]


def ref_from(message: pb.BackboneRef) -> BackboneRef:
    """Return the reference in a message. Raises InvalidArgument for an unknown pooling."""
    if message.pooling not in POOLINGS:
        raise InvalidArgument(f"unknown pooling number {message.pooling}")
    return BackboneRef(message.name, message.layer, POOLINGS[message.pooling])


def ref_to(ref: BackboneRef) -> pb.BackboneRef:
    """Return the message of a reference."""
    return pb.BackboneRef(name=ref.name, layer=ref.layer, pooling=POOLING_NUMBERS[ref.pooling])


def views_from(number: hpb.Views.ValueType) -> Views:
    """Return the looks at each image that are asked for. Raises InvalidArgument for an unknown number."""
    if number not in VIEWS:
        raise InvalidArgument(f"unknown views number {number}")
    return VIEWS[number]


def space_to(space: Space) -> pb.Space:
    """Return the message of a space."""
    message = pb.Space(fingerprint=space.fingerprint, dim=space.dim)
    if space.backbone:
        message.backbone.CopyFrom(ref_to(space.backbone))
    return message


def collection_space(info: CollectionInfo) -> Space:
    """Return the space a collection is of."""
    return Space(info.fingerprint, info.dim, BackboneRef.parse(info.backbone) if info.backbone else None)


def matrix_to(vectors: NDArray[np.float32], dtype: pb.DType.ValueType = pb.DTYPE_FLOAT32) -> pb.Matrix:
    """Return a matrix message. Raises InvalidArgument for an unknown dtype."""
    dtype = dtype or pb.DTYPE_FLOAT32
    if dtype not in DTYPES:
        raise InvalidArgument(f"unknown dtype number {dtype}")
    rows, cols = vectors.shape
    return pb.Matrix(data=vectors.astype(DTYPES[dtype]).tobytes(), dtype=dtype, rows=rows, cols=cols)


def matrix_from(message: pb.Matrix) -> NDArray[np.float32]:
    """Return the (rows, cols) float32 array in a message. Raises InvalidArgument if the sizes disagree."""
    if message.dtype not in DTYPES:
        raise InvalidArgument("a matrix needs dtype float32 or float16")
    dtype = DTYPES[message.dtype]
    expected = message.rows * message.cols * dtype.itemsize
    if len(message.data) != expected:
        raise InvalidArgument(
            f"a {message.rows} x {message.cols} matrix has {expected} bytes, these are {len(message.data)}"
        )
    values: NDArray[np.float32] = np.frombuffer(message.data, dtype).astype(np.float32)
    return values.reshape(message.rows, message.cols)


def vector_from(data: bytes) -> NDArray[np.float32]:
    """Return the (dim,) float32 vector in little-endian bytes, to be read only.

    Raises InvalidArgument for a broken length.
    """
    if not data or len(data) % 4:
        raise InvalidArgument(f"a vector is float32 values of 4 bytes each; {len(data)} bytes are not")
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)


def attributes_to(attributes: Mapping[str, Any]) -> struct_pb2.Struct:
    """Return a Struct of JSON values."""
    message = struct_pb2.Struct()
    message.update(attributes)
    return message


def attributes_from(message: struct_pb2.Struct) -> dict[str, Any]:
    """Return a Struct's JSON values, whole numbers as int. Raises InvalidArgument for NaN and infinities."""
    return {name: _plain(value) for name, value in message.fields.items()}


def _plain(value: struct_pb2.Value) -> Any:
    """Return a JSON value. By hand: json_format takes five times as long, and thousands of items come at once."""
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        if not math.isfinite(number):
            raise InvalidArgument("attributes are JSON: no NaN and no infinities")
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if kind == "struct_value":
        return attributes_from(value.struct_value)
    if kind == "list_value":
        return [_plain(each) for each in value.list_value.values]
    return None if kind in {None, "null_value"} else getattr(value, kind)


def item_info_to(item: Item) -> pb.ItemInfo:
    """Return the message of an item without its vector."""
    return pb.ItemInfo(
        id=item.id,
        label=item.label,
        attributes=attributes_to(item.attributes) if item.attributes else None,
        uri=item.uri,
        content_hash=item.content_hash,
    )


def item_to(item: Item) -> cpb.Item:
    """Return the message of an item, with its vector if it has one."""
    message = cpb.Item(info=item_info_to(item), update_time=time_to(item.updated_at))
    if item.vector is not None:
        message.vector = item.vector.astype("<f4").tobytes()
    return message


def collection_to(info: CollectionInfo) -> cpb.Collection:
    """Return the message of a collection."""
    return cpb.Collection(
        name=info.name,
        space=space_to(collection_space(info)),
        metric=METRIC_NUMBERS[info.metric],
        count=info.count,
        create_time=time_to(info.created_at),
        bytes=info.bytes_by_part,
        index=info.index,
        indexed_attributes=info.indexed,
        storage=STORAGE_NUMBERS[info.storage],
        index_state=_state_to(info.state),
    )


def _state_to(state: IndexState) -> cpb.IndexState:
    return cpb.IndexState(
        kind=state.kind,
        rows=state.rows,
        delta=state.delta,
        measured_recall=state.measured_recall,
        operating_point=state.operating_point,
        building=state.building,
        progress=state.progress,
    )


def time_to(seconds: float) -> Timestamp:
    """Return the Timestamp of Unix `seconds`."""
    message = Timestamp()
    message.FromNanoseconds(int(seconds * 1e9))
    return message


def timings_to(timings: Timings) -> pb.StageTimings:
    """Return the message of stage timings."""
    return pb.StageTimings(
        decode_ms=timings.decode_s * 1e3,
        queue_ms=timings.queue_s * 1e3,
        forward_ms=timings.forward_s * 1e3,
        store_ms=timings.store_s * 1e3,
        head_ms=timings.head_s * 1e3,
        total_ms=timings.total_s() * 1e3,
    )


def storage_from(number: int) -> Storage:
    """Return a storage's name. Raises InvalidArgument for an unknown number."""
    if number not in STORAGES:
        raise InvalidArgument(f"unknown storage number {number}")
    return STORAGES[number]


def metric_from(number: int) -> Metric:
    """Return a metric's name. Raises InvalidArgument for an unknown number."""
    if number not in METRICS:
        raise InvalidArgument(f"unknown metric number {number}")
    return METRICS[number]
