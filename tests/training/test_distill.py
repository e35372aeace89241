"""Distilling: the student comes to agree with its teacher, with labels it learns classes, and no kill spoils a run."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from likewise_server.backbones import registry
from likewise_training.commands import Report
from likewise_training.trainer import LOG
from support.server import clean_environment
from support.training import Run, write_digits

START_S = 120


def log_of(folder: Path) -> list[dict[str, str]]:
    with (folder / LOG).open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_student_comes_to_agree_with_its_teacher(distill: Run, tmp_path: Path) -> None:
    data = write_digits(tmp_path / "digits", 12, 5)
    settings = {"label_from": "none", "augment": "light", "flip": False, "held_share": 0.4}
    report = distill(data, steps=30, learning_rate=3e-3, average=0.9, evaluate_every=15, **settings)
    assert report.before is not None
    assert report.after is not None
    assert "teachers' similarities" in report.measure
    assert report.after > report.before + 0.1
    assert report.dim == 512


def test_labels_are_learned_where_there_are_some(distill: Run, digits: Path, tmp_path: Path) -> None:
    labelled = distill(digits, run=tmp_path / "a", name="labelled", mixup=0.4)
    assert "accuracy" in labelled.measure
    assert {"feature", "relation", "label"} <= log_of(tmp_path / "a")[0].keys()
    distill(digits, run=tmp_path / "b", name="bare", label_from="none", feature_loss="mse", relation=0)
    columns = log_of(tmp_path / "b")[0].keys()
    assert "feature" in columns
    assert not {"label", "relation"} & columns


def test_a_student_of_another_width_and_family_can_be_served(distill: Run, digits: Path, tmp_path: Path) -> None:
    report = distill(digits, student="shufflenet_v2_x0_5", steps=2, teacher=["likewise-tiny", "likewise-tiny"])
    loaded = registry.load("mine", weights_dir=tmp_path / "weights", device=torch.device("cpu"), precision="fp32")
    assert loaded.learn_space(loaded.ref()).dim == report.dim == 1024
    assert loaded.fingerprint(loaded.ref()) == report.fingerprint
    assert loaded.preprocessing.crop == 224


def test_a_killed_run_goes_on_to_the_weights_of_an_unbroken_one(distill: Run, photos: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    settings = ["steps=14", "batch=8", "workers=0", "threads=1", "precision=fp32", "evaluate_every=1", "save_every=0"]
    command = [sys.executable, "-m", "likewise.cli", "distill", str(photos), "--name", "killed", "--json"]
    command += ["--teacher", "likewise-tiny", "--device", "cpu", "--run", str(killed)]
    command += ["--weights-dir", str(tmp_path / "weights"), *(f"--set={each}" for each in settings)]
    environment = {**clean_environment(), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
    until = time.monotonic() + START_S
    while not (killed / LOG).exists() or not (rows := log_of(killed)) or int(rows[-1]["step"]) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "weights/killed.safetensors").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    resumed = next(line for line in again.stderr.splitlines() if line.startswith("goes on at step "))
    assert 2 <= int(resumed.split()[-1]) < 14
    assert [row["step"] for row in log_of(killed)] == [str(step) for step in range(1, 15)]
    unbroken = distill(photos, steps=14, evaluate_every=1, name="unbroken", run=tmp_path / "unbroken")
    weights = load_file(tmp_path / "weights/killed.safetensors")
    expected = load_file(Path(unbroken.weights))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert [row["score"] for row in log_of(killed)] == [row["score"] for row in log_of(tmp_path / "unbroken")]


def test_looks_are_the_same_with_any_number_of_workers(distill: Run, photos: Path, tmp_path: Path) -> None:
    made: dict[int, Report] = {}
    for workers in (0, 1):
        name = f"workers-{workers}"
        made[workers] = distill(photos, steps=2, workers=workers, name=name, run=tmp_path / name)
    alone, helped = (load_file(made[workers].weights) for workers in (0, 1))
    assert all(torch.equal(alone[key], helped[key]) for key in alone)


def test_broken_pictures_are_left_out_and_named(distill: Run, photos: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in photos.iterdir():
        (mixed / path.name).symlink_to(path)
    (mixed / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    report = distill(mixed, steps=1)
    assert [item for item, _ in report.broken] == ["broken.jpg"]
    assert report.pictures + report.held_out == 16


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_the_learning_rate_rises_then_falls(distill: Run, photos: Path, tmp_path: Path, schedule: str) -> None:
    distill(photos, steps=8, batch=4, warm_up=0.3, schedule=schedule, evaluate_every=1, patience=3, learning_rate=1e-6)
    rates = [float(row["learning_rate"]) for row in log_of(tmp_path / "run")]
    assert rates[0] < 1e-8 < max(rates)
    assert max(rates) <= 1e-6
    assert rates[-1] < max(rates) or schedule == "plateau"
