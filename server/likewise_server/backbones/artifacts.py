"""Compiled networks on disk, under the data directory, so that the next start is warm.

One folder for each, named by a hash over everything that its code depends on: `code` (a shared library
for a CPU, torch's package for a GPU) and `facts.json` with its SHA-256 and what was measured. A folder
counts from the moment it is renamed to its name; one that does not match its hash is thrown away.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import structlog
import torch
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import BackboneRef

log = structlog.get_logger()

SCHEME = 1  # raise it when what is compiled changes
KEPT = 16  # folders; those used least lately go first
CODE, FACTS = "code", "facts.json"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Facts:
    """What is known of a compiled feature."""

    sha256: str
    cosine: float  # the least to the eager vectors
    best_batch: Annotated[int, Field(ge=1)]  # beyond it images/s stop growing
    images_per_s: dict[str, float] = Field(default_factory=dict)  # by batch size
    seconds: float = 0.0  # that compiling took


def key_of(backbone: Backbone, ref: BackboneRef, threads: int) -> str:
    """Return the name of the folder: code depends on the network, torch, the processor, its threads and the GPU."""
    device = backbone.replicas[0].device
    facts = {
        "scheme": SCHEME,
        "space": backbone.fingerprint(ref),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def find(folder: Path, key: str) -> tuple[Path, Facts] | None:
    """Return the code kept under `key` and its facts, None if there is none that is whole."""
    home = folder / key
    try:
        facts = TypeAdapter(Facts).validate_json((home / FACTS).read_bytes())
        whole = _sha256(home / CODE) == facts.sha256
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("compiled network is damaged, it will be compiled again", folder=str(home), error=str(error))
        whole = False
    if not whole:
        shutil.rmtree(home, ignore_errors=True)
        return None
    os.utime(home)  # used just now
    return home / CODE, facts


def keep(folder: Path, key: str, code: Path, measured: Mapping[str, object]) -> None:
    """Move the file `code` in under `key`, then drop what has not been used for longest."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = folder / f".{key}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=0o700)
    shutil.move(code, aside / CODE)
    facts = Facts(sha256=_sha256(aside / CODE), **measured)  # type: ignore[arg-type]  # its other fields
    (aside / FACTS).write_text(json.dumps(asdict(facts), indent=2) + "\n")
    shutil.rmtree(folder / key, ignore_errors=True)
    aside.rename(folder / key)
    homes = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in homes[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _processor() -> str:
    """Name the processor and its instruction sets: code compiled for one may be illegal on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
