"""What Search and Classify are asked with and for, out of their messages."""

from __future__ import annotations

from likewise_proto.v1.collection_pb2 import ExampleRef as ExampleMessage
from likewise_proto.v1.collection_pb2 import SearchRequest
from likewise_proto.v1.head_pb2 import ClassifyRequest
from likewise_server.engine.examples import ByExamples, ExampleRef
from likewise_server.engine.queries import ByIds, ByImages, ByVectors, Query
from likewise_server.engine.searching import Wanted
from likewise_server.errors import InvalidArgument
from likewise_server.servicers import convert
from likewise_server.servicers.limits import Limits


def query_from(request: SearchRequest | ClassifyRequest, limits: Limits, hits: int) -> Query:
    """Return the queries in a request, each asking for so many `hits`.

    Raises InvalidArgument for none, OutOfRange for too many.
    """
    which = request.WhichOneof("queries")
    views = convert.views_from(request.views) if isinstance(request, ClassifyRequest) else ""
    if views and which != "images":
        raise InvalidArgument("views are looks at images, and these queries are none: leave views out")
    query: Query = ByIds([])
    count = 0
    if which == "images":
        query = ByImages([image.data for image in request.images.images], views)
        count = len(query.images)
    elif which == "vectors":
        query = ByVectors(convert.matrix_from(request.vectors), request.fingerprint)
        count = len(query.vectors)
    elif which == "ids":
        query = ByIds(list(request.ids.ids))
        count = len(query.ids)
    if not count:
        raise InvalidArgument("no queries: send images, vectors or ids")
    limits.check_items(count, "queries")
    limits.check_hits(count, hits)
    return query


def search_from(request: SearchRequest, limits: Limits) -> tuple[Query | ByExamples, Wanted]:
    """Return what a search is asked with and for.

    Raises InvalidArgument for no queries and a bad k, OutOfRange for too many queries, examples or hits.
    """
    limits.check_k(request.k)
    wanted = Wanted(
        k=request.k,
        where=request.where,
        min_score=request.min_score if request.HasField("min_score") else None,
        ids_only=request.ids_only,
        group_by=request.group_by,
        group_size=request.group_size or 1,
    )
    hits = wanted.k * wanted.group_size
    if request.WhichOneof("queries") != "examples":
        return query_from(request, limits, hits), wanted
    examples = request.examples
    limits.check_items(len(examples.positive) + len(examples.negative), "examples")
    limits.check_hits(1, hits)
    positive, negative = ([_example(each) for each in side] for side in (examples.positive, examples.negative))
    return ByExamples(positive, negative, request.fingerprint), wanted


def _example(message: ExampleMessage) -> ExampleRef:
    content = message.WhichOneof("content")
    return ExampleRef(
        image=message.image.data if content == "image" else None,
        vector=convert.vector_from(message.vector) if content == "vector" else None,
        id=message.id if content == "id" else "",
    )
