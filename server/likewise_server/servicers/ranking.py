"""Ranking backbones: labelled images in parts, or the names of collections, in; backbones in order out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from likewise_proto.v1 import head_pb2 as hpb
from likewise_server.engine.placing import Candidate, Ranking, Share
from likewise_server.engine.ranking import OnImages, Rankings
from likewise_server.errors import InvalidArgument, Unavailable
from likewise_server.servicers import convert, head_messages
from likewise_server.servicers.context import Context, deadline_of
from likewise_server.servicers.limits import Limits
from likewise_server.servicers.windows import SHUTTING_DOWN, until


class RankingCalls:
    """The call; HeadServicer sets the attributes."""

    _rankings: Rankings
    _limits: Limits
    _draining: asyncio.Event

    async def RankBackbones(
        self, requests: AsyncIterator[hpb.RankBackbonesRequest], context: Context
    ) -> hpb.RankBackbonesResponse:
        """Embed the images of each message before the next is read, then rank."""
        images: OnImages | None = None
        async for request in until(requests, self._draining):
            self._limits.check_items(len(request.examples), "examples")
            if images is None:
                if request.collections:
                    return _reply(await self._of_collections(request))
                images = await self._rankings.begin([convert.ref_from(ref) for ref in request.backbones])
            elif request.backbones or request.collections:
                raise InvalidArgument("backbones and collections belong into the first message, images into any")
            await images.add(
                [head_messages.example_from(example) for example in request.examples], deadline=deadline_of(context)
            )
        if self._draining.is_set():
            raise Unavailable(SHUTTING_DOWN)
        if images is None:
            raise InvalidArgument("no message came: send labelled images, or the names of collections")
        return _reply(await images.result())

    async def _of_collections(self, request: hpb.RankBackbonesRequest) -> Ranking:
        if request.backbones or request.examples:
            raise InvalidArgument("collections are compared as they are: leave backbones and examples out")
        return await self._rankings.of_collections(list(request.collections))


def _reply(ranking: Ranking) -> hpb.RankBackbonesResponse:
    return hpb.RankBackbonesResponse(
        ranked=[_candidate(candidate) for candidate in ranking.ranked],
        items=ranking.items,
        classes=ranking.classes,
        chance=ranking.chance,
        reason=ranking.reason,
        errors=convert.item_errors(ranking.errors),
        timings=convert.timings_to(ranking.timings),
    )


def _candidate(candidate: Candidate) -> hpb.RankedBackbone:
    message = hpb.RankedBackbone(collection=candidate.collection)
    if candidate.ref is not None:
        message.backbone.CopyFrom(convert.ref_to(candidate.ref))
    if candidate.space is not None:
        message.fingerprint, message.dim = candidate.space.fingerprint, candidate.space.dim
    if candidate.error is not None:
        message.error.CopyFrom(convert.status_of(candidate.error))
    if candidate.found is not None:
        knn, ridge = Share.of(candidate.found.knn_right), Share.of(candidate.found.ridge_right)
        message.knn_accuracy, message.knn_low, message.knn_high = knn.value, knn.low, knn.high
        message.ridge_accuracy, message.ridge_low, message.ridge_high = ridge.value, ridge.low, ridge.high
        message.log_me, message.h_score = candidate.found.log_me, candidate.found.h_score
        if candidate.ms_per_image is not None:
            message.ms_per_image = candidate.ms_per_image
    return message
