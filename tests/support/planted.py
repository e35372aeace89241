"""A decoding process that a marked picture crashes, hangs or confuses, and that decodes the others as it should."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likewise_server.images import pixels_of
from likewise_server.pipeline.isolated import main

CRASH, HANG, RAISE = b"planted crash", b"planted hang", b"planted bug"


def decode(data: bytes, *arguments: Any) -> NDArray[np.uint8]:
    """Do what a bug in a decoder might, where the picture says so."""
    if data.endswith(CRASH):
        os.kill(os.getpid(), signal.SIGSEGV)
    if data.endswith(HANG):
        time.sleep(3600)
    if data.endswith(RAISE):
        raise RuntimeError("a bug")
    return pixels_of(data, *arguments)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), decode)
