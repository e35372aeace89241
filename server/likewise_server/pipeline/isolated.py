"""What runs in a process that `isolation` starts: decodes what it is given, one image after the other."""

from __future__ import annotations

import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from likewise_server.child import end_with_parent
from likewise_server.errors import LikewiseError
from likewise_server.images import ImageLimits, Preprocessing, guard, pixels_of

Decoder = Callable[..., NDArray[np.uint8]]


def main(plan: dict[str, Any], decoder: Decoder = pixels_of) -> None:
    """Answer until the other side closes; `plan` is what `isolation` says, `decoder` has the form of `pixels_of`."""
    end_with_parent()
    limits = ImageLimits(**plan["limits"])
    guard(limits)
    threadpool_limits(1)
    memory = mmap.mmap(plan["memory"], plan["size"])
    os.close(plan["memory"])
    with socket.socket(fileno=plan["socket"]) as ours, ours.makefile("rb") as requests:
        ours.sendall(b"{}\n")
        for line in requests:
            asked = json.loads(line)
            ours.sendall(json.dumps(_answer(asked, memory, limits, plan["decoding"], decoder)).encode() + b"\n")


def _answer(
    asked: dict[str, Any], memory: mmap.mmap, limits: ImageLimits, decoding: str, decoder: Decoder
) -> dict[str, str]:
    """Decode what is in the memory, and leave the pixels there."""
    data = memory[: asked["bytes"]]
    how = Preprocessing(**asked["how"])
    try:
        pixels = decoder(data, how, limits, decoding, asked["views"])
    except LikewiseError as error:
        return {"error": type(error).__name__, "message": error.message}
    memory[: pixels.nbytes] = pixels.tobytes()
    return {}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
