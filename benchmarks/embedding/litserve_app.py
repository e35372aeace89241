"""The peer's server: LitServe with the recipe of its documentation, posted JPEG bytes in, a vector out.

    python -m embedding.litserve_app NAME WEIGHTS_DIR PORT RECIPE

`ordinary`: decode_request opens one image with Pillow and torchvision's preset, the answer is JSON. `tuned`: images
of a batch are opened in a pool of threads, as LitServe's own speed example does, and the answer is raw bytes.
"""
# No postponed annotations here: LitServe hands those of the two methods to FastAPI as they are.

import io
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from torch import Tensor

from embedding.litserve_peer import BATCH, BATCH_TIMEOUT_S
from embedding.plain import network

litserve: Any = import_module("litserve")  # of the extra [bench]; absent where types are checked
fastapi: Any = import_module("fastapi")

RAW = fastapi.Body(media_type="application/octet-stream")


class Ordinary(litserve.LitAPI):  # type: ignore[misc]  # LitAPI's type is not known
    """Decode, stack, run; one worker, the eager network in fp32."""

    def __init__(self, name: str, weights: Path) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=BATCH_TIMEOUT_S)
        self._name, self._weights = name, weights

    def setup(self, device: str) -> None:
        """Load the network, in the worker's process."""
        module, self._preset = network(self._name, self._weights)
        self._module = module.to(device)

    def decode_request(self, request: Annotated[bytes, RAW]) -> Any:
        """Open one picture."""
        return self._open(request)

    def predict(self, batch: Tensor) -> Tensor:
        """Run the network on what LitServe stacked."""
        with torch.inference_mode():
            out: Tensor = self._module(batch)
        return out

    def encode_response(self, output: Tensor) -> dict[str, list[float]]:
        """Return one vector as JSON."""
        return {"embedding": output.tolist()}

    def _open(self, data: bytes) -> Tensor:
        pixels: Tensor = self._preset(Image.open(io.BytesIO(data)).convert("RGB"))
        return pixels


class Tuned(Ordinary):
    """The same with pictures opened side by side and no JSON."""

    def setup(self, device: str) -> None:
        """Load the network, and start threads."""
        super().setup(device)
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1)

    def decode_request(self, request: Annotated[bytes, RAW]) -> Any:
        """Leave the picture closed until its batch is known."""
        return request

    def batch(self, inputs: Sequence[bytes]) -> Tensor:
        """Open the pictures of a batch side by side."""
        return torch.stack(list(self._pool.map(self._open, inputs)))

    def encode_response(self, output: Tensor) -> fastapi.Response:
        """Return one vector as little-endian float32."""
        return fastapi.Response(output.numpy().tobytes(), media_type="application/octet-stream")


RECIPES = {"ordinary": Ordinary, "tuned": Tuned}


def main() -> None:
    """Serve until told to end."""
    name, weights, port, recipe = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    server = litserve.LitServer(RECIPES[recipe](name, weights), accelerator="cpu")
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
