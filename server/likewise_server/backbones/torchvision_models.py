"""Every torchvision classification architecture, by its torchvision name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from likewise_server.backbones import weights
from likewise_server.backbones.base import Gate, Network, PoolingName
from likewise_server.errors import NotFound, Unavailable
from likewise_server.images import Preprocessing


@dataclass(frozen=True, slots=True)
class Family:
    """Where an architecture family keeps what we need; see Network for the meaning of each."""

    prefix: str
    feature_layer: str
    classifier: str
    pooling: PoolingName = "avg"
    nhwc: tuple[str, ...] = ()
    prefix_tokens: int = 0
    norm: str = ""  # a normalisation inside the classifier that belongs to the feature
    relu_after: bool = False
    options: tuple[tuple[str, Any], ...] = ()  # how the pretrained builder differs from the plain one


# A family is one line; the longest matching prefix wins.
FAMILIES = (
    Family("alexnet", "features", "classifier"),
    Family("convnext", "features", "classifier", norm="classifier.0"),
    Family("densenet", "features", "classifier", relu_after=True),
    Family("efficientnet", "features", "classifier"),
    Family("googlenet", "inception5b", "fc", options=(("transform_input", True), ("aux_logits", True))),
    Family("inception_v3", "Mixed_7c", "fc", options=(("transform_input", True), ("aux_logits", True))),
    Family("maxvit", "blocks", "classifier", norm="classifier.2"),
    Family("mnasnet", "layers", "classifier"),
    Family("mobilenet", "features", "classifier"),
    Family("regnet", "trunk_output", "fc"),
    Family("resnet", "layer4", "fc"),
    Family("resnext", "layer4", "fc"),
    Family("shufflenet", "conv5", "fc"),
    Family("squeezenet", "features", "classifier"),
    Family("swin", "permute", "head", nhwc=("features", "norm")),
    Family("vgg", "features", "classifier"),
    Family("vit", "encoder", "heads", pooling="cls", prefix_tokens=1),
    Family("wide_resnet", "layer4", "fc"),
)


def names() -> list[str]:
    """Return every torchvision classification architecture that has a family here."""
    from torchvision import models  # noqa: PLC0415  # seconds, only when a server runs

    return [name for name in models.list_models(module=models) if _family(name)]


def load(name: str, path: Path | None) -> Network:
    """Build `name` with the weights in `path`, else from torchvision's download or its cache.

    Raises NotFound for an unknown name, FailedPrecondition for a file that does not fit,
    Unavailable when there is no file and no download.
    """
    family, enum = _known(name)
    entry = _published_as(enum, path) if path else enum.DEFAULT
    preprocessing = (weights.sidecar(path) if path else None) or _preprocessing(entry.transforms())
    module = _built(name, family, preprocessing)
    state = weights.read(path) if path else _download(name, entry)
    source = path.name if path else f"torchvision {entry}"
    # Auxiliary classifiers of GoogLeNet and Inception serve training alone.
    state = {_current_name(k): v for k, v in state.items() if not k.startswith(("aux", "AuxLogits"))}
    complete = weights.fit(module, state, optional=family.classifier, source=source)
    return _network(module.eval(), family, preprocessing, source, complete=complete)


def untrained(name: str) -> Network:
    """Build `name` with random weights and the preprocessing of its original recipe. Raises NotFound."""
    family, enum = _known(name)
    preprocessing = _preprocessing(next(iter(enum)).transforms())
    return _network(_built(name, family, preprocessing).eval(), family, preprocessing, "random", complete=True)


def _known(name: str) -> tuple[Family, Any]:
    """Return the family of an architecture and its published weights. Raises NotFound."""
    from torchvision import models  # noqa: PLC0415

    family = _family(name)
    if family is None or name not in models.list_models(module=models):
        near = ", ".join(difflib.get_close_matches(name, names(), n=3)) or "resnet50, mobilenet_v2, vit_b_16"
        raise NotFound(
            f"unknown backbone {name[:100]!r}: likewise-tiny, a torchvision name ({near}, …), timm/<name>, or one "
            "of your own with its weights and their .json in LIKEWISE_WEIGHTS_DIR; docs/backbones.md has more"
        )
    return family, models.get_model_weights(name)


def _built(name: str, family: Family, preprocessing: Preprocessing) -> nn.Module:
    from torchvision import models  # noqa: PLC0415

    options = dict(family.options)
    if family.prefix == "vit":
        options["image_size"] = preprocessing.crop
    if family.prefix in ("inception_v3", "googlenet"):
        options["init_weights"] = False
    module: nn.Module = models.get_model(name, weights=None, **options)
    _drop_auxiliary(module)
    return module


def _network(
    module: nn.Module, family: Family, preprocessing: Preprocessing, source: str, *, complete: bool
) -> Network:
    classifier = module.get_submodule(family.classifier)
    norm = _vector_norm(module.get_submodule(family.norm)) if family.norm else None
    gate = Gate(classifier)
    setattr(module, family.classifier, gate if complete else nn.Identity())
    return Network(
        module=module,
        preprocessing=preprocessing,
        feature_layer=_last(module, family),
        pooling=family.pooling,
        nhwc=family.nhwc,
        prefix_tokens=family.prefix_tokens,
        gate=gate if complete else None,
        classifier_prefix=family.classifier,
        after=torch.relu if family.relu_after else None,
        norm=norm,
        source=source,
    )


def _last(module: nn.Module, family: Family) -> str:
    """Name the last feature map; a plain ModuleList has no output of its own, its last member has."""
    inner = module.get_submodule(family.feature_layer)
    return f"{family.feature_layer}.{len(inner) - 1}" if isinstance(inner, nn.ModuleList) else family.feature_layer


class _VectorNorm(nn.Module):
    """A LayerNorm2d applied to pooled vectors."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x[:, :, None, None]).flatten(1)
        return out


def _vector_norm(norm: nn.Module) -> nn.Module:
    return _VectorNorm(norm) if type(norm).__name__ == "LayerNorm2d" else norm


def _drop_auxiliary(module: nn.Module) -> None:
    for name in ("aux1", "aux2", "AuxLogits"):
        if hasattr(module, name):
            setattr(module, name, None)
    if hasattr(module, "aux_logits"):
        setattr(module, "aux_logits", False)  # noqa: B010  # a plain attribute, which torch's types do not know


def _published_as(enum: Any, path: Path) -> Any:
    """Return the published weights that `path` is, recognised by the hash in their address, else the first entry.

    torchvision names its files by the first eight digits of their SHA-256. Weights from elsewhere
    get the architecture's original recipe, unless a <name>.json beside the file says otherwise.
    """
    start = weights.file_hash(path)[:8]
    return next((entry for entry in enum if entry.url.endswith(f"-{start}.pth")), next(iter(enum)))


def _preprocessing(preset: Any) -> Preprocessing:
    mean, std = tuple(map(float, preset.mean)), tuple(map(float, preset.std))
    interpolation = preset.interpolation.value
    return Preprocessing(preset.resize_size[0], preset.crop_size[0], mean, std, interpolation)  # type: ignore[arg-type]  # three channels


def _current_name(key: str) -> str:
    """Return today's name of a tensor: published DenseNet files say "norm.1" for what is now "norm1"."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)", r"\1", key)


def _download(name: str, entry: Any) -> Mapping[str, Tensor]:
    try:
        state: Mapping[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:
        raise Unavailable(
            f"no weights for {name}: the download failed ({type(error).__name__}). Where there is no network, "
            f"put the state dict at $LIKEWISE_WEIGHTS_DIR/{name}.pth or {name}.safetensors"
        ) from error
    return state


def _family(name: str) -> Family | None:
    fitting = [family for family in FAMILIES if name.startswith(family.prefix)]
    return max(fitting, key=lambda family: len(family.prefix), default=None)
