"""Small pictures to train on, and both commands with settings that take seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from likewise_training import commands
from likewise_training.commands import Report
from likewise_training.settings import Distill, FineTune
from support.pictures import photograph_jpegs
from support.training import Run, write_digits


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, and as they were afterwards: threads and the generator are the process's."""
    threads, drawn = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.random.set_rng_state(drawn)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen photographs without labels."""
    folder = tmp_path_factory.mktemp("photos")
    for number, data in enumerate(photograph_jpegs(160)):
        (folder / f"{number:02}.jpg").write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of each of four digits, in class folders."""
    return write_digits(tmp_path_factory.mktemp("digits"), 8, 4)


QUICK: dict[str, Any] = {
    "steps": 4,
    "batch": 8,
    "workers": 0,
    "precision": "fp32",
    "device": "cpu",
    "evaluate_every": 2,
}


@pytest.fixture
def distill(tmp_path: Path) -> Run:
    """Distil likewise-tiny into its own architecture."""

    def run(data: Path | str, **settings: Any) -> Report:
        given = {**QUICK, "teacher": ["likewise-tiny"], "name": "mine", "run": tmp_path / "run"}
        return commands.distill(Distill(data=str(data), weights_dir=tmp_path / "weights", **(given | settings)))

    return run


@pytest.fixture
def finetune(tmp_path: Path) -> Run:
    """Fine-tune likewise-tiny."""

    def run(data: Path | str, **settings: Any) -> Report:
        given = {**QUICK, "name": "mine", "run": tmp_path / "run"}
        return commands.finetune(FineTune(data=str(data), weights_dir=tmp_path / "weights", **(given | settings)))

    return run
