"""What a reader must know of the machine and of the run before any figure."""

from __future__ import annotations

from typing import Any

from common.machine import machine_facts
from embedding.images import Photographs

PACKAGES = ("torch", "torchvision", "pillow", "grpcio", "litserve")


def run_facts(photographs: Photographs) -> dict[str, Any]:
    """Return machine, versions, pictures and the command line."""
    return {**machine_facts(PACKAGES), "images": photographs.facts()}
