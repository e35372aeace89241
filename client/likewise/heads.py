"""What a collection does with heads: train, list, classify, evaluate. Part of AsyncCollection."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from likewise import convert
from likewise.errors import LikewiseError
from likewise.images import ImageLike
from likewise.requests import QueryValue, ask_all, examples, queries, query_fields, whole
from likewise.results import CollectionInfo, Evaluation, Head, Limits, Prediction
from likewise.transport import Transport
from likewise_proto.v1 import head_pb2 as hpb

LONG_S = 600.0  # training and checks may take minutes


class HeadCalls:
    """The calls; AsyncCollection sets the attributes."""

    _transport: Transport
    _limits: Callable[[], Awaitable[Limits]]
    _window: int
    _heads: Any
    info: CollectionInfo

    @property
    def name(self) -> str:
        """The collection's name."""
        return self.info.name

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its space."""
        return self.info.fingerprint

    async def train_head(
        self,
        /,
        name: str,
        kind: str = "auto",
        *,
        where: str = "",
        images: Sequence[ImageLike] | None = None,
        vectors: Any = None,
        labels: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        with_stored: bool | None = None,
        fingerprint: str = "",
        **options: Any,
    ) -> Head:
        """Train a head on the collection's labelled items (those that match `where`), and return it.

        Or on `images` or `vectors` with their `labels`, which are not stored; with `with_stored` on both.
        `kind`: auto, ncm, knn, ridge, logreg; its `options` are in docs/heads.md. Training the same
        name again makes the next version.
        """
        limits = await self._limits()
        given = examples(images, vectors, labels, ids, limits)
        request = hpb.TrainHeadRequest(
            collection=self.name,
            name=name,
            kind=kind,
            options=convert.struct(options),
            where=where,
            examples=given,
            examples_only=bool(given) and not with_stored,
            request_id=uuid.uuid4().hex,
            fingerprint=fingerprint or self.fingerprint,
        )
        reply = await self._transport.unary(self._heads.TrainHead, request, timeout=LONG_S)
        return convert.head(reply.head)

    async def head(self, name: str, version: int = 0) -> Head:
        """Return a head, the latest version by default. Raises NotFound."""
        request = hpb.GetHeadRequest(collection=self.name, name=name, version=whole(version, "version"))
        return convert.head((await self._transport.unary(self._heads.GetHead, request)).head)

    async def heads(self) -> list[Head]:
        """Return all heads of the collection, each version."""
        found: list[Head] = []
        token = ""
        while True:
            request = hpb.ListHeadsRequest(collection=self.name, page_token=token)
            reply = await self._transport.unary(self._heads.ListHeads, request)
            found += map(convert.head, reply.heads)
            token = reply.next_page_token
            if not token:
                return found

    async def delete_head(self, name: str, version: int = 0) -> None:
        """Delete one version of a head, or all of them. Raises NotFound."""
        request = hpb.DeleteHeadRequest(
            collection=self.name, name=name, version=whole(version, "version"), request_id=uuid.uuid4().hex
        )
        await self._transport.unary(self._heads.DeleteHead, request, gone_is_done=True)

    async def classify(
        self,
        images: Sequence[ImageLike] | None = None,
        *,
        head: str,
        version: int = 0,
        vectors: Any = None,
        ids: Sequence[str] | None = None,
        reject: bool = True,
        neighbours: int = 3,
        fingerprint: str = "",
    ) -> list[Prediction]:
        """Return one prediction per query, in order; `.label` is None for "unknown".

        With `reject=False` the likeliest class is always the answer. A query that could not be
        read has its `.error`.
        """
        limits = await self._limits()
        version, neighbours = whole(version, "version"), whole(neighbours, "neighbours")
        latest = 0

        async def ask(chunk: list[QueryValue]) -> list[Prediction]:
            nonlocal latest
            request = hpb.ClassifyRequest(
                collection=self.name,
                head=head,
                version=version,
                accept_all=not reject,
                neighbours=neighbours,
                **query_fields(chunk, fingerprint or self.fingerprint),
            )
            reply = await self._transport.unary(self._heads.Classify, request)
            latest = reply.version
            return [convert.prediction(message, reply) for message in reply.predictions]

        def failed(error: LikewiseError) -> Prediction:
            return Prediction(None, "", 0.0, {}, 0.0, 0.0, (), latest, self.fingerprint, error)

        return await ask_all(queries(images, vectors, ids, limits), limits, ask, failed, self._window, neighbours)

    async def evaluate(self, head: str, *, version: int = 0, on: str = "", where: str = "") -> Evaluation:
        """Measure a head on labelled items of this collection, or of collection `on`."""
        request = hpb.EvaluateHeadRequest(
            collection=self.name, head=head, version=whole(version, "version"), on_collection=on, where=where
        )
        reply = await self._transport.unary(self._heads.EvaluateHead, request, timeout=LONG_S)
        return convert.evaluation(reply)
