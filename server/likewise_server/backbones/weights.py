"""Weights from local files: found by name, read without pickle, fitted with or without a classifier."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from likewise_server.errors import FailedPrecondition
from likewise_server.images import Preprocessing

SUFFIXES = (".safetensors", ".pth")


def find(weights_dir: Path | None, name: str) -> Path | None:
    """Return weights_dir/<name>.safetensors or .pth, whichever exists first. "timm/x" may also lie flat, as x."""
    if weights_dir is None:
        return None
    stems = [name, name.rpartition("/")[2]]
    candidates = [weights_dir / (stem + suffix) for stem in stems for suffix in SUFFIXES]
    return next((path for path in candidates if path.is_file()), None)


def read(path: Path) -> dict[str, Tensor]:
    """Return the state dict in `path`. Raises FailedPrecondition if it holds anything but tensors."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # noqa: PLC0415  # only where such a file is used

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise FailedPrecondition(
            f"{path.name} in LIKEWISE_WEIGHTS_DIR is not a readable state dict: save it with "
            f"torch.save(model.state_dict(), ...) or safetensors ({type(error).__name__})"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise FailedPrecondition(f"{path.name}: expected a plain state dict, name to tensor")
    return dict(state)


def fit(module: nn.Module, state: Mapping[str, Tensor], *, optional: str, source: str) -> bool:
    """Load `state` into `module`; return whether the classifier (keys under `optional`) was complete.

    A feature server needs no classifier, so its tensors may be missing or shaped for other classes.
    Raises FailedPrecondition naming the keys if anything else is missing, left over or misshapen.
    """
    own = module.state_dict()
    wrong = [k for k, v in state.items() if k in own and own[k].shape != v.shape and not k.startswith(optional)]
    usable = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    missing = [k for k in own if k not in usable and not k.endswith("num_batches_tracked")]
    fatal = [k for k in missing if not k.startswith(optional)]
    extra = [k for k in state if k not in own and not k.startswith(optional)]
    if fatal or extra or wrong:
        shown = "; ".join(
            f"{what}: {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}"  # noqa: PLR2004  # three will do
            for what, keys in (("missing", fatal), ("unexpected", extra), ("other shape", wrong))
            if keys
        )
        raise FailedPrecondition(f"{source} does not fit this architecture ({shown}): is it another model's file?")
    versioned = OrderedDict(usable)
    # MNASNet asks for the version its layers were saved with; safetensors keeps none.
    versioned._metadata = getattr(own, "_metadata", {})  # type: ignore[attr-defined]  # noqa: SLF001  # torch's own habit
    module.load_state_dict(versioned, strict=False)
    return not missing


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_hash(module: nn.Module, *, without: str = "") -> str:
    """Return a SHA-256 over all parameters and buffers, names and shapes included, leaving out a prefix."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        if (without and key.startswith(without)) or key.endswith("num_batches_tracked"):
            continue
        plain = value.detach().cpu().contiguous()
        digest.update(f"{key}|{plain.dtype}|{tuple(plain.shape)}|".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


ABOUT = ("architecture", "sha256", "origin")
"""What a note says beside the preprocessing: whose layers these are, the hash of the file, where it came from."""


def sidecar(path: Path) -> Preprocessing | None:
    """Return the preprocessing that <name>.json beside a weights file states, if there is one.

    Keys: resize, crop, and optionally mean, std, interpolation; those of ABOUT are for others.
    """
    facts = {key: value for key, value in _note(path).items() if key not in ABOUT}
    if not facts:
        return None
    try:
        for key in ("mean", "std"):
            if key in facts:
                facts[key] = tuple(float(v) for v in facts[key])
        return Preprocessing(**facts)
    except (ValueError, TypeError) as error:
        raise _not_understood(path, error) from error


def architecture(path: Path) -> str:
    """Return the architecture that <name>.json beside a weights file of one's own names, "" if none.

    Raises FailedPrecondition where the note has the hash of another file: one of the two was copied alone.
    """
    facts = _note(path)
    if "sha256" in facts and facts["sha256"] != file_hash(path):
        raise FailedPrecondition(
            f"{path.name} is not the file that {path.stem}.json beside it describes: copy both again, or train again"
        )
    return str(facts.get("architecture", ""))


def _note(path: Path) -> dict[str, Any]:
    note = path.with_suffix(".json")
    if not note.is_file():
        return {}
    try:
        facts = json.loads(note.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _not_understood(path, error) from error
    if not isinstance(facts, dict):
        raise _not_understood(path, "no object")
    return facts


def _not_understood(path: Path, why: object) -> FailedPrecondition:
    return FailedPrecondition(
        f"{path.stem}.json beside the weights is not understood ({why}): "
        'write {"resize": 256, "crop": 224} and, if needed, mean, std, interpolation'
    )
