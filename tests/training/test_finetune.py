"""Fine-tuning: what may change changes, nothing else does, and the result is a backbone that a server serves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from likewise import AsyncClient
from likewise_server.backbones import registry, tiny, tiny_loader
from likewise_server.errors import FailedPrecondition, NotFound
from likewise_server.images import ImageLimits, pixels_of
from likewise_training.student import Student
from support.backbones import OTHER, write_weights
from support.pictures import digit_images
from support.server import serving
from support.training import Run, write_digits

CPU = torch.device("cpu")
LAST = ("features.7.", "features.8.")
"""likewise-tiny's last two blocks: a residual one and the linear convolution."""


def changed(report_weights: str) -> set[str]:
    before, after = tiny_loader.load_network().module.state_dict(), load_file(report_weights)
    assert before.keys() == after.keys()
    return {key for key in before if not torch.equal(before[key], after[key])}


def statistics(keys: set[str]) -> set[str]:
    return {key for key in keys if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}


def test_only_the_last_blocks_change_and_frozen_norms_keep_their_statistics(finetune: Run, digits: Path) -> None:
    found = changed(finetune(digits, blocks=2, learning_rate=1e-2).weights)
    assert found
    assert all(key.startswith(LAST) for key in found)
    assert {key.split(".")[1] for key in found} == {"7", "8"}
    assert not statistics(found)


def test_norms_that_are_not_frozen_follow_the_pictures_in_those_blocks(finetune: Run, digits: Path) -> None:
    found = changed(finetune(digits, blocks=2, freeze_norms=False).weights)
    assert all(key.startswith(LAST) for key in found)
    assert any(key.endswith("running_mean") for key in statistics(found))


def test_the_backbones_own_features_can_hold_it_back(finetune: Run, digits: Path, tmp_path: Path) -> None:
    pixels = np.stack([pixels_of(each, tiny.PREPROCESSING, ImageLimits()) for each in digit_images(4)[0]])
    shown = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.45) / 0.225
    with torch.inference_mode():
        before = tiny_loader.load_network().module.eval()(shown)

    def kept(name: str, **settings: float) -> float:
        report = finetune(digits, name=name, run=tmp_path / name, steps=30, learning_rate=3e-3, **settings)
        network = tiny.build().eval()
        network.load_state_dict(load_file(report.weights))
        with torch.inference_mode():
            return float(torch.nn.functional.cosine_similarity(network(shown), before).mean())

    held, free = kept("held", feature=10.0), kept("free")
    assert 1 - held < 0.9 * (1 - free)


async def test_a_server_serves_what_was_made(finetune: Run, tmp_path: Path) -> None:
    data = write_digits(tmp_path / "seen", 10, 3)
    report = finetune(data, steps=6, test=str(data), augment="strong", flip=False)
    assert report.test.keys() == {"before", "after"}
    served = {"backbone": ["mine", "likewise-tiny"], "weights_dir": tmp_path / "weights"}
    images, labels = digit_images(12, 4)
    async with (
        serving(tmp_path / "data", **served) as running,
        AsyncClient(f"127.0.0.1:{running.port}") as client,
    ):
        made, bundled = await client.embed(images[:4]), await client.embed(images[:4], backbone="likewise-tiny")
        taught = await client.create_collection("digits")
        await taught.add(images, labels=labels, ids=[str(n) for n in range(len(images))])
        head = await taught.train_head("which", kind="ncm")
    assert made.fingerprint != bundled.fingerprint
    assert made.vectors.shape == (4, 512)
    assert not np.allclose(made.vectors, bundled.vectors)
    assert head.metrics.accuracy is not None
    assert head.metrics.accuracy > 0.5
    # What is served are the weights in the file, and the report names their space.
    loaded = registry.load("mine", weights_dir=tmp_path / "weights", device=CPU, precision="fp32")
    assert loaded.fingerprint(loaded.ref()) == report.fingerprint == made.fingerprint
    network, state = registry.network("mine", tmp_path / "weights"), load_file(report.weights)
    assert all(torch.equal(value, state[key]) for key, value in network.module.state_dict().items())


def test_it_can_be_fine_tuned_again_and_so_can_torchvisions(finetune: Run, digits: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights")
    first = finetune(digits, backbone=OTHER, steps=1, name="first", run=tmp_path / "first")
    second = finetune(digits, backbone="first", steps=1, name="second", run=tmp_path / "second")
    assert json.loads(Path(second.weights).with_suffix(".json").read_text())["architecture"] == OTHER
    assert len({first.fingerprint, second.fingerprint}) == 2
    assert not any(key.startswith("fc.") for key in load_file(first.weights)), "the classifier saw other features"
    assert registry.load("second", weights_dir=weights, device=CPU, precision="fp32").name == "second"


def test_weights_and_their_note_belong_together(finetune: Run, digits: Path, tmp_path: Path) -> None:
    finetune(digits, steps=1)
    weights = tmp_path / "weights"
    note = weights / "mine.json"
    whole = note.read_text()
    note.write_text(whole.replace("likewise-tiny", "resnet50", 1))
    with pytest.raises(FailedPrecondition, match="does not fit this architecture"):
        registry.network("mine", weights)
    note.write_text(json.dumps(json.loads(whole) | {"sha256": "0" * 64}))
    with pytest.raises(FailedPrecondition, match="copy both again"):
        registry.network("mine", weights)
    note.unlink()
    with pytest.raises(NotFound, match="one of your own with its weights"):
        registry.network("mine", weights)


def test_a_name_that_begins_like_the_bundled_one_is_another() -> None:
    with pytest.raises(NotFound, match="likewise-tiny-of-mine"):
        registry.network("likewise-tiny-of-mine", None)


@pytest.mark.parametrize(
    ("architecture", "last"),
    [
        ("resnet18", "layer4.1"),
        ("vit_b_16", "encoder.ln"),
        ("mobilenet_v2", "features.18"),
        ("densenet121", "features.norm5"),
    ],
)
def test_blocks_are_what_a_person_would_call_so(architecture: str, last: str) -> None:
    network = registry.untrained(architecture)
    student = Student(network)
    student.keep_still(1)
    trained = [name for name, parameter in network.module.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(name.startswith(f"{last}.") for name in trained)
