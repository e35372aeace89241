"""Networks of timm (the `timm` extra), as timm/<name>."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from likewise_server.backbones import weights
from likewise_server.backbones.base import Network
from likewise_server.errors import FailedPrecondition, NotFound, Unavailable
from likewise_server.images import Preprocessing

PREFIX = "timm/"


def load(name: str, path: Path | None) -> Network:
    """Build timm/<model> with the weights in `path`, else timm's download.

    The feature is timm's own pooled one, before its classifier. Raises NotFound for an unknown
    model, FailedPrecondition without the extra or for a file that does not fit, Unavailable
    when there is no file and no download.
    """
    timm = _timm()
    model_name = name.removeprefix(PREFIX)
    if not timm.is_model(model_name):
        raise NotFound(f"unknown backbone {name!r}: timm has no model of that name")
    if path:
        module = _from_file(timm, model_name, path)
    else:
        try:
            module = timm.create_model(model_name, pretrained=True, num_classes=0)
        except Exception as error:
            raise Unavailable(
                f"no weights for {name}: the download failed ({type(error).__name__}). Where there is no network, "
                f"put the state dict at $LIKEWISE_WEIGHTS_DIR/{name}.pth"
            ) from error
    own = (weights.sidecar(path) if path else None) or _preprocessing(timm, module)
    # Without a classifier the module returns its pooled feature, which is the default one.
    wrapped = nn.Sequential()
    wrapped.add_module("model", module.eval())
    tokens = int(getattr(module, "num_prefix_tokens", 0))
    return Network(
        module=wrapped,
        preprocessing=own,
        feature_layer="model",
        pooling="cls" if getattr(module, "global_pool", "") == "token" else "avg",
        nhwc=("model",) if str(getattr(module, "output_fmt", "")).upper().endswith("NHWC") else (),
        prefix_tokens=tokens,
        source=path.name if path else f"timm {model_name}",
    )


def _from_file(timm: Any, model_name: str, path: Path) -> nn.Module:
    """Fit a file that holds either the training form or the reparameterised one of a model."""
    from timm.utils.model import reparameterize_model  # noqa: PLC0415

    state = weights.read(path)
    probe: nn.Module = timm.create_model(model_name, num_classes=0)
    own = set(probe.state_dict())
    if not own <= set(state):  # branches merged after training: MobileOne, RepVGG and others
        probe = reparameterize_model(probe.eval())
    config: Any = getattr(probe, "pretrained_cfg", {})
    prefix = config.get("classifier", "head")
    prefixes = (prefix,) if isinstance(prefix, str) else tuple(prefix)
    trunk = {k: v for k, v in state.items() if not k.startswith(prefixes)}
    weights.fit(probe, trunk, optional="\0", source=path.name)
    return probe


def _preprocessing(timm: Any, module: nn.Module) -> Preprocessing:
    config = timm.data.resolve_model_data_config(module)
    crop = int(config["input_size"][-1])
    resize = int(crop / config["crop_pct"])  # timm truncates
    return Preprocessing(resize, crop, tuple(config["mean"]), tuple(config["std"]), config["interpolation"])


def _timm() -> Any:
    try:
        import timm  # noqa: PLC0415
    except ImportError as error:
        raise FailedPrecondition("timm/… backbones need the extra: pip install 'likewise[timm]'") from error
    import timm.data  # noqa: PLC0415

    return timm
