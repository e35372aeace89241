"""Every torchvision family loads from a local file and gives its global-pooled feature."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from likewise_server.backbones import registry, torchvision_models, weights
from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import BackboneRef
from likewise_server.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from support.pictures import photographs

CPU = torch.device("cpu")


def without(*classifier: str) -> Callable[[nn.Module, Tensor], Tensor]:
    """The reference of networks that pool just before their classifier: take the classifier away."""

    def run(module: nn.Module, x: Tensor) -> Tensor:
        for name in classifier:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, nn.Identity())
        out: Tensor = module(x)
        return out.flatten(1)

    return run


def mean_of_features(module: nn.Module, x: Tensor) -> Tensor:
    """The reference of networks whose classifier reads positions: average the last feature map."""
    out: Tensor = module.features(x).mean((2, 3))  # type: ignore[operator]
    return out


# One member of each family: how its pooled feature is got from torchvision alone, and its dimension.
FAMILIES: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], int]] = {
    "alexnet": (mean_of_features, 256),
    "convnext_tiny": (without("classifier.2"), 768),
    "densenet121": (without("classifier"), 1024),
    "efficientnet_b0": (without("classifier"), 1280),
    "googlenet": (without("fc"), 1024),
    "inception_v3": (without("fc"), 2048),
    "maxvit_t": (without("classifier.3", "classifier.4", "classifier.5"), 512),
    "mnasnet0_5": (without("classifier"), 1280),
    "mobilenet_v3_small": (without("classifier"), 576),
    "regnet_x_400mf": (without("fc"), 400),
    "resnet18": (without("fc"), 512),
    "shufflenet_v2_x0_5": (without("fc"), 1024),
    "squeezenet1_1": (mean_of_features, 512),
    "swin_t": (without("head"), 768),
    "vgg11_bn": (mean_of_features, 512),
    "vit_b_32": (without("heads"), 768),
}


def random_state(name: str, folder: Path, *, drop: str = "") -> nn.Module:
    """Write a seeded state dict as torchvision's own, and return the module it is of."""
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name in ("googlenet", "inception_v3"):
        options["transform_input"] = True
    module: nn.Module = models.get_model(name, weights=None, **options)
    state = {k: v for k, v in module.state_dict().items() if not (drop and k.startswith(drop))}
    torch.save(state, folder / f"{name}.pth")
    return module.eval()


def load(name: str, folder: Path) -> Backbone:
    return registry.load(name, weights_dir=folder, device=CPU, precision="fp32")


def pixels(backbone: Backbone, count: int = 2) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    crop = backbone.preprocessing.crop
    chosen = list(photographs().values())[:count]
    return np.stack([np.asarray(image.resize((crop, crop))) for image in chosen])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_default_feature_is_the_global_pooled_one(name: str, tmp_path: Path) -> None:
    reference, dim = FAMILIES[name]
    heavy = {"alexnet": "classifier", "vgg11_bn": "classifier"}  # half a gigabyte that no feature needs
    module = random_state(name, tmp_path, drop=heavy.get(name, ""))
    backbone = load(name, tmp_path)
    images = pixels(backbone)
    got = backbone.forward(images, backbone.ref())
    how = backbone.preprocessing
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(how.mean)[:, None, None]) / torch.tensor(how.std)[:, None, None]
    with torch.inference_mode():
        expected = reference(module, x).numpy()
    assert got.shape == expected.shape == (2, dim)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-4 * float(np.abs(expected).max()))
    assert backbone.learn_space(backbone.ref()).dim == dim


def test_every_architecture_of_torchvision_has_a_family() -> None:
    assert set(torchvision_models.names()) == set(models.list_models(module=models))
    assert {*FAMILIES} <= {*registry.known_names()}


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("resnet")
    random_state("resnet18", folder)
    return load("resnet18", folder)


def test_layers_and_poolings_choose_other_features(resnet: Backbone) -> None:
    images = pixels(resnet)

    def feature(layer: str, pooling: str = "") -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return resnet.forward(images, BackboneRef("resnet18", layer, pooling))

    assert feature("layer3").shape == (2, 256)
    assert feature("layer2.1.bn1").shape == (2, 128)
    assert feature("logits").shape == (2, 1000)
    both = feature("layer2+layer3")
    np.testing.assert_array_equal(both, np.concatenate([feature("layer2"), feature("layer3")], axis=1))
    np.testing.assert_array_equal(feature("layer4"), feature(""))
    assert (feature("", "max") >= feature("", "gem") - 1e-4).all()
    assert (feature("", "gem") >= feature("", "avg") - 1e-4).all()


def test_a_layer_is_what_its_module_gave_not_what_came_after(resnet: Backbone) -> None:
    images = pixels(resnet)
    how = resnet.preprocessing
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(how.mean)[:, None, None]) / torch.tensor(how.std)[:, None, None]
    module = resnet.network.module
    with torch.inference_mode():
        expected = module.bn1(module.conv1(x)).mean((2, 3)).numpy()  # type: ignore[operator]
    assert expected.min() < 0, "the ReLU that follows works in place"
    got = resnet.forward(images, resnet.ref("bn1"))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_each_feature_is_a_space_of_its_own(resnet: Backbone) -> None:
    refs = [("", ""), ("", "max"), ("layer3", ""), ("layer3", "max"), ("logits", "")]
    assert len({resnet.fingerprint(resnet.ref(*ref)) for ref in refs}) == len(refs)
    assert resnet.fingerprint(resnet.ref("", "avg")) == resnet.fingerprint(resnet.ref())


@pytest.mark.parametrize(
    ("layer", "pooling", "hint"),
    [
        ("layer9", "", "there are conv1"),
        ("layer1.0.conv1", "", "folded with the batch norm"),
        ("layer4", "cls", "needs a layer with tokens"),
        ("", "cls", "tokens"),
    ],
)
def test_a_wrong_layer_or_pooling_says_what_there_is(resnet: Backbone, layer: str, pooling: str, hint: str) -> None:
    with pytest.raises(InvalidArgument, match=hint):
        resnet.forward(pixels(resnet), BackboneRef("resnet18", layer, pooling))


def test_tokens_are_pooled_by_class_token_or_over_patches(tmp_path: Path) -> None:
    random_state("vit_b_32", tmp_path)
    vit = load("vit_b_32", tmp_path)
    images = pixels(vit)
    cls = vit.forward(images, BackboneRef("vit_b_32", "encoder", "cls"))
    np.testing.assert_array_equal(cls, vit.forward(images, vit.ref()))
    patches = vit.forward(images, BackboneRef("vit_b_32", "", "avg"))
    assert patches.shape == cls.shape
    assert not np.allclose(patches, cls)


def test_a_file_without_classifier_gives_the_same_space(tmp_path: Path) -> None:
    whole, bare = tmp_path / "whole", tmp_path / "bare"
    for folder, drop in ((whole, ""), (bare, "classifier")):
        folder.mkdir()
        random_state("mobilenet_v3_small", folder, drop=drop)
    complete, headless = load("mobilenet_v3_small", whole), load("mobilenet_v3_small", bare)
    assert complete.fingerprint(complete.ref()) == headless.fingerprint(headless.ref())
    with pytest.raises(FailedPrecondition, match="no classifier"):
        headless.forward(pixels(headless), headless.ref("logits"))


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    random_state("resnet18", tmp_path).state_dict()
    (tmp_path / "resnet18.pth").rename(tmp_path / "resnet50.pth")
    with pytest.raises(FailedPrecondition, match=r"resnet50\.pth does not fit.*missing"):
        load("resnet50", tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "resnet18.pth")
    with pytest.raises(FailedPrecondition, match="not a readable state dict"):
        load("resnet18", tmp_path)


def test_published_densenet_files_have_older_names(tmp_path: Path) -> None:
    state = random_state("densenet121", tmp_path).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value for key, value in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "densenet121.pth")
    load("densenet121", tmp_path)


def test_safetensors_and_a_note_of_the_preprocessing_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415

    state = random_state("squeezenet1_1", tmp_path).state_dict()
    (tmp_path / "squeezenet1_1.pth").unlink()
    save_file(state, tmp_path / "squeezenet1_1.safetensors")
    (tmp_path / "squeezenet1_1.json").write_text('{"resize": 160, "crop": 128, "interpolation": "bicubic"}')
    backbone = load("squeezenet1_1", tmp_path)
    assert (backbone.preprocessing.resize, backbone.preprocessing.crop) == (160, 128)
    (tmp_path / "squeezenet1_1.json").write_text('{"size": 160}')
    with pytest.raises(FailedPrecondition, match="resize"):
        load("squeezenet1_1", tmp_path)


def test_published_weights_are_recognised_by_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enum = models.get_model_weights("mobilenet_v2")
    random_state("mobilenet_v2", tmp_path)
    assert load("mobilenet_v2", tmp_path).preprocessing.resize == 256  # the original recipe
    published = enum.IMAGENET1K_V2.url.rpartition("-")[2].removesuffix(".pth")
    monkeypatch.setattr(weights, "file_hash", lambda _path: published + "0" * 56)
    assert load("mobilenet_v2", tmp_path).preprocessing.resize == 232  # that of the second version


def test_torchvisions_cache_serves_where_there_is_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    random_state("squeezenet1_1", tmp_path)
    file_name = models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2]
    (tmp_path / "squeezenet1_1.pth").rename(checkpoints / file_name)
    assert registry.load("squeezenet1_1", weights_dir=None, device=CPU, precision="fp32").network.source.startswith(
        "torchvision"
    )


def test_no_file_and_no_network_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"LIKEWISE_WEIGHTS_DIR/squeezenet1_1\.pth"):
        registry.load("squeezenet1_1", weights_dir=tmp_path, device=CPU, precision="fp32")


@pytest.mark.parametrize("name", ["resnet19", "timm/no_such_model", ""])
def test_an_unknown_name_is_not_found(name: str) -> None:
    with pytest.raises(NotFound, match="unknown backbone"):
        registry.load(name, weights_dir=None, device=CPU, precision="fp32")


def test_timm_models_load_from_local_files_in_both_forms(tmp_path: Path) -> None:
    import timm  # noqa: PLC0415
    from timm.utils.model import reparameterize_model  # noqa: PLC0415

    torch.manual_seed(0)
    trained = timm.create_model("mobileone_s0").eval()
    vectors = []
    for form in (trained, reparameterize_model(trained)):
        torch.save(form.state_dict(), tmp_path / "mobileone_s0.pth")
        backbone = load("timm/mobileone_s0", tmp_path)
        vectors.append(backbone.forward(pixels(backbone), backbone.ref()))
    assert vectors[0].shape == (2, 1024)
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=1e-2, atol=1e-3)


def test_frozen_is_frozen(resnet: Backbone) -> None:
    before = resnet.current_hash()
    for _ in range(3):
        resnet.forward(pixels(resnet), resnet.ref())
        resnet.forward(pixels(resnet), resnet.ref("layer3", "gem"))
    assert resnet.current_hash() == before
    assert not any(parameter.requires_grad for parameter in resnet.network.module.parameters())


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(InvalidArgument, match="--device"):
        registry.choose_devices(device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu(tmp_path: Path) -> None:
    random_state("resnet18", tmp_path)
    cpu = load("resnet18", tmp_path)
    cuda = registry.load("resnet18", weights_dir=tmp_path, device=registry.choose_devices("auto")[0], precision="fp32")
    images = pixels(cpu)
    np.testing.assert_allclose(cuda.forward(images, cuda.ref()), cpu.forward(images, cpu.ref()), rtol=1e-2, atol=1e-3)
