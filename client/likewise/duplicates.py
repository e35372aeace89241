"""What a search for duplicates tells, put together: progress on a bar, parts of groups into groups."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from likewise import convert
from likewise.progress import bar
from likewise.results import DuplicateGroup, Duplicates, Hit
from likewise_proto.v1 import collection_pb2 as cpb


async def collected(replies: AsyncGenerator[Any, None], what: str, *, progress: bool | None = None) -> Duplicates:
    """Return the groups in the messages of FindDuplicates, which begin with progress, under a bar that says `what`."""
    found = Duplicates()
    async with aclosing(replies):
        opening: cpb.FindDuplicatesResponse = await anext(replies)
        done, parts = 0, list[Hit]()
        with bar(what, opening.progress.total, wanted=progress) as advance:
            async for reply in replies:
                event = reply.WhichOneof("event")
                if event == "progress":
                    advance(reply.progress.done - done)
                    done = reply.progress.done
                elif event == "summary":
                    found = _described(reply.summary)
                elif event == "group":
                    parts += [convert.hit(message) for message in reply.group.items]
                    if not reply.group.more:
                        found.append(DuplicateGroup(tuple(parts)))
                        parts = []
    return found


def _described(message: cpb.DuplicatesSummary) -> Duplicates:
    return Duplicates(
        items=message.items,
        min_score=message.min_score,
        exact=message.exact,
        measured_recall=message.measured_recall if message.HasField("measured_recall") else None,
        truncated=message.truncated,
    )
