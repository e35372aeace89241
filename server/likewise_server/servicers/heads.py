"""HeadService: messages in, the engine's heads and predictions out."""

from __future__ import annotations

from likewise_proto.v1 import head_pb2 as hpb
from likewise_proto.v1.head_pb2_grpc import HeadServiceServicer
from likewise_server.engine.classification import Example, StoredHead
from likewise_server.engine.engine import Engine
from likewise_server.errors import LikewiseError
from likewise_server.heads import Metrics, Prediction
from likewise_server.servicers import convert
from likewise_server.servicers.context import Context, deadline_of
from likewise_server.servicers.limits import Limits
from likewise_server.servicers.queries import query_from


class HeadServicer(HeadServiceServicer):
    """Trains heads and classifies with them."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._heads = engine.heads
        self._limits = limits

    async def TrainHead(self, request: hpb.TrainHeadRequest, context: Context) -> hpb.TrainHeadResponse:
        """Fit and store the next version of a head."""
        self._limits.check_items(len(request.examples), "examples")
        stored, timings = await self._heads.train(
            request.collection,
            request.name,
            kind=request.kind,
            options=convert.attributes_from(request.options),
            where=request.where,
            examples=[_example(example) for example in request.examples],
            examples_only=request.examples_only,
            fingerprint=request.fingerprint,
            request_id=request.request_id,
            deadline=deadline_of(context),
        )
        return hpb.TrainHeadResponse(head=_head_to(stored), timings=convert.timings_to(timings))

    async def GetHead(
        self,
        request: hpb.GetHeadRequest,
        context: Context,  # noqa: ARG002  # the signature is gRPC's
    ) -> hpb.GetHeadResponse:
        """Return one head."""
        stored = await self._heads.get(request.collection, request.name, request.version)
        return hpb.GetHeadResponse(head=_head_to(stored))

    async def ListHeads(
        self,
        request: hpb.ListHeadsRequest,
        context: Context,  # noqa: ARG002
    ) -> hpb.ListHeadsResponse:
        """Return a page of head versions."""
        heads, token = await self._heads.list(
            request.collection, page_size=self._limits.page(request.page_size), page_token=request.page_token
        )
        return hpb.ListHeadsResponse(heads=[_head_to(head) for head in heads], next_page_token=token)

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
        return hpb.ClassifyResponse(
            predictions=[_prediction_to(p) for p in done.predictions],
            classes=head.classes,
            version=done.stored.row.version,
            fingerprint=done.stored.info.fingerprint,
            timings=convert.timings_to(done.timings),
        )

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
            classes=[
                hpb.ClassReport(label=label, precision=r.precision, recall=r.recall, f1=r.f1, support=r.support)
                for label, r in found.per_class.items()
            ],
            confusion=found.confusion.ravel().tolist(),
            labels=done.stored.head.classes,
            coverages=[coverage for coverage, _ in found.rejection_curve],
            accuracies=[accuracy for _, accuracy in found.rejection_curve],
            timings=convert.timings_to(done.timings),
        )


def _example(message: hpb.Example) -> Example:
    content = message.WhichOneof("content")
    return Example(
        label=message.label,
        id=message.id,
        image=message.image.data if content == "image" else None,
        vector=convert.vector_from(message.vector) if content == "vector" else None,
    )


def _head_to(stored: StoredHead) -> hpb.Head:
    row, head, info = stored.row, stored.head, stored.info
    return hpb.Head(
        name=row.name,
        version=row.version,
        kind=head.kind,
        collection=info.name,
        space=convert.space_to(convert.collection_space(info)),
        classes=head.classes,
        class_counts={label: int(count) for label, count in head.metrics.per_class.items()},
        metrics=_metrics_to(head.metrics),
        reason=head.reason,
        warnings=head.warnings,
        options=convert.attributes_to(row.meta.get("options", {})),
        create_time=convert.time_to(row.created_at),
    )


def _metrics_to(metrics: Metrics) -> hpb.HeadMetrics:
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


def _prediction_to(prediction: Prediction | LikewiseError) -> hpb.Prediction:
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
