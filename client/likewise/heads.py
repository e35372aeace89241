"""What a collection does with heads: train, update, list, classify, evaluate. Part of AsyncCollection."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from likewise import convert
from likewise.errors import InvalidArgument, LikewiseError
from likewise.head_results import Evaluation, Head, Prediction
from likewise.images import ImageLike
from likewise.requests import QueryValue, ask_all, examples, looks_at, queries, query_fields, stored_ids, whole
from likewise.results import CollectionInfo, Limits
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
        adapt: str = "",
        target: str = "",
        target_where: str = "",
        views: str = "",
        fingerprint: str = "",
        **options: Any,
    ) -> Head:
        """Train a head on the collection's labelled items, and return it.

        On all of them, on those that match `where`, or on those with these `ids`. Or on `images` or `vectors` with
        their `labels`, which are not stored, and for which `ids` are names; with `with_stored` on both.
        `adapt` (center, coral or ot) maps them onto the items of collection `target`, or of this one, that match
        `target_where`: docs/heads.md, "Source to target".
        `views` ("flip" or "crops") average several looks at each of the `images`; classify with the same.
        `kind`: auto, ncm, ridge, lda, logreg, knn, mlp, ensemble; its `options` are in docs/heads.md. Training the
        same name again makes the next version.
        """
        limits = await self._limits()
        given = examples(images, vectors, labels, ids, limits)
        stored = [] if given else stored_ids(ids, "ids")
        request = hpb.TrainHeadRequest(
            collection=self.name,
            name=name,
            kind=kind,
            options=convert.struct(options),
            where=where,
            ids=stored,
            examples=given,
            examples_only=bool(given) and not with_stored,
            request_id=uuid.uuid4().hex,
            fingerprint=fingerprint or self.fingerprint,
            adaptation=_adaptation(adapt, target, target_where),
            views=looks_at(images, views),
        )
        reply = await self._transport.unary(self._heads.TrainHead, request, timeout=LONG_S)
        return convert.head(reply.head)

    async def update_head(
        self,
        /,
        name: str,
        *,
        where: str = "",
        add: Sequence[str] | None = None,
        images: Sequence[ImageLike] | None = None,
        vectors: Any = None,
        labels: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        remove: Sequence[str] | None = None,
        version: int = 0,
        views: str = "",
        fingerprint: str = "",
    ) -> Head:
        """Make the next version of a head, with examples added and removed, and return it.

        Added are the labelled items that match `where`, those with the ids in `add`, and `images` or `vectors` with
        their `labels` and `ids`, which are not stored; an id that the head has is replaced. `remove` names examples to
        forget. It is what training on the changed set would give, though nobody has to have the other examples any
        more; docs/heads.md says which kinds can. It goes from `version`, by default the latest. `views` is that of
        `train_head`.
        """
        given = examples(images, vectors, labels, ids, await self._limits())
        if ids is not None and not given:
            raise InvalidArgument("ids belong to images or vectors: say add= for stored items")
        request = hpb.UpdateHeadRequest(
            collection=self.name,
            name=name,
            version=whole(version, "version"),
            where=where,
            add_ids=stored_ids(add, "add"),
            examples=given,
            remove_ids=stored_ids(remove, "remove"),
            request_id=uuid.uuid4().hex,
            fingerprint=fingerprint or self.fingerprint,
            views=looks_at(images, views),
        )
        reply = await self._transport.unary(self._heads.UpdateHead, request, timeout=LONG_S)
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
        views: str = "",
        fingerprint: str = "",
    ) -> list[Prediction]:
        """Return one prediction per query, in order; `.label` is None for "unknown".

        With `reject=False` the likeliest class is always the answer. With `views` ("flip" or "crops") each image is
        looked at 2 or 10 times, which takes as many forwards. A query that could not be read has its `.error`.
        """
        limits = await self._limits()
        version, neighbours = whole(version, "version"), whole(neighbours, "neighbours")
        looks = looks_at(images, views)
        latest = 0

        async def ask(chunk: list[QueryValue]) -> list[Prediction]:
            nonlocal latest
            request = hpb.ClassifyRequest(
                collection=self.name,
                head=head,
                version=version,
                accept_all=not reject,
                neighbours=neighbours,
                views=looks,
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


def _adaptation(method: str, target: str, where: str) -> hpb.Adaptation | None:
    if not method and (target or where):
        raise InvalidArgument("target and target_where belong to an adaptation: say adapt=, one of center, coral, ot")
    return hpb.Adaptation(method=method, target=target, target_where=where) if method else None
