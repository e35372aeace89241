"""What was found, as messages."""

from __future__ import annotations

from google.protobuf.struct_pb2 import Value

from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1 import common_pb2 as pb
from likewise_server.engine.duplicates import Event, Progress, Summary
from likewise_server.engine.grouping import Group
from likewise_server.engine.searching import Found, Groups
from likewise_server.errors import LikewiseError
from likewise_server.servicers import convert
from likewise_server.store.filters import Scalar
from likewise_server.store.types import Hit


def search_reply(found: Found, *, ids_only: bool) -> cpb.SearchResponse:
    """Return the message of a search's results."""
    return cpb.SearchResponse(
        results=[_query_result(result, ids_only=ids_only) for result in found.results],
        exact=found.exact,
        measured_recall=found.measured_recall,
        scanned=found.scanned,
        filtered_count=found.filtered_count,
        fingerprint=found.fingerprint,
        timings=convert.timings_to(found.timings),
    )


def duplicates_reply(event: Event) -> cpb.FindDuplicatesResponse:
    """Return the message of a step in the search for duplicates."""
    if isinstance(event, Progress):
        return cpb.FindDuplicatesResponse(progress=cpb.DuplicatesProgress(done=event.done, total=event.total))
    if isinstance(event, Summary):
        summary = cpb.DuplicatesSummary(
            items=event.items,
            groups=event.groups,
            duplicates=event.duplicates,
            min_score=event.min_score,
            exact=event.exact,
            measured_recall=event.measured_recall,
            truncated=event.truncated,
        )
        return cpb.FindDuplicatesResponse(summary=summary)
    group = cpb.DuplicateGroup(items=[_hit(hit) for hit in event.hits], more=event.more)
    return cpb.FindDuplicatesResponse(group=group)


def _query_result(result: list[Hit] | Groups | LikewiseError, *, ids_only: bool) -> cpb.QueryResult:
    if isinstance(result, LikewiseError):
        return cpb.QueryResult(error=convert.status_of(result))
    if isinstance(result, Groups):
        return cpb.QueryResult(groups=[_group(group, ids_only=ids_only) for group in result.groups])
    if ids_only:
        return cpb.QueryResult(ids=[hit.item.id for hit in result], scores=[hit.score for hit in result])
    return cpb.QueryResult(hits=[_hit(hit) for hit in result])


def _group(group: Group, *, ids_only: bool) -> cpb.Group:
    hits = [cpb.Hit(info=pb.ItemInfo(id=hit.item.id), score=hit.score) if ids_only else _hit(hit) for hit in group.hits]
    return cpb.Group(value=_value(group.value), hits=hits)


def _value(value: Scalar) -> Value:
    if isinstance(value, bool):
        return Value(bool_value=value)
    return Value(string_value=value) if isinstance(value, str) else Value(number_value=value)


def _hit(hit: Hit) -> cpb.Hit:
    return cpb.Hit(info=convert.item_info_to(hit.item), score=hit.score)
