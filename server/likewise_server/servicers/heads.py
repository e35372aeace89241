"""HeadService: messages in, the engine's heads and predictions out."""

from __future__ import annotations

import asyncio

from likewise_proto.v1 import head_pb2 as hpb
from likewise_proto.v1.head_pb2_grpc import HeadServiceServicer
from likewise_server.engine.engine import Engine
from likewise_server.servicers import convert, head_messages
from likewise_server.servicers.context import Context, deadline_of
from likewise_server.servicers.labels import LabelCalls
from likewise_server.servicers.limits import Limits
from likewise_server.servicers.queries import query_from
from likewise_server.servicers.ranking import RankingCalls


class HeadServicer(LabelCalls, RankingCalls, HeadServiceServicer):
    """Trains heads and classifies with them; labels.py and ranking.py have what it does about labels and backbones."""

    def __init__(self, engine: Engine, limits: Limits, draining: asyncio.Event) -> None:
        self._heads = engine.heads
        self._training = engine.training
        self._rankings = engine.rankings
        self._store = engine.store
        self._fits = engine.fits
        self._draining = draining
        self._limits = limits

    async def TrainHead(self, request: hpb.TrainHeadRequest, context: Context) -> hpb.TrainHeadResponse:
        """Fit and store the next version of a head."""
        self._limits.check_items(len(request.examples), "examples")
        stored, timings = await self._training.train(
            request.collection,
            request.name,
            kind=request.kind,
            options=convert.attributes_from(request.options),
            where=request.where,
            ids=list(request.ids),
            given=head_messages.examples_from(request),
            examples_only=request.examples_only,
            request_id=request.request_id,
            adaptation=head_messages.adaptation_from(request),
            deadline=deadline_of(context),
        )
        return hpb.TrainHeadResponse(
            head=head_messages.head_to(stored.row, stored.info), timings=convert.timings_to(timings)
        )

    async def UpdateHead(self, request: hpb.UpdateHeadRequest, context: Context) -> hpb.UpdateHeadResponse:
        """Store the next version of a head with examples added and removed."""
        self._limits.check_items(len(request.examples), "examples")
        stored, timings = await self._training.update(
            request.collection,
            request.name,
            version=request.version,
            where=request.where,
            add_ids=list(request.add_ids),
            given=head_messages.examples_from(request),
            remove_ids=list(request.remove_ids),
            request_id=request.request_id,
            deadline=deadline_of(context),
        )
        return hpb.UpdateHeadResponse(
            head=head_messages.head_to(stored.row, stored.info), timings=convert.timings_to(timings)
        )

    async def GetHead(
        self,
        request: hpb.GetHeadRequest,
        context: Context,  # noqa: ARG002  # the signature is gRPC's
    ) -> hpb.GetHeadResponse:
        """Return one head."""
        stored = await self._heads.get(request.collection, request.name, request.version)
        return hpb.GetHeadResponse(head=head_messages.head_to(stored.row, stored.info))

    async def ListHeads(
        self,
        request: hpb.ListHeadsRequest,
        context: Context,  # noqa: ARG002
    ) -> hpb.ListHeadsResponse:
        """Return a page of head versions."""
        info, rows, token = await self._heads.list(
            request.collection, page_size=self._limits.page(request.page_size), page_token=request.page_token
        )
        reply = hpb.ListHeadsResponse(heads=[head_messages.head_to(row, info) for row in rows], next_page_token=token)
        self._limits.check_reply(reply)
        return reply

    async def DeleteHead(
        self,
        request: hpb.DeleteHeadRequest,
        context: Context,  # noqa: ARG002
    ) -> hpb.DeleteHeadResponse:
        """Delete one version, or all."""
        await self._heads.delete(request.collection, request.name, request.version)
        return hpb.DeleteHeadResponse()

    async def Classify(self, request: hpb.ClassifyRequest, context: Context) -> hpb.ClassifyResponse:
        """Return a prediction per query."""
        done = await self._heads.classify(
            request.collection,
            request.head,
            query_from(request, self._limits, request.neighbours),
            version=request.version,
            reject=not request.accept_all,
            neighbours=min(request.neighbours, self._limits.max_k),
            deadline=deadline_of(context),
        )
        head = done.stored.head
        reply = hpb.ClassifyResponse(
            predictions=[head_messages.prediction_to(p) for p in done.predictions],
            classes=head.classes,
            version=done.stored.row.version,
            fingerprint=done.stored.info.fingerprint,
            timings=convert.timings_to(done.timings),
        )
        self._limits.check_reply(reply)  # thousands of classes a query add up
        return reply

    async def EvaluateHead(
        self,
        request: hpb.EvaluateHeadRequest,
        context: Context,  # noqa: ARG002
    ) -> hpb.EvaluateHeadResponse:
        """Measure a head on labelled items."""
        done = await self._heads.evaluate(
            request.collection,
            request.head,
            version=request.version,
            on=request.on_collection,
            where=request.where,
        )
        return head_messages.evaluation_to(done)
