"""Compiled networks: the vectors of eager mode for any number of images, and files that are whole or not used."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from likewise_server.backbones import artifacts, compiling, registry
from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.compiled import CompiledCpu, CompiledError
from likewise_server.images import ImageLimits, guard, pixels_of
from support.compiling import Compiled, needs_compiler
from support.pictures import photograph_jpegs

MEASURED = {"cosine": 1.0, "best_batch": 8, "images_per_s": {"1": 10.0}, "seconds": 2.0}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return registry.load("likewise-tiny", weights_dir=None, device=CPU, precision="fp32")


@pytest.fixture(scope="module")
def pixels(tiny: Backbone) -> NDArray[np.uint8]:
    """33 crops, (33, crop, crop, 3): photographs, and photographs turned over."""
    limits = ImageLimits()
    guard(limits)
    upright = [pixels_of(data, tiny.preprocessing, limits) for data in photograph_jpegs()]
    turned = [np.flip(image, (0, 1)) for image in upright]
    return np.ascontiguousarray([*upright, *turned, upright[0].transpose(1, 0, 2)])


@pytest.fixture(scope="module")
def forward(compiled: Compiled) -> CompiledCpu:
    return CompiledCpu(compiled.code)


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return found


@needs_compiler
@pytest.mark.parametrize("images", [1, 2, 3, 8, 33])
def test_the_vectors_are_those_of_eager_mode_for_any_number_of_images(
    tiny: Backbone, pixels: NDArray[np.uint8], forward: CompiledCpu, images: int
) -> None:
    eager = tiny.forward(pixels, tiny.ref())
    got = forward(torch.from_numpy(pixels[:images])).numpy()
    assert got.shape == (images, 512)
    assert got.dtype == np.float32
    assert cosines(got, eager[:images]).min() > 0.9999
    assert cosines(got, np.roll(eager, 1, axis=0)[:images]).max() < 0.999, "of other pictures they differ"
    mean = eager.mean(axis=0)
    assert cosines(got - mean, eager[:images] - mean).min() > 0.9999


@needs_compiler
def test_an_answer_is_not_overwritten_by_the_next(pixels: NDArray[np.uint8], forward: CompiledCpu) -> None:
    first = forward(torch.from_numpy(pixels[:4]))
    kept = first.clone()
    forward(torch.from_numpy(pixels[4:8]))
    assert torch.equal(first, kept)
    assert torch.equal(forward(torch.from_numpy(pixels[:4])), kept)


@needs_compiler
def test_pixels_of_another_type_or_layout_are_refused(pixels: NDArray[np.uint8], forward: CompiledCpu) -> None:
    with pytest.raises(CompiledError, match="contiguous uint8"):
        forward(torch.from_numpy(pixels[:2]).float())
    with pytest.raises(CompiledError, match="contiguous uint8"):
        forward(torch.from_numpy(pixels[:2]).transpose(1, 2))


@needs_compiler
def test_two_copies_of_one_library_do_not_disturb_each_other(
    compiled: Compiled, pixels: NDArray[np.uint8], forward: CompiledCpu
) -> None:
    expected = forward(torch.from_numpy(pixels[:3]))
    other = CompiledCpu(compiled.code)
    assert torch.equal(other(torch.from_numpy(pixels[:3])), expected)
    other.close()
    assert torch.equal(forward(torch.from_numpy(pixels[:3])), expected)


@needs_compiler
def test_what_is_kept_says_how_good_and_how_quick_it_is(compiled: Compiled, tiny: Backbone) -> None:
    cores, copies = os.cpu_count() or 1, len(registry.choose_devices("cpu"))
    assert compiled.key == artifacts.key_of(tiny, tiny.ref(), cores // copies)
    assert artifacts.key_of(tiny, tiny.ref(), cores // copies + 1) != compiled.key, "other code for other threads"
    found = artifacts.find(compiled.folder, compiled.key)
    assert found is not None
    code, facts = found
    assert code == compiled.code
    assert facts.cosine >= 0.999
    assert set(facts.images_per_s) == {"1", "2"}, "up to max_batch"
    assert facts.best_batch in (1, 2)
    assert min(facts.images_per_s.values()) > 0


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "code").write_bytes(b"no library")
    with pytest.raises(CompiledError, match="cannot load code"):
        compiling.load(tmp_path / "code", CPU)


def kept(folder: Path, key: str = "key", content: bytes = b"machine code" * 100) -> Path:
    """Keep something under a key; return its folder."""
    code = folder.parent / f"built {key}"
    code.write_bytes(content)
    artifacts.keep(folder, key, code, MEASURED)
    return folder / key


def test_what_was_kept_is_found_with_its_facts(tmp_path: Path) -> None:
    home = kept(tmp_path / "compiled")
    found = artifacts.find(tmp_path / "compiled", "key")
    assert found is not None
    code, facts = found
    assert code.read_bytes() == b"machine code" * 100
    assert (facts.cosine, facts.best_batch, facts.images_per_s) == (1.0, 8, {"1": 10.0})
    assert home.stat().st_mode & 0o077 == 0, "nobody else may put code there"
    assert artifacts.find(tmp_path / "compiled", "other") is None
    assert artifacts.find(tmp_path / "nowhere", "key") is None
    assert kept(tmp_path / "compiled", content=b"newer") == home
    assert (home / "code").read_bytes() == b"newer"
    assert sorted(path.name for path in (tmp_path / "compiled").iterdir()) == ["key"], "nothing is left aside"


def flip_a_bit(home: Path) -> None:
    content = bytearray((home / "code").read_bytes())
    content[500] ^= 1
    (home / "code").write_bytes(content)


def cut(home: Path) -> None:
    os.truncate(home / "code", 600)


def facts(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(home: Path) -> None:
        found = json.loads((home / "facts.json").read_text())
        change(found)
        (home / "facts.json").write_text(json.dumps(found))

    return damage


def write(content: bytes) -> Callable[[Path], object]:
    return lambda home: (home / "facts.json").write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip_a_bit,
    "cut off": cut,
    "empty facts": write(b""),
    "half of the facts": write(b"{"),
    "no text": write(b"\xff\xfe\x00"),
    "a list": write(b"[1, 2]"),
    "null": write(b"null"),
    "no facts": write(b"{}"),
    "no hash": facts(lambda found: found.pop("sha256")),
    "another hash": facts(lambda found: found.update(sha256="0" * 64)),
    "an unknown fact": facts(lambda found: found.update(what="is this")),
    "a batch of nothing": facts(lambda found: found.update(best_batch=0)),
    "no batch": facts(lambda found: found.update(best_batch=None)),
    "a batch in words": facts(lambda found: found.update(best_batch="many")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_not_whole_is_thrown_away(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = tmp_path / "compiled"
    home, other = kept(folder), kept(folder, "other")
    damage(home)
    assert artifacts.find(folder, "key") is None
    assert not home.exists()
    assert artifacts.find(folder, "other") is not None
    assert other.exists()


def test_a_folder_that_was_never_finished_is_not_found(tmp_path: Path) -> None:
    home = kept(tmp_path / "compiled")
    (home / "facts.json").unlink()
    assert artifacts.find(tmp_path / "compiled", "key") is None
    kept(tmp_path / "compiled")
    assert artifacts.find(tmp_path / "compiled", "key") is not None


def test_what_has_not_been_used_for_longest_is_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    for number in range(artifacts.KEPT):
        os.utime(kept(folder, f"k{number}"), (1000 + number, 1000 + number))
    assert artifacts.find(folder, "k0") is not None  # used just now
    kept(folder, "new")
    left = {path.name for path in folder.iterdir()}
    assert left == {"new", *(f"k{number}" for number in range(artifacts.KEPT) if number != 1)}


def test_the_key_depends_on_the_weights_the_feature_and_the_precision(tiny: Backbone) -> None:
    rounded = registry.load("likewise-tiny", weights_dir=None, device=CPU, precision="bf16")
    keys = [
        artifacts.key_of(tiny, tiny.ref(), 1),
        artifacts.key_of(tiny, tiny.ref("stages.1"), 1),
        artifacts.key_of(tiny, tiny.ref(pooling="max"), 1),
        artifacts.key_of(rounded, rounded.ref(), 1),
    ]
    assert len(set(keys)) == 4
    again = registry.load("likewise-tiny", weights_dir=None, device=CPU, precision="fp32")
    assert artifacts.key_of(again, again.ref(), 1) == keys[0]
    with torch.no_grad():
        next(iter(again.network.module.parameters())).add_(1)
    changed = Backbone("likewise-tiny", again.network, CPU, "fp32")
    assert artifacts.key_of(changed, changed.ref(), 1) != keys[0]


def test_code_that_is_slower_than_eager_mode_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = registry.load("likewise-tiny", weights_dir=None, device=CPU, precision="fp32")
    feature = backbone.replicas[0].feature(backbone.ref())

    def slow(pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(0.5)
        vectors: torch.Tensor = feature(pixels)
        return vectors

    monkeypatch.setattr(compiling, "_compiled", lambda *_: tmp_path / "code")
    monkeypatch.setattr(compiling, "load", lambda *_: slow)
    with pytest.raises(RuntimeError, match="slower than eager"):
        compiling.compile_feature(backbone, backbone.ref(), tmp_path / "kept", 4, torch.get_num_threads())
    assert not (tmp_path / "kept").exists()
