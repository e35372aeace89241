"""The collection to index into: made if it is not there, refused if it is another than asked for."""

from __future__ import annotations

from collections.abc import Sequence

from likewise import AsyncClient, AsyncCollection
from likewise.convert import backbone_ref
from likewise.errors import FailedPrecondition

ANSWER_S = 10.0  # a server that is there answers within this


async def check_server(address: str) -> None:
    """Raise Unavailable soon where no server answers; once indexing, a server gets far longer to come back."""
    async with AsyncClient(address, timeout=ANSWER_S, retries=3) as client:
        await client.info()


async def open_collection(
    client: AsyncClient,
    name: str,
    *,
    backbone: str | None,
    metric: str | None,
    index: str | None = None,
    indexed: Sequence[str] | None = None,
) -> AsyncCollection:
    """Return a collection, created if need be with `backbone` (by default the server's first) and the rest.

    Raises FailedPrecondition where one exists that is otherwise than asked for, or for bare vectors.
    """
    collection = await client.create_collection(
        name, backbone, metric=metric or "cosine", exist_ok=True, index=index or "auto", indexed=indexed or ()
    )
    info = collection.info
    if not info.backbone:
        raise FailedPrecondition(
            f"the collection {name!r} holds vectors from elsewhere, so images cannot be added: take another name"
        )
    if backbone is not None and backbone_ref(info.backbone) != backbone_ref(backbone):
        raise FailedPrecondition(
            f"the collection {name!r} is of backbone {info.backbone!r}, not {backbone!r}: "
            "take another name, or leave --backbone out"
        )
    if metric is not None and info.metric != metric:
        raise FailedPrecondition(
            f"the collection {name!r} has metric {info.metric!r}, not {metric!r}: "
            "take another name, or leave --metric out"
        )
    if (index is not None and info.index != index) or (indexed and not set(indexed) <= set(info.indexed)):
        raise FailedPrecondition(
            f"the collection {name!r} exists with index {info.index!r} and indexed attributes {list(info.indexed)}: "
            "leave --index and --indexed out, and change it with `likewise collections update`"
        )
    return collection
