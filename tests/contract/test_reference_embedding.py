"""The server's vectors equal torchvision's own transform and network, fp32, eager, on real photographs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import v2

from likewise import Client
from support.pictures import SHARED, photograph_jpegs
from support.server import start_server

Float32 = NDArray[np.float32]
NAMES = ("resnet18", "mobilenet_v2", "vgg16", "vit_b_16")


def network(name: str) -> nn.Module:
    """A seeded network. Random weights shrink or blow up signals, so batch norms get statistics of real pictures."""
    torch.manual_seed(0)
    module: nn.Module = models.get_model(name, weights=None)
    module.train()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    with torch.no_grad():
        if name in ("resnet18", "mobilenet_v2"):
            module(torch.stack([transform(name)(picture) for picture in pictures()[:8]]))
    return module.eval()


def transform(name: str) -> Callable[[Image.Image], Tensor]:
    preset: Callable[[Image.Image], Tensor] = next(iter(models.get_model_weights(name))).transforms()
    return preset


def pictures() -> list[Image.Image]:
    return [Image.open(io.BytesIO(data)) for data in photograph_jpegs()]


def reference(name: str, module: nn.Module) -> Float32:
    """Global-pooled features by torchvision alone, one picture at a time."""
    x = torch.stack([transform(name)(picture) for picture in pictures()])
    with torch.inference_mode():
        if name == "vgg16":
            out = torch.cat([module.features(one[None]).mean((2, 3)) for one in x])  # type: ignore[operator]
        else:
            setattr(module, {"resnet18": "fc", "vit_b_16": "heads"}.get(name, "classifier"), nn.Identity())
            out = torch.cat([module(one[None]) for one in x])
    result: Float32 = out.numpy()
    return result


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, dict[str, Float32]]]:
    folder = tmp_path_factory.mktemp("reference")
    expected: dict[str, Float32] = {}
    for name in NAMES:
        module = network(name)
        state = module.state_dict()
        if name == "vgg16":  # half a gigabyte of classifier that no feature needs
            state = {key: value for key, value in state.items() if key.startswith("features")}
        torch.save(state, folder / f"{name}.pth")
        expected[name] = reference(name, module)
    options = [part for name in NAMES for part in ("--backbone", name)]
    options += ["--precision", "fp32", "--weights-dir", str(folder)]
    with start_server(folder / "data", *options) as server, Client(server.address) as client:
        yield client, expected
    for name in NAMES:
        (folder / f"{name}.pth").unlink()


def agreement(got: Float32, expected: Float32) -> tuple[float, float]:
    """The least cosine, and the least cosine of what tells the pictures apart (their mean taken away).

    Vectors of a network with random weights all point nearly the same way, so the first alone proves little.
    """

    def least(a: Float32, b: Float32) -> float:
        return float(np.min((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))

    mean = expected.mean(axis=0)
    return least(got, expected), least(got - mean, expected - mean)


@pytest.mark.parametrize("name", NAMES)
def test_full_batches_equal_the_reference(served: tuple[Client, dict[str, Float32]], name: str) -> None:
    client, expected = served
    result = client.embed(photograph_jpegs(), backbone=name)
    assert not result.errors
    plain, centred = agreement(result.vectors, expected[name])
    assert plain >= 0.9999
    assert centred >= 0.999  # some pixels are one level off: the resize is torch's


@pytest.mark.parametrize("name", NAMES)
def test_single_images_equal_the_reference(served: tuple[Client, dict[str, Float32]], name: str) -> None:
    client, expected = served
    images = photograph_jpegs()
    got = np.concatenate([client.embed([image], backbone=name).vectors for image in images[:4]])
    plain, centred = agreement(np.concatenate([got, expected[name][4:]]), expected[name])
    assert plain >= 0.9999
    assert centred >= 0.999


@pytest.mark.shared
def test_shared_weights_give_the_golden_features(tmp_path: Path) -> None:
    golden = json.loads((SHARED / "weights/golden.json").read_text())
    names = ("squeezenet1_1", "mobilenet_v2", "timm/mobileone_s0")
    options = [part for name in names for part in ("--backbone", name)]
    options += ["--precision", "fp32", "--weights-dir", str(SHARED / "weights")]
    files = [SHARED / item["file"] for item in golden["items"]]
    with start_server(tmp_path / "data", *options) as server, Client(server.address) as client:
        served = {name: client.embed(files, backbone=name).vectors for name in names}
    for name in names:
        # Golden is Pillow's resize, which the server has too; torch's is a level off here and there.
        vectors = by_pillow(name, files)
        for item, vector in zip(golden["items"], vectors, strict=True):
            expected = item["features"][name.removeprefix("timm/")]
            assert len(vector) == expected["dim"]
            assert vector[:8] == pytest.approx(expected["first8"], abs=2e-3)
            assert np.linalg.norm(vector) == pytest.approx(expected["l2"], rel=1e-4)
            assert vector.sum() == pytest.approx(expected["sum"], rel=1e-4)
        assert agreement(served[name], vectors)[0] >= 0.9999


def by_pillow(name: str, files: list[Path]) -> Float32:
    """The features of a served network on pixels that are the preset's to the last bit."""
    from likewise_server.backbones import registry  # noqa: PLC0415  # in-process: pixels have no RPC
    from likewise_server.images import ImageLimits, decode, preprocess  # noqa: PLC0415

    backbone = registry.load(name, weights_dir=SHARED / "weights", device=torch.device("cpu"), precision="fp32")
    pixels = [preprocess(decode(path.read_bytes(), ImageLimits()), backbone.preprocessing) for path in files]
    return backbone.forward(np.stack(pixels), backbone.ref())


@pytest.mark.shared
def test_automatic_precision_stays_close_to_fp32(tmp_path: Path) -> None:
    found: dict[str, tuple[Float32, Float32]] = {}
    images = photograph_jpegs()
    for precision in ("fp32", "auto"):
        options = ["--backbone", "likewise-tiny", "--backbone", "mobilenet_v2", "--precision", precision]
        options += ["--weights-dir", str(SHARED / "weights")]
        with start_server(tmp_path / precision, *options) as server, Client(server.address) as client:
            tiny, mobile = (client.embed(images, name).vectors for name in ("likewise-tiny", "mobilenet_v2"))
            found[precision] = (tiny, mobile)
    for exact, chosen in zip(found["fp32"], found["auto"], strict=True):
        assert agreement(chosen, exact)[0] >= 0.998  # other pictures than those it was chosen by


def test_preprocessing_equals_the_preset_pixel_for_pixel() -> None:
    from likewise_server.images import Preprocessing, preprocess  # noqa: PLC0415  # in-process: pixels have no RPC

    for interpolation, mode in (("bilinear", v2.InterpolationMode.BILINEAR), ("bicubic", v2.InterpolationMode.BICUBIC)):
        for resize, crop in ((256, 224), (232, 224), (342, 299), (224, 224)):
            preset = v2.Compose([v2.Resize(resize, interpolation=mode), v2.CenterCrop(crop)])
            for picture in pictures():
                rgb = picture.convert("RGB")
                ours = preprocess(rgb, Preprocessing(resize, crop, interpolation=interpolation))
                assert np.array_equal(ours, np.asarray(preset(rgb)))


def test_the_quick_way_equals_the_preset_within_two_levels() -> None:
    from likewise_server.images import ImageLimits, Preprocessing, pixels_of  # noqa: PLC0415

    for interpolation, mode in (("bilinear", v2.InterpolationMode.BILINEAR), ("bicubic", v2.InterpolationMode.BICUBIC)):
        preset = v2.Compose([v2.Resize(256, interpolation=mode), v2.CenterCrop(224)])
        how = Preprocessing(256, 224, interpolation=interpolation)
        for data, picture in zip(photograph_jpegs(), pictures(), strict=True):
            ours = pixels_of(data, how, ImageLimits()).astype(int)
            difference = np.abs(ours - np.asarray(preset(picture.convert("RGB"))))
            assert difference.max() <= 2
            assert difference.mean() < 0.01
