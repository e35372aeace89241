"""What Search and Classify are asked with, out of their messages."""

from __future__ import annotations

from likewise_proto.v1.collection_pb2 import SearchRequest
from likewise_proto.v1.head_pb2 import ClassifyRequest
from likewise_server.engine.queries import ByIds, ByImages, ByVectors, Query
from likewise_server.errors import InvalidArgument
from likewise_server.servicers import convert
from likewise_server.servicers.limits import Limits


def query_from(request: SearchRequest | ClassifyRequest, limits: Limits, hits: int) -> Query:
    """Return the queries in a request, each asking for so many `hits`.

    Raises InvalidArgument for none, OutOfRange for too many.
    """
    which = request.WhichOneof("queries")
    query: Query = ByIds([])
    count = 0
    if which == "images":
        query = ByImages([image.data for image in request.images.images])
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
