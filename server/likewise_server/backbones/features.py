"""From a network's layers to one vector an image: capture, pool, concatenate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from likewise_server.backbones.base import LOGITS, BackboneRef, Network
from likewise_server.backbones.folding import FoldedConv
from likewise_server.errors import FailedPrecondition, InvalidArgument

GEM_POWER = 3.0  # Radenovic et al., "Fine-tuning CNN image retrieval with no human annotation", 2018
MAPS, TOKENS, VECTORS = 4, 3, 2  # axes of a layer's output


def extract(network: Network, x: Tensor, ref: BackboneRef) -> Tensor:
    """Return the (n, dim) features of the normalised batch `x` (n, 3, h, w) that `ref` asks for.

    Raises InvalidArgument for a layer the network does not have or a pooling that does not fit it.
    """
    layers = ref.layer.split("+") if ref.layer else [network.feature_layer]
    with _captured(network, [name for name in layers if name != LOGITS], x.shape[0]) as outputs, _gate(network, layers):
        logits = network.module(x)
    parts: list[Tensor] = []
    for layer in layers:
        if layer == LOGITS:
            parts.append(logits.flatten(1))
        else:
            if layer not in outputs:
                raise InvalidArgument(f"layer {layer!r} has no output of its own: name one inside it, as {layer}.0")
            parts.append(_pooled(network, layer, outputs[layer], ref.pooling, default=not ref.layer))
    return torch.cat(parts, dim=1).float()


def layer_names(network: Network) -> list[str]:
    """Return the names `BackboneRef.layer` may take, shallow ones first: depth one and two, and logits."""
    named = network.module.named_modules()
    names = [n for n, m in named if n and n.count(".") <= 1 and not isinstance(m, FoldedConv)]
    prefix = network.classifier_prefix
    names = [n for n in names if not (prefix and (n == prefix or n.startswith(prefix + ".")))]
    return names + ([LOGITS] if network.gate else [])


def _pooled(network: Network, layer: str, out: Tensor, pooling: str, *, default: bool) -> Tensor:
    if default and network.after is not None:
        out = network.after(out)
    how = pooling or (network.pooling if default or out.ndim == TOKENS else "avg")
    if out.ndim == MAPS:
        if layer.split(".", maxsplit=1)[0] in network.nhwc:
            out = out.permute(0, 3, 1, 2)
        vectors = _pool(out.flatten(2), how)
    elif out.ndim == TOKENS:
        vectors = _pool_tokens(network, out, how)
    elif out.ndim == VECTORS:
        vectors = out
    else:
        raise InvalidArgument(f"this layer's output has {out.ndim} axes: choose one with 2, 3 or 4")
    return network.norm(vectors.to(out.dtype)) if default and network.norm is not None else vectors


def _pool_tokens(network: Network, tokens: Tensor, how: str) -> Tensor:
    """Pool an (n, tokens, dim) sequence: its class token, or over its patches."""
    if how == "cls":
        if not network.prefix_tokens:
            raise InvalidArgument("this backbone has no class token: use pooling=avg, gem or max")
        return tokens[:, 0]
    return _pool(tokens[:, network.prefix_tokens :].transpose(1, 2), how)


def _pool(positions: Tensor, how: str) -> Tensor:
    """Pool an (n, channels, positions) tensor over its positions, in float32."""
    positions = positions.float()
    if how == "avg":
        return positions.mean(2)
    if how == "max":
        return positions.amax(2)
    if how == "gem":
        return positions.clamp(min=1e-6).pow(GEM_POWER).mean(2).pow(1 / GEM_POWER)
    raise InvalidArgument(f"pooling={how} needs a layer with tokens: use avg, gem or max here")


@contextmanager
def _captured(network: Network, layers: list[str], images: int | torch.SymInt) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of `layers` during one forward pass. One thread runs a network at a time."""
    outputs: dict[str, Tensor] = {}
    handles = []
    try:
        for layer in layers:
            module = _find(network.module, layer)

            def save(_module: nn.Module, _inputs: object, out: object, layer: str = layer) -> None:
                if not isinstance(out, Tensor):
                    raise InvalidArgument(f"layer {layer!r} does not return a tensor: choose another")
                if out.shape[0] != images:
                    raise InvalidArgument(f"layer {layer!r} does not keep one row per image: choose another")
                # What comes after may work in place; of the last feature map nothing does.
                outputs[layer] = out if layer == network.feature_layer else out.clone()

            handles.append(module.register_forward_hook(save))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _find(module: nn.Module, layer: str) -> nn.Module:
    try:
        found = module.get_submodule(layer)
    except AttributeError as error:
        top = ", ".join(name for name, _ in module.named_children())
        raise InvalidArgument(f"no layer {layer!r}: there are {top} and what is in them") from error
    if isinstance(found, FoldedConv):
        raise InvalidArgument(
            f"layer {layer!r} is folded with the batch norm after it: take that norm's output instead"
        )
    return found


@contextmanager
def _gate(network: Network, layers: list[str]) -> Iterator[None]:
    """Let the classifier run when `layers` asks for its output."""
    if LOGITS not in layers:
        yield
        return
    if network.gate is None:
        raise FailedPrecondition("layer=logits: these weights have no classifier; use another layer")
    network.gate.open = True
    try:
        yield
    finally:
        network.gate.open = False
