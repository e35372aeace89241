"""What goes into a store and what comes out: plain frozen values, and the protocol every engine keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from likewise_server.errors import LikewiseError

Metric: TypeAlias = Literal["cosine", "dot", "l2"]
Storage: TypeAlias = Literal["fp32", "fp16"]
Float32: TypeAlias = NDArray[np.float32]
Int64: TypeAlias = NDArray[np.int64]
Bool: TypeAlias = NDArray[np.bool_]
Attributes: TypeAlias = dict[str, Any]
"""JSON values: str, int, float, bool, None, and lists and dicts of them."""


class Outcome(StrEnum):
    """What an upsert did to one item."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class IndexState:
    """How a collection is searched now.

    `kind`: "exact", or the FAISS factory of its approximate segment, which has `rows` rows and was
    measured to find the share `measured_recall` of the true neighbours at `operating_point`; `delta` rows
    are compared one by one beside it. `building` names the step of a build under way, of which `progress`,
    0 to 1, is done; empty when none is.
    """

    kind: str = "exact"
    rows: int = 0
    delta: int = 0
    measured_recall: float | None = None
    operating_point: str = ""
    building: str = ""
    progress: float = 0.0


@dataclass(frozen=True, slots=True)
class CollectionSpace:
    """What never changes of a collection. `created_at` is in Unix seconds."""

    name: str
    dim: int
    metric: Metric
    fingerprint: str
    backbone: str
    created_at: float


@dataclass(frozen=True, slots=True)
class CollectionInfo(CollectionSpace):
    """A collection as it is now.

    `bytes_by_part` has `sqlite` (vectors in the database, without
    attributes and indexes), `segments` (files) and `delta` (rows in memory that no segment holds yet).
    `index`, `indexed` and `storage` are what was asked for, see `Store.create_collection`; `state` is what is.
    """

    count: int
    bytes_by_part: dict[str, int]
    index: str = "auto"
    indexed: tuple[str, ...] = ()
    storage: Storage = "fp32"
    state: IndexState = field(default_factory=IndexState)


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item to be stored. `vector` is `(dim,)` float32 and is kept as given, never normalised."""

    id: str
    vector: Float32 = field(compare=False)
    label: str | None = None
    attributes: Attributes = field(default_factory=dict)
    uri: str = ""
    content_hash: str = ""


@dataclass(frozen=True, slots=True)
class NewLabel:
    """Another label for a stored item, None to take it away; its vector stays.

    `attributes` are laid over those it has, None taking one away (a JSON merge patch of one level, RFC 7386).
    `as_read`: only if the item is still what was read, its vector included where that was read as well.
    """

    id: str
    label: str | None
    attributes: Attributes = field(default_factory=dict)
    as_read: Item | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A stored item. `updated_at` is in Unix seconds; `vector`, `(dim,)` float32, only if asked for."""

    id: str
    label: str | None
    attributes: Attributes
    uri: str
    content_hash: str
    updated_at: float
    vector: Float32 | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Hit:
    """One found item. `score`: larger is nearer; cosine, dot product, or minus the Euclidean distance."""

    item: Item
    score: float


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One list of hits per query, in the order of the queries, nearest first.

    `exact`: every row that could match was compared. `measured_recall`: of an approximate segment, None
    where the answer is exact. `scanned`: rows compared per query. `filtered_count`: rows that the `where`
    matches, None without one or where nobody counted them.
    """

    hits: list[list[Hit]]
    exact: bool
    measured_recall: float | None
    scanned: int
    filtered_count: int | None


@dataclass(frozen=True, slots=True)
class Labelled:
    """The labelled items of a collection in insertion order: `vectors` is `(n, dim)` float32, as stored."""

    ids: list[str]
    vectors: Float32
    labels: list[str]
    content_hashes: list[str]


@dataclass(frozen=True, slots=True)
class HeadRow:
    """One version of a head. `blob` is opaque here; listings leave it empty unless asked."""

    collection: str
    name: str
    version: int
    kind: str
    meta: Attributes
    blob: bytes
    created_at: float
    request_id: str


@dataclass(frozen=True, slots=True)
class FsckReport:
    """What a check looked at, what it found wrong and what it set right."""

    checked: dict[str, int]
    problems: list[str]
    repaired: list[str]

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problems


class Store(Protocol):
    """Keeps collections, their items and their heads. Calls block; every method is safe from any thread.

    What a write returned is on disk and seen by every later read. All errors are `LikewiseError`s.
    """

    def create_collection(
        self,
        name: str,
        *,
        dim: int,
        metric: Metric = "cosine",
        fingerprint: str,
        backbone: str = "",
        request_id: str = "",
        index: str = "auto",
        indexed: Sequence[str] = (),
        storage: Storage = "fp32",
    ) -> CollectionInfo:
        """Make an empty collection.

        `index`: "auto" (exact while that is quick, then an approximate segment), "exact", or a FAISS factory
        for those who know. `indexed` are dotted names of attributes that filters find quickly. `storage` is
        the precision of the vectors that searches read; what was given is always kept in float32 as well.

        The same name, specification and non-empty `request_id` again gives the collection made before.
        Raises AlreadyExists for a taken name and InvalidArgument for a bad name, dim, metric, index, attribute
        name or storage.
        """

    def alter_collection(
        self, name: str, *, index: str | None = None, indexed: Sequence[str] | None = None
    ) -> CollectionInfo:
        """Change how a collection is searched, or which attributes are indexed; None leaves one as it is.

        Raises NotFound and InvalidArgument.
        """

    def known_space(self, name: str) -> CollectionSpace | None:
        """Return what `space_of` would where that takes no waiting, else None."""

    def space_of(self, name: str) -> CollectionSpace:
        """Return what never changes of a collection. Raises NotFound."""

    def get_collection(self, name: str) -> CollectionInfo:
        """Return one collection; raises NotFound."""

    def list_collections(self, page_size: int, page_token: str = "") -> tuple[list[CollectionInfo], str]:
        """Return a page of collections by name, and the token of the next page, empty at the end."""

    def delete_collection(self, name: str) -> None:
        """Delete a collection with its items and heads; raises NotFound."""

    def upsert(self, collection: str, items: Sequence[NewItem], *, fingerprint: str) -> list[Outcome | LikewiseError]:
        """Store items; one entry per item, in order, an error where that item could not be stored.

        Raises NotFound, and FailedPrecondition where `fingerprint` is not the collection's.
        """

    def relabel(self, collection: str, labels: Sequence[NewLabel]) -> list[Outcome | LikewiseError]:
        """Label stored items anew, all in one write; one entry per label, in order: UPDATED, UNCHANGED or an error.

        The errors are NotFound, FailedPrecondition for an item that is not as it was read, and OutOfRange for
        attributes that became too large. An item keeps its place in the order of insertion, and no index is built.
        Raises NotFound for the collection and InvalidArgument for a label or attributes that no item can have.
        """

    def get(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> list[Item | None]:
        """Return one entry per id, in order, None where there is no such item."""

    def list_items(
        self,
        collection: str,
        *,
        where: str = "",
        page_size: int = 100,
        page_token: str = "",
        vectors: bool = False,
    ) -> tuple[list[Item], str]:
        """Return a page of items by id, and the token of the next page, empty at the end.

        An item present throughout is seen exactly once, whatever is written between the pages.
        """

    def count(self, collection: str, where: str = "") -> int:
        """Return the number of items, or of those that match."""

    def delete(self, collection: str, ids: Sequence[str] | None = None, *, where: str = "") -> int:
        """Delete the items named, or those that match, or with both those named that match; return how many.

        Raises InvalidArgument where neither is given.
        """

    def search(
        self,
        collection: str,
        queries: Float32,
        k: int,
        *,
        where: str = "",
        exclude_ids: Sequence[str] = (),
        fingerprint: str = "",
        min_score: float | None = None,
        bare: bool = False,
    ) -> SearchResult:
        """Find the `k` nearest items of each query, `(n, dim)` float32, ties in order of insertion.

        With a `where`, as many as match, up to `k`; with a `min_score`, only hits that reach it. `bare` items
        have their id and nothing else. Raises InvalidArgument for a bad k, filter or query
        value and FailedPrecondition for another dimension or, where one is given, another fingerprint.
        """

    def labelled(self, collection: str, *, where: str = "") -> Labelled:
        """Return every item that has a label."""

    def mean_vector(self, collection: str, limit: int = 20_000) -> Float32:
        """Return the mean, `(dim,)`, of up to `limit` L2-normalised vectors; zeros if there are none."""

    def save_head(
        self, collection: str, name: str, kind: str, meta: Attributes, blob: bytes, request_id: str = ""
    ) -> HeadRow:
        """Store the next version of a head; versions are never reused.

        The same non-empty `request_id` again gives the row stored before.
        """

    def get_head(self, collection: str, name: str, version: int = 0) -> HeadRow:
        """Return a version of a head, 0 for the latest; raises NotFound."""

    def head_of_request(self, collection: str, name: str, request_id: str) -> HeadRow | None:
        """Return the version of a head that the request with this id stored; None if it did not, or for no id."""

    def list_heads(
        self,
        collection: str,
        *,
        name: str = "",
        page_size: int = 100,
        page_token: str = "",
        blobs: bool = False,
    ) -> tuple[list[HeadRow], str]:
        """Return a page of head versions by name and version, and the token of the next page."""

    def delete_head(self, collection: str, name: str, version: int = 0) -> int:
        """Delete a version of a head, 0 for all of them; return how many; raises NotFound."""

    def fsck(self, collection: str = "", *, repair: bool = False) -> FsckReport:
        """Check one collection or all; with `repair`, rebuild what is derived."""

    def checkpoint(self, collection: str = "") -> None:
        """Write what is derived, for one collection or all, so that the next start is quick."""

    def healthy(self) -> bool:
        """Tell whether writes can still be taken."""

    def doubtful(self) -> bool:
        """Tell whether a write has failed by the disk's doing, as it seems, and none has succeeded since."""

    def probe(self) -> None:
        """Write a little and have it on disk. Raises what writes would: Unavailable, ResourceExhausted, Internal."""

    def close(self) -> None:
        """Finish what is queued, checkpoint, and let go of the data."""
