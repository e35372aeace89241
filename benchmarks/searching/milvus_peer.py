"""milvus-lite through pymilvus's MilvusClient, as its quick start has it. A worker, run by the peers' interpreter.

python -m searching.milvus_peer PLAN_JSON build|search
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient

from common.answering import Answers
from common.processes import rss_bytes
from searching.data import Dataset, Float32, Int64
from searching.plan import Plan
from searching.turns import Turns

NAME = "bench"
ROWS = 1000  # of one insert: their message stays small
LINKS, EF_CONSTRUCTION = 32, 200  # as for hnswlib
EF = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)


def main() -> None:
    """Build a collection, or open one and answer."""
    answers = Answers()
    data = Dataset(Plan.parse(sys.argv[1]))
    hello: dict[str, Any] = {"version": version("milvus-lite"), "base_bytes": rss_bytes(os.getpid())}
    client = MilvusClient(str(data.plan.folder / "milvus.db"))
    if sys.argv[2] == "build":
        answers.serve({"build": lambda: build(client, data)}, hello)
    else:
        client.load_collection(NAME)
        answers.serve(Turns(MilvusPeer(client), data).jobs(), hello)


def build(client: MilvusClient, data: Dataset) -> dict[str, Any]:
    """Insert all rows and wait until the index has them."""
    if client.has_collection(NAME):  # of a run that was interrupted
        client.drop_collection(NAME)
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=data.dim)
    index = MilvusClient.prepare_index_params()
    parameters = {"M": LINKS, "efConstruction": EF_CONSTRUCTION}
    index.add_index("vector", index_type="HNSW", metric_type="IP", params=parameters)
    started = time.perf_counter()
    client.create_collection(NAME, schema=schema, index_params=index)
    for first, block in data.blocks(ROWS):
        client.insert(NAME, [{"id": first + at, "vector": row} for at, row in enumerate(block)])
    inserted = time.perf_counter() - started
    client.flush(NAME)
    client.load_collection(NAME)
    state: dict[str, Any] = dict(client.describe_index(NAME, "vector"))
    while state.get("pending_index_rows", 0):
        time.sleep(0.5)
        state = dict(client.describe_index(NAME, "vector"))
    built = time.perf_counter() - started
    client.close()  # or what is not on disk is lost with this process
    return {"insert_s": inserted, "build_s": built, "indexed_rows": state.get("indexed_rows")}


class MilvusPeer:
    """A loaded collection."""

    def __init__(self, client: MilvusClient) -> None:
        self._client = client
        self._parameters: dict[str, Any] = {}

    def settings(self) -> Iterator[list[dict[str, int]]]:
        """Yield rising ef."""
        yield [{"ef": ef} for ef in EF]

    def use(self, setting: dict[str, int]) -> None:
        """Search with an ef."""
        self._parameters = {"params": setting}

    def search(self, queries: Float32, k: int) -> Any:
        """Return pymilvus's lists of hits: ids and distances, no other field."""
        return self._client.search(NAME, data=list(queries), limit=k, search_params=self._parameters)

    def numbers(self, answer: Any, k: int) -> Int64:
        """Return the ids."""
        found = np.full((len(answer), k), -1, np.int64)
        for row, hits in zip(found, answer, strict=True):
            row[: len(hits)] = [hit["id"] for hit in hits]
        return found


if __name__ == "__main__":
    main()
