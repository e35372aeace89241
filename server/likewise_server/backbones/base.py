"""What a backbone is: a frozen network, its preprocessing, and the features that can be taken from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from likewise_server.errors import InvalidArgument
from likewise_server.images import Preprocessing

PoolingName = Literal["", "avg", "gem", "max", "cls"]
POOLINGS: tuple[str, ...] = get_args(PoolingName)
LOGITS = "logits"
MOST_LAYERS = 8


@dataclass(frozen=True, slots=True)
class BackboneRef:
    """Which feature of which backbone: a name, a layer ("" = the default), a pooling ("" = its own).

    `layer` names a module of the network; "layer3+layer4" concatenates two, "logits" is the classifier's output.
    """

    name: str
    layer: str = ""
    pooling: str = ""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise InvalidArgument(f"unknown pooling {self.pooling!r}: use one of avg, gem, max, cls")
        layers = self.layer.split("+") if self.layer else []
        if len(layers) > MOST_LAYERS or len(set(layers)) < len(layers) or any(not n or n != n.strip() for n in layers):
            raise InvalidArgument(f"layer is up to {MOST_LAYERS} different names joined by +, without spaces")

    def __str__(self) -> str:
        options = [f"{k}={v}" for k, v in (("layer", self.layer), ("pooling", self.pooling)) if v]
        return self.name + ("?" + "&".join(options) if options else "")

    @classmethod
    def parse(cls, text: str) -> BackboneRef:
        """Read back what `str()` wrote: "name", "name?layer=layer3&pooling=gem"."""
        name, _, query = text.partition("?")
        options = dict(part.partition("=")[::2] for part in query.split("&") if part)
        return cls(name, options.get("layer", ""), options.get("pooling", ""))


@dataclass(frozen=True, slots=True)
class Space:
    """An embedding space. Vectors compare only when their fingerprints are equal."""

    fingerprint: str
    dim: int
    backbone: BackboneRef | None = None


class Gate(nn.Module):
    """A classifier that is skipped unless its output is asked for."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.open = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits if open, else `x` as it came."""
        out: Tensor = self.classifier(x) if self.open else x
        return out


@dataclass(slots=True)
class Network:
    """A loaded architecture: what a family's loader returns and `Backbone` runs.

    `feature_layer` is the module whose output is the last feature map, or token sequence; `after` is
    applied to that map (an activation the network computes without a module), `norm` to its pooled vector.
    """

    module: nn.Module
    preprocessing: Preprocessing
    feature_layer: str
    pooling: PoolingName = "avg"
    nhwc: tuple[str, ...] = ()  # top-level modules whose outputs have their channels last
    prefix_tokens: int = 0  # class and register tokens before the patches
    gate: Gate | None = None
    classifier_prefix: str = ""
    after: Callable[[Tensor], Tensor] | None = None
    norm: nn.Module | None = None
    source: str = "random"  # where the weights came from, for people
