"""Decodes damaged pictures in a process of its own, and tells what became of each.

    python -m support.decoding FIRST COUNT

Prints a line of JSON at the end. A picture that takes over DEADLINE_S ends the process with a traceback on standard
error, and so does a crash: the last line before it says which picture that was.
"""

from __future__ import annotations

import collections
import faulthandler
import json
import os
import random
import resource
import sys
import time
from pathlib import Path

from threadpoolctl import threadpool_limits

from likewise_server.errors import LikewiseError
from likewise_server.images import LOOKS, Decoding, ImageLimits, Preprocessing, Views, guard, pixels_of
from support.mutations import bombs, intact, mutated

DEADLINE_S = 30.0
MEMORY = 8 * 2**30  # bytes of address space, so that a leak ends this process and not its neighbours
LIMITS = ImageLimits(max_pixels=2_000_000)
MODES: tuple[Decoding, ...] = ("scaled", "full")
VIEWS: tuple[Views, ...] = ("", "", "", "flip", "crops")
WAYS = ("bilinear", "bicubic", "lanczos")


class Tally:
    """What became of the pictures so far."""

    def __init__(self) -> None:
        self.found: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.slowest = (0.0, "")

    def decode(self, name: str, data: bytes, rng: random.Random) -> None:
        """Decode one picture, for a network and in a way that `rng` chooses."""
        how, views = Preprocessing(64, rng.choice((48, 64)), interpolation=rng.choice(WAYS)), rng.choice(VIEWS)
        sys.stderr.write(f"decoding {name}\n")
        faulthandler.dump_traceback_later(DEADLINE_S, exit=True)
        began = time.perf_counter()
        try:
            pixels = pixels_of(data, how, LIMITS, rng.choice(MODES), views)
        except LikewiseError as error:
            self.found[type(error).__name__] += 1
            if not error.message:
                self.wrong.append(f"{name}: an error without a message")
        except BaseException as error:  # noqa: BLE001  # what this is about
            self.wrong.append(f"{name}: {error!r}")
        else:
            self.found["pixels"] += 1
            shape = (LOOKS[views],) * bool(views) + (how.crop, how.crop, 3)
            if pixels.shape != shape or pixels.dtype.name != "uint8" or not pixels.flags.c_contiguous:
                self.wrong.append(f"{name}: {pixels.dtype}{pixels.shape} instead of {shape}")
        self.slowest = max(self.slowest, (time.perf_counter() - began, name))


def main(first: int, count: int) -> None:
    """Decode the cases from `first` on, so many of them; the bombs come before the first of all."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    threadpool_limits(1)
    guard(LIMITS)
    tally = Tally()
    for name, data in bombs() if first == 0 else ():
        tally.decode(name, data, random.Random(name))  # the same ones each time
    files = intact()
    names = sorted(files)
    sizes: list[int] = []
    for number in range(first, first + count):
        rng = random.Random(number)
        name = rng.choice(names)
        tally.decode(f"{number}, of {name}", mutated(files[name], files[rng.choice(names)], rng), rng)
        if number % 100 == 0:
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    faulthandler.cancel_dump_traceback_later()
    grown = max(sizes) - sizes[len(sizes) // 5]  # by then every decoder has been used
    json.dump({"found": tally.found, "wrong": tally.wrong, "slowest": tally.slowest, "grown": grown}, sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
