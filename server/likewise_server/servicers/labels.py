"""The part of HeadService about labels: review them, choose what to train on, give them where a head is sure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

from likewise_proto.v1 import head_pb2 as hpb
from likewise_server.engine import labels, sources
from likewise_server.engine.classification import Heads
from likewise_server.engine.workers import Workers
from likewise_server.errors import Unavailable
from likewise_server.servicers import convert, head_messages
from likewise_server.servicers.context import Context, deadline_of
from likewise_server.servicers.limits import Limits
from likewise_server.store.types import Store

T = TypeVar("T")


class LabelCalls:
    """The calls; HeadServicer sets the attributes."""

    _heads: Heads
    _store: Store
    _fits: Workers
    _limits: Limits
    _draining: asyncio.Event

    async def ReviewLabels(self, request: hpb.ReviewLabelsRequest, context: Context) -> hpb.ReviewLabelsResponse:
        """Tell which labels look wrong, and which items to label next."""
        self._limits.check_items(request.errors, "errors")
        self._limits.check_items(request.next, "items to label next")
        found = await self._fits.run(
            labels.review,
            self._store,
            request.collection,
            where=request.where,
            errors=request.errors,
            count=request.next,
            kind=request.kind,
            deadline=deadline_of(context),
        )
        reply = hpb.ReviewLabelsResponse(
            doubtful=[_doubtful_to(each) for each in found.doubtful],
            next=[_next_to(each) for each in found.next],
            confused=[
                hpb.ConfusedClasses(label=each.label, taken_for=each.taken_for, items=each.items, share=each.share)
                for each in found.confused
            ],
            kind=found.kind,
            metrics=head_messages.metrics_to(found.metrics) if found.metrics else None,
            labelled=found.labelled,
            unlabelled=found.unlabelled,
            warnings=found.warnings,
            timings=convert.timings_to(found.timings),
        )
        self._limits.check_reply(reply)
        return reply

    async def SelectSource(
        self, request: hpb.SelectSourceRequest, context: Context
    ) -> AsyncIterator[hpb.SelectSourceResponse]:
        """Tell for each labelled item whether to train on it."""
        parts = sources.select_source(
            self._store,
            request.collection,
            where=request.where,
            target=request.target,
            target_where=request.target_where,
            keep=request.keep if request.HasField("keep") else sources.KEEP,
            kind=request.kind,
            deadline=deadline_of(context),
        )
        async for part in self._steps(parts):
            yield hpb.SelectSourceResponse(items=[_selected_to(each) for each in part])

    async def PseudoLabel(
        self, request: hpb.PseudoLabelRequest, context: Context
    ) -> AsyncIterator[hpb.PseudoLabelResponse]:
        """Label what is unlabelled, where a head is sure; tell of each item."""
        head = await self._heads.get(request.head_collection or request.collection, request.head, request.version)
        parts = labels.pseudo_label(
            self._store,
            request.collection,
            head,
            where=request.where,
            min_score=request.min_score if request.HasField("min_score") else labels.MIN_SCORE,
            max_per_class=request.max_per_class,
            dry_run=request.dry_run,
            deadline=deadline_of(context),
        )
        async for part in self._steps(parts):
            yield hpb.PseudoLabelResponse(items=[_pseudo_to(each) for each in part], version=head.row.version)

    async def _steps(self, parts: Iterator[T]) -> AsyncIterator[T]:
        """Yield the parts, one step at a time: whoever cancels waits for one at most, and others get their turn."""
        while (part := await self._fits.run(next, parts, None)) is not None:
            yield part
            if self._draining.is_set():
                raise Unavailable("the server is shutting down: ask again in a moment")


def _doubtful_to(found: labels.Doubtful) -> hpb.DoubtfulLabel:
    return hpb.DoubtfulLabel(
        id=found.item.id,
        label=found.item.label or "",
        suggested=found.suggested,
        label_probability=found.label_probability,
        suggested_probability=found.suggested_probability,
        uri=found.item.uri,
    )


def _next_to(found: labels.Next) -> hpb.LabelNext:
    return hpb.LabelNext(
        id=found.item.id, guess=found.guess, score=found.score, reason=found.reason, uri=found.item.uri
    )


def _selected_to(found: sources.Selected) -> hpb.SelectedItem:
    return hpb.SelectedItem(
        id=found.id,
        label=found.label,
        kept=found.kept,
        reason=found.reason,
        label_probability=found.label_probability,
        nearness=found.nearness,
    )


def _pseudo_to(found: labels.Pseudo) -> hpb.PseudoLabelled:
    return hpb.PseudoLabelled(
        id=found.id,
        label=found.label,
        score=found.score,
        novelty=found.novelty,
        taken=found.taken,
        reason=found.reason,
    )
