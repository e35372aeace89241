"""What a collection does with labels: set, review, select by, let a head give them. Part of AsyncCollection."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from likewise import label_results as results
from likewise.errors import InvalidArgument
from likewise.heads import LONG_S
from likewise.progress import bar
from likewise.requests import text, whole
from likewise.results import CollectionInfo, Limits
from likewise.transport import Transport
from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1 import head_pb2 as hpb


class LabelCalls:
    """The calls; AsyncCollection sets the attributes."""

    _transport: Transport
    _limits: Callable[[], Awaitable[Limits]]
    _items: Any
    _heads: Any
    info: CollectionInfo

    async def label(self, labels: Mapping[str, str | None]) -> results.Relabelled:
        """Label stored items anew, by id; None takes a label away. Pictures, vectors and attributes stay.

        Durable on return. Attributes that say which head gave the label before (`pseudo_label`) go with it.
        """
        if not isinstance(labels, Mapping):
            raise InvalidArgument(f"labels map ids to labels; this is a {type(labels).__name__}")
        messages = [_item_label(item_id, label) for item_id, label in labels.items()]
        changed, missing = 0, list[str]()
        for request in _requests(self.info.name, messages, await self._limits()):
            reply = await self._transport.unary(self._items.LabelItems, request)
            changed += reply.changed
            missing += reply.missing_ids
        return results.Relabelled(changed, tuple(missing))

    async def review_labels(
        self,
        *,
        where: str = "",
        errors: int = 50,
        next: int = 20,  # noqa: A002  # it is what they are
        kind: str = "auto",
    ) -> results.LabelReview:
        """Look for labels that are likely wrong, items worth labelling next, and classes taken for each other.

        `errors` and `next` bound the first two; 0 is the default. A head of `kind` judges each label without having
        been trained on it; what accuracy to expect of such a head is in `.metrics`. See docs/labels.md.
        """
        request = hpb.ReviewLabelsRequest(
            collection=self.info.name,
            where=where,
            errors=whole(errors, "errors"),
            next=whole(next, "next"),
            kind=kind,
        )
        return results.review(await self._transport.unary(self._heads.ReviewLabels, request, timeout=LONG_S))

    async def select_source(
        self,
        target: str = "",
        *,
        target_where: str = "",
        where: str = "",
        keep: float = 0.5,
        kind: str = "auto",
        progress: bool | None = None,
    ) -> results.Selection:
        """Say which labelled items are worth training on for pictures like those of collection `target`.

        What a head trained without it gets wrong is left out; of the rest the share `keep` of each class that is
        nearest to the target is kept: `train_head(…, ids=found.ids)`. See docs/labels.md.
        """
        request = hpb.SelectSourceRequest(
            collection=self.info.name, where=where, target=target, target_where=target_where, keep=keep, kind=kind
        )
        found = results.Selection()
        replies = self._transport.stream(self._heads.SelectSource, request)
        async with aclosing(replies):
            with bar(f"selecting in {self.info.name}", None, wanted=progress) as advance:
                async for reply in replies:
                    found += map(results.selected, reply.items)
                    advance(len(reply.items))
        return found

    async def pseudo_label(
        self,
        head: str,
        *,
        version: int = 0,
        head_collection: str = "",
        where: str = "",
        min_score: float = 0.9,
        max_per_class: int = 0,
        dry_run: bool = False,
        progress: bool | None = None,
    ) -> results.PseudoLabels:
        """Let a head label the unlabelled items that it is sure of; return what it says of each, and what was done.

        Sure is: not unknown, a score of `min_score` or more and, with `max_per_class`, among the surest so many of its
        class. Labelled items have the attributes `label_source` and `label_score`. With `dry_run` nothing is written.
        An error in between, as at the end of the time, leaves what was done until then. See docs/labels.md.
        """
        request = hpb.PseudoLabelRequest(
            collection=self.info.name,
            where=where,
            head=head,
            version=whole(version, "version"),
            head_collection=head_collection,
            min_score=min_score,
            max_per_class=whole(max_per_class, "max_per_class"),
            dry_run=dry_run,
        )
        found = results.PseudoLabels()
        replies: AsyncGenerator[Any, None] = self._transport.stream(self._heads.PseudoLabel, request)
        async with aclosing(replies):
            with bar(f"labelling {self.info.name}", None, wanted=progress) as advance:
                async for reply in replies:
                    found.version = reply.version
                    found += map(results.pseudo_labelled, reply.items)
                    advance(len(reply.items))
        return found


def _item_label(item_id: Any, label: Any) -> cpb.ItemLabel:
    return cpb.ItemLabel(id=text(item_id, "id"), label=None if label is None else text(label, "label"))


def _requests(collection: str, messages: list[cpb.ItemLabel], limits: Limits) -> list[cpb.LabelItemsRequest]:
    """Return the labels in requests that the server takes."""
    made, size = list[cpb.LabelItemsRequest](), 0
    for message in messages:
        size += message.ByteSize() + 16
        if not made or len(made[-1].labels) >= limits.max_items or size > limits.max_message_bytes // 2:
            made.append(cpb.LabelItemsRequest(collection=collection))
            size = message.ByteSize() + 16
        made[-1].labels.append(message)
    return made
