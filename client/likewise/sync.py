"""Client and Collection: the async ones, run on a background event loop and waited for.

Nothing is written twice: each method below is the async method of the same name, wrapped, with its
signature and docstring.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from likewise.aio import DEFAULT_ADDRESS, AsyncClient
from likewise.collection import AsyncCollection
from likewise.results import CollectionInfo

P = ParamSpec("P")
R = TypeVar("R")


_starting = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    """Return the one event loop that all blocking clients of this process share, started on first use."""
    with _starting:
        return _loop_of(os.getpid())


@functools.cache
def _loop_of(_process: int) -> asyncio.AbstractEventLoop:
    """Start a loop. A forked process needs one of its own: threads are not inherited."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="likewise-client", daemon=True).start()
    return loop


def wait_for(work: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine on the shared loop and return its result; Ctrl-C cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def iterate(source: AsyncIterator[R]) -> Iterator[R]:
    """Yield what an async iterator yields; closing this closes it."""
    step: asyncio.Task[Any] | None = None

    async def following() -> tuple[R] | None:
        nonlocal step
        step = asyncio.current_task()
        try:
            return (await anext(source),)
        except StopAsyncIteration:
            return None

    async def close() -> None:
        if step is not None and not step.done():  # interrupted while waiting, as by Ctrl-C
            step.cancel()
            await asyncio.wait([step])
        closer = getattr(source, "aclose", None)
        if closer:
            await closer()

    try:
        while (found := wait_for(following())) is not None:
            yield found[0]
    finally:
        wait_for(close())


def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], R]:
    """Return the method that waits for the same method of `self._async`."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return wait_for(method(self._async, *args, **kwargs))

    return call


def iterating(method: Callable[Concatenate[Any, P], AsyncIterator[R]]) -> Callable[Concatenate[Any, P], Iterator[R]]:
    """Return the method that iterates over what the same method of `self._async` yields."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return iterate(method(self._async, *args, **kwargs))

    return call


def _opening(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, AsyncCollection]],
) -> Callable[Concatenate[Any, P], Collection]:
    """Wrap a method that returns a collection: the blocking one comes back."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Collection:
        return Collection(wait_for(method(self._async, *args, **kwargs)))

    return call


class Collection:
    """A collection on a server; see AsyncCollection, whose methods these are."""

    def __init__(self, collection: AsyncCollection) -> None:
        self._async = collection

    @property
    def info(self) -> CollectionInfo:
        """The description as of when it was fetched; `refresh()` fetches it again."""
        return self._async.info

    @property
    def name(self) -> str:
        """The collection's name."""
        return self._async.name

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its space."""
        return self._async.fingerprint

    def __repr__(self) -> str:
        return repr(self._async).replace("AsyncCollection", "Collection")

    refresh = blocking(AsyncCollection.refresh)
    update = blocking(AsyncCollection.update)
    add = blocking(AsyncCollection.add)
    add_vectors = blocking(AsyncCollection.add_vectors)
    get = blocking(AsyncCollection.get)
    count = blocking(AsyncCollection.count)
    delete = blocking(AsyncCollection.delete)
    check = blocking(AsyncCollection.check)
    search = blocking(AsyncCollection.search)
    search_many = blocking(AsyncCollection.search_many)
    search_examples = blocking(AsyncCollection.search_examples)
    duplicates = blocking(AsyncCollection.duplicates)
    train_head = blocking(AsyncCollection.train_head)
    update_head = blocking(AsyncCollection.update_head)
    head = blocking(AsyncCollection.head)
    heads = blocking(AsyncCollection.heads)
    delete_head = blocking(AsyncCollection.delete_head)
    classify = blocking(AsyncCollection.classify)
    evaluate = blocking(AsyncCollection.evaluate)
    label = blocking(AsyncCollection.label)
    review_labels = blocking(AsyncCollection.review_labels)
    select_source = blocking(AsyncCollection.select_source)
    pseudo_label = blocking(AsyncCollection.pseudo_label)
    export = blocking(AsyncCollection.export)

    items = iterating(AsyncCollection.items)
    upsert = iterating(AsyncCollection.upsert)


class Client:
    """A connection to a likewise server; see AsyncClient, whose methods these are.

    >>> with Client("localhost:50051") as lw:
    ...     lw.embed(["cat.jpg"]).vectors.shape
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float = 60.0,
        retries: int = 5,
        window: int = 4,
        ca: str | os.PathLike[str] | None = None,
        cert: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        token: str | None = None,
        insecure: bool | None = None,
    ) -> None:
        async def connect() -> AsyncClient:  # a channel belongs to the loop it is made on
            return AsyncClient(
                address,
                timeout=timeout,
                retries=retries,
                window=window,
                ca=ca,
                cert=cert,
                key=key,
                token=token,
                insecure=insecure,
            )

        self._async = wait_for(connect())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    close = blocking(AsyncClient.close)
    info = blocking(AsyncClient.info)
    backbones = blocking(AsyncClient.backbones)
    embed = blocking(AsyncClient.embed)
    rank_backbones = blocking(AsyncClient.rank_backbones)
    collections = blocking(AsyncClient.collections)
    delete_collection = blocking(AsyncClient.delete_collection)
    create_collection = _opening(AsyncClient.create_collection)
    collection = _opening(AsyncClient.collection)
