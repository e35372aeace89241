"""Which backbone tells classes apart best: asked with labelled images, or of collections. Part of AsyncClient."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from likewise import convert
from likewise.chunks import cut, prepared
from likewise.errors import InvalidArgument, LikewiseError
from likewise.images import ImageLike, encoded, weight
from likewise.progress import bar
from likewise.requests import same_length, several, text
from likewise.results import Limits, Timings
from likewise.transport import Transport, error_from
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import head_pb2 as hpb

LONGEST_S = 3600.0  # hundreds of images through every network


@dataclass(frozen=True, slots=True)
class RankedBackbone:
    """A backbone, or a collection's vectors, and how they did on items left out one at a time.

    Accuracies come with 95 % intervals. `log_me` and `h_score` are second opinions without left-out items.
    `ms_per_image` is the wall-clock time of this ranking, decoding and queueing included; None for collections.
    `error` is set, and the figures are 0, where it could not be measured.
    """

    backbone: str
    fingerprint: str
    dim: int
    collection: str
    knn_accuracy: float
    knn_low: float
    knn_high: float
    ridge_accuracy: float
    ridge_low: float
    ridge_high: float
    log_me: float
    h_score: float
    ms_per_image: float | None
    error: LikewiseError | None = None


class Ranking(list[RankedBackbone]):
    """Backbones, best first by the mean of the two accuracies, those that failed last.

    All were measured on the same `items` of `classes` classes, where guessing the largest class is right with
    `chance`. `reason` says whether the first is ahead by more than noise. `errors` has the images that could not be
    read, by position.
    """

    def __init__(
        self,
        ranked: Iterable[RankedBackbone] = (),
        *,
        items: int = 0,
        classes: int = 0,
        chance: float = 0.0,
        reason: str = "",
        errors: dict[int, LikewiseError] | None = None,
        timings: Timings | None = None,
    ) -> None:
        super().__init__(ranked)
        self.items = items
        self.classes = classes
        self.chance = chance
        self.reason = reason
        self.errors = errors or {}
        self.timings = timings or Timings()


class RankingCalls:
    """The call; AsyncClient sets the attributes."""

    _transport: Transport
    _limits: Callable[[], Awaitable[Limits]]
    _heads: Any

    async def rank_backbones(
        self,
        images: Sequence[ImageLike] | None = None,
        labels: Sequence[str] | None = None,
        backbones: Sequence[str] | None = None,
        *,
        collections: Sequence[str] | None = None,
        progress: bool | None = None,
    ) -> Ranking:
        """Return backbones in the order in which they tell the labels of `images` apart, best first.

        `backbones` are names as elsewhere ("a+b" for joined ones), by default all that are served. Or with
        `collections`, compare those by their labelled items, which must have the same ids in each; nothing is
        embedded then. An image that cannot be read is left out for all; see `Ranking.errors`.
        """
        if (images is None) == (collections is None):
            raise InvalidArgument("give labelled images, or collections=")
        if collections is not None:
            if labels is not None or backbones is not None:
                raise InvalidArgument("collections have labels and a backbone each: leave labels and backbones out")
            names = [text(name, "collection") for name in several(collections, "collections")]
            if not names:
                raise InvalidArgument("collections is empty: name those to compare")
            asked = _Images([], [], hpb.RankBackbonesRequest(collections=names), await self._limits())
        else:
            sources = list(several(images, "images"))
            if labels is None:
                raise InvalidArgument("images to rank backbones on need labels, one each")
            same_length(len(sources), labels=labels)
            refs = [convert.backbone_ref(name) for name in several(backbones or (), "backbones")]
            told = [text(label, "label") for label in several(labels, "labels")]
            asked = _Images(sources, told, hpb.RankBackbonesRequest(backbones=refs), await self._limits())
        with bar("ranking", len(asked.sources), wanted=progress) as advance:
            try:
                reply = await self._transport.upload(
                    self._heads.RankBackbones, lambda: asked.messages(advance), timeout=LONGEST_S
                )
            except InvalidArgument:
                if asked.errors and not asked.sent:  # there was nothing to send, and this is why
                    raise next(iter(asked.errors.values())) from None
                raise
        errors = asked.errors | {asked.sent[error.index]: error_from(error.status) for error in reply.errors}
        return Ranking(
            map(_ranked, reply.ranked),
            items=reply.items,
            classes=reply.classes,
            chance=reply.chance,
            reason=reply.reason,
            errors=dict(sorted(errors.items())),
            timings=convert.timings(reply.timings),
        )


class _Images:
    """What is sent: a first message that says what to rank, then images, each read when its turn comes."""

    def __init__(
        self, sources: list[ImageLike], labels: list[str], first: hpb.RankBackbonesRequest, limits: Limits
    ) -> None:
        self.sources = sources
        self._labels = labels
        self._first = first
        self._limits = limits
        self.sent: list[int] = []  # positions of the images on the stream
        self.errors: dict[int, LikewiseError] = {}

    async def messages(self, advance: Callable[[int], None]) -> AsyncIterator[hpb.RankBackbonesRequest]:
        """Yield the messages of one attempt."""
        self.sent, self.errors = [], {}
        yield self._first
        position = 0

        def read(image: ImageLike) -> bytes | LikewiseError:
            return encoded(image, self._limits.max_image_bytes)

        async for chunk in cut(prepared(self.sources, read), weight, self._limits):
            examples: list[hpb.Example] = []
            for data in chunk:
                if isinstance(data, LikewiseError):
                    self.errors[position] = data
                else:
                    examples.append(hpb.Example(label=self._labels[position], image=pb.Image(data=data)))
                    self.sent.append(position)
                position += 1
            if examples:
                yield hpb.RankBackbonesRequest(examples=examples)
            advance(len(chunk))


def _ranked(message: hpb.RankedBackbone) -> RankedBackbone:
    return RankedBackbone(
        backbone=convert.ref_name(message.backbone),
        fingerprint=message.fingerprint,
        dim=message.dim,
        collection=message.collection,
        knn_accuracy=message.knn_accuracy,
        knn_low=message.knn_low,
        knn_high=message.knn_high,
        ridge_accuracy=message.ridge_accuracy,
        ridge_low=message.ridge_low,
        ridge_high=message.ridge_high,
        log_me=message.log_me,
        h_score=message.h_score,
        ms_per_image=message.ms_per_image if message.HasField("ms_per_image") else None,
        error=error_from(message.error) if message.HasField("error") else None,
    )
