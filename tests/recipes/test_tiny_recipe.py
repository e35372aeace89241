"""The distillation recipe on a handful of made pictures: no shared material, no teacher, seconds."""

import hashlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from likewise_server.errors import InvalidArgument
from support.pictures import SHARED, needs_shared

ROOT = Path(__file__).parents[2]
Distill = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture
def distill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distill:
    """Runs the recipe over 24 random views in the run folder named, and returns the weights it wrote."""
    monkeypatch.syspath_prepend(str(ROOT))
    main = importlib.import_module("recipes.tiny.distill").main
    rng = np.random.default_rng(0)
    cache = tmp_path / "cache"
    cache.mkdir()
    for chunk in range(2):
        views = rng.integers(0, 256, (12, 128, 128, 3), dtype=np.uint8)
        np.save(cache / f"views-{chunk:05d}.npy", views)
        features = rng.random((12, 1280 + 1024)).astype(np.float16)
        np.save(cache / f"features-{chunk:05d}.npy", features)

    def call(run: str, *options: str) -> dict[str, torch.Tensor]:
        fixed = ["--cache", str(cache), "--run", str(tmp_path / run), "--batch", "6", "--threads", "1"]
        threads = torch.get_num_threads()
        try:
            main([*fixed, *options])
        finally:
            torch.set_num_threads(threads)
        made = tmp_path / run / "likewise-tiny.safetensors"
        return load_file(made) if made.exists() else {}

    return call


def test_a_resumed_run_gives_the_weights_of_an_unbroken_one(
    distill: Distill, capsys: pytest.CaptureFixture[str]
) -> None:
    unbroken = distill("unbroken", "--steps", "4")
    halfway = distill("broken", "--steps", "4", "--stop-at", "2")
    resumed = distill("broken", "--steps", "4")
    assert "goes on at step 2" in capsys.readouterr().out
    assert unbroken.keys() == resumed.keys()
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    assert not halfway, "weights are written at the end"
    assert any(not torch.equal(distill("shorter", "--steps", "2")[name], resumed[name]) for name in resumed)


def test_a_checkpoint_cut_off_while_it_was_written_does_not_count(distill: Distill, tmp_path: Path) -> None:
    whole = distill("run", "--steps", "2")
    (tmp_path / "run/checkpoint.pt.part").write_bytes(b"half a checkpoint")
    again = distill("run", "--steps", "2")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_training_without_prepared_views_says_what_to_run(distill: Distill, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"recipes\.tiny\.prepare"):
        distill("run", "--steps", "2", "--cache", str(tmp_path / "nowhere"))


def test_a_run_goes_on_with_its_own_options_only(distill: Distill) -> None:
    distill("run", "--steps", "4", "--stop-at", "2")
    with pytest.raises(InvalidArgument, match=r"relation was 0\.5, is 0\.1"):
        distill("run", "--steps", "4", "--relation", "0.1")


@needs_shared
def test_the_whole_recipe_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    threads = torch.get_num_threads()
    try:
        importlib.import_module("recipes.tiny.__main__").main(
            ["--shared", str(SHARED), "--work", str(tmp_path), "--quick"]
        )
    finally:
        torch.set_num_threads(threads)
    figures = json.loads((tmp_path / "run/figures.json").read_text())["figures"]
    assert figures.keys() == {"student"}
    assert figures["student"].keys() == {"signdigits10"}
    note = json.loads((tmp_path / "run/likewise-tiny.json").read_text())
    assert note["origin"]["steps"] == 4
    made = tmp_path / "run/likewise-tiny.safetensors"
    assert hashlib.sha256(made.read_bytes()).hexdigest() == note["sha256"]
    state = load_file(made)
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float16}
    assert made.stat().st_size <= 4 * 2**20


def test_the_table_in_the_docs_is_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    package = importlib.import_module("recipes.tiny.package")
    card = json.loads(package.PACKAGED.with_suffix(".json").read_text())
    assert package.table(card) in package.DOCS.read_text()
    assert package.summary(card) in package.DOCS.read_text()
