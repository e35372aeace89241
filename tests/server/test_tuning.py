"""`likewise tune`: the clocks on the bundled backbone, the decisions on made-up machines, the command as it is run."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from likewise.cli.main import app
from likewise_server.backbones import registry
from likewise_server.backbones.backbone import Backbone
from likewise_server.errors import AlreadyExists, InvalidArgument
from likewise_server.images import ImageLimits, pixels_of
from likewise_server.settings import Settings
from likewise_server.tuning import bench, choose, measure, recommend, report, run
from likewise_server.tuning.pictures import MOST, Pictures, bundled, from_folder
from likewise_server.tuning.plan import Plan
from likewise_server.tuning.results import (
    BothRate,
    Bound,
    Choice,
    DecodeRate,
    Execution,
    ForwardRate,
    Latency,
    Machine,
    Measured,
    Report,
)

LIMITS = ImageLimits()
CHOSEN = ("max_batch", "decode_threads", "precision", "compile", "decoding", "queue_interactive")


def table(precision: str, execution: Execution, **rates: float) -> list[ForwardRate]:
    return [ForwardRate(precision, execution, int(batch[1:]), rate) for batch, rate in rates.items()]


SLOW = table("fp32", "eager", b1=10, b2=18, b4=30, b8=39, b16=40, b32=40)
FAST = table("bf16", "eager", b1=500, b2=900, b4=1500, b8=2500, b16=3900, b32=4000)
DECODE = [DecodeRate("scaled", 1, 300), DecodeRate("scaled", 2, 590), DecodeRate("full", 1, 100)]


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return registry.load("likewise-tiny", weights_dir=None, device=torch.device("cpu"), precision="fp32")


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return bundled()


@pytest.fixture
def made_up() -> Report:
    both = [BothRate(2, 8, 38.0), BothRate(1, 8, 37.0)]
    measured = Measured(
        *("made-up", DECODE, SLOW, both, Latency(3.0, 100.0), Bound("forward", 0.1, 0.9, shared_cores=True), 38.0),
        recommend.settings(DECODE, SLOW, both),
        ["something was left out"],
    )
    machine = Machine("a processor", 2, "cpu", native_bf16=False, gpus=[], torch="2", load=0.1)
    return Report(machine, "some pictures", [measured], measured.settings)


class TestPictures:
    def test_those_that_come_along_are_typical_jpegs(self, pictures: Pictures) -> None:
        for data in pictures.data:
            with Image.open(io.BytesIO(data)) as image:
                assert (image.format, image.size) == ("JPEG", (500, 375))
        assert "500x375" in pictures.told
        assert "scikit-learn" in pictures.told

    def test_a_folder_gives_its_readable_pictures_and_not_too_many(self, tmp_path: Path, pictures: Pictures) -> None:
        (tmp_path / "below").mkdir()
        for number in range(MOST + 20):
            (tmp_path / "below" / f"{number:03}.JPG").write_bytes(pictures.data[number % 8])
        (tmp_path / "000.jpg").write_bytes(b"no picture")
        (tmp_path / "notes.txt").write_text("nor this")
        found = from_folder(tmp_path, LIMITS)
        assert len(found.data) == MOST - 1
        assert str(tmp_path) in found.told

    def test_no_pictures_are_told(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument, match="no such folder"):
            from_folder(tmp_path / "missing", LIMITS)
        (tmp_path / "broken.png").write_bytes(b"broken")
        with pytest.raises(InvalidArgument, match="of 1 files"):
            from_folder(tmp_path, LIMITS)


class TestClocks:
    def test_decoding_is_measured_in_every_thread(self, tiny: Backbone, pictures: Pictures) -> None:
        for threads in (1, 3):
            rate = measure.decode_rate(
                pictures.data, tiny.preprocessing, LIMITS, "scaled", threads=threads, seconds=0.03
            )
            assert rate > 0

    def test_forwards_run_in_the_batch_asked_for(self, tiny: Backbone, pictures: Pictures) -> None:
        pixels = np.stack([pixels_of(data, tiny.preprocessing, LIMITS) for data in pictures.data])
        sizes: list[int] = []

        def launch(batch: int) -> Any:
            sizes.append(batch)
            return bench._launch(tiny, pixels, batch)

        assert measure.forward_rate(launch, 11, 0.0) > 0
        assert set(sizes) == {11}
        assert len(sizes) == measure.RUNS + 2  # a warm-up, and one that is in flight when the clock starts
        assert bench._launch(tiny, pixels, 11)().shape[0] == 11

    def test_one_image_alone_has_two_parts(self, tiny: Backbone, pictures: Pictures) -> None:
        pixels = np.stack([pixels_of(pictures.data[0], tiny.preprocessing, LIMITS)])
        alone = measure.latency(
            pictures.data, partial(bench._launch, tiny, pixels), tiny.preprocessing, LIMITS, "scaled", seconds=0.01
        )
        assert alone.decode_ms > 0
        assert alone.forward_ms > 0

    def test_both_at_once_goes_through_the_pipeline(self, tiny: Backbone, pictures: Pictures) -> None:
        work = measure.both_rate(pictures.data, tiny, LIMITS, max_batch=4, decode_threads=2, seconds=0.001)
        assert asyncio.run(work) > 0

    def test_a_picture_that_fails_ends_the_measuring(self, tiny: Backbone) -> None:
        work = measure.both_rate([b"no picture"], tiny, LIMITS, max_batch=4, decode_threads=1, seconds=30)
        with pytest.raises(InvalidArgument, match="not an image"):
            asyncio.run(work)

    def test_a_rate_counts_from_one_batch_end_to_another(self) -> None:
        ended = [(float(second), 8) for second in range(10)]
        assert measure.rate_between(ended, 1.5, 6.5) == 8
        assert measure.rate_between(ended, 1.5, 2.5) == 8  # one end: by the window's length
        assert measure.rate_between(ended, 20, 22) == 0


class TestDecisions:
    def test_the_batch_is_the_smallest_that_is_nearly_best(self) -> None:
        assert choose.best_batch(SLOW) == 8
        assert choose.best_batch(FAST) == 16

    def test_decode_threads_beside_a_gpu_are_the_fewest_that_are_nearly_best(self) -> None:
        rows = [DecodeRate("scaled", threads, rate) for threads, rate in ((1, 100), (2, 199), (4, 390), (8, 400))]
        assert choose.best_threads(rows, "scaled") == 4

    @pytest.mark.parametrize(("bf16", "chosen"), [(38, "fp32"), (41, "fp32"), (60, "bf16")])
    def test_bf16_must_be_faster_by_more_than_noise(self, bf16: float, chosen: str) -> None:
        assert choose.best_precision([*SLOW, *table("bf16", "eager", b8=bf16)]) == chosen

    def test_what_alone_was_measured_is_chosen(self) -> None:
        assert choose.best_precision(FAST) == "bf16"
        assert choose.best_precision(SLOW) == "fp32"

    @pytest.mark.parametrize(
        ("compiled", "execution", "setting"), [(41, "eager", "off"), (80, "compiled", "behind"), (20, "eager", "off")]
    )
    def test_compiling_must_be_worth_it(self, compiled: float, execution: str, setting: str) -> None:
        forward = [*SLOW, *table("fp32", "compiled", b8=compiled)]
        assert choose.best_execution(forward, "fp32") == execution
        values = {c.name: c.value for c in recommend.settings(DECODE, forward, [BothRate(2, 8, 30)])}
        assert values["compile"] == setting

    def test_neighbours_of_the_guess_are_tried_once_each_and_none_beyond_the_most(self) -> None:
        assert choose.combinations(4, 16, 1024) == [(4, 16), (2, 16), (4, 8), (4, 32)]
        assert choose.combinations(1, 1, 1) == [(1, 1)]
        assert choose.combinations(2, 32, 16) == [(2, 16), (1, 16), (2, 8)]

    def test_the_guess_stays_unless_another_is_clearly_faster(self) -> None:
        guess, near, far = BothRate(2, 16, 100), BothRate(1, 16, 104), BothRate(2, 32, 120)
        assert choose.best_both([guess, near]) is guess
        assert choose.best_both([guess, near, far]) is far

    def test_a_slow_network_binds_by_forwards(self) -> None:
        found = choose.bound(DECODE[1], 40, BothRate(2, 8, 37), cores=2, shared_cores=True)
        assert found.by == "forward"
        assert found.forward_share == pytest.approx(590 / 630, abs=1e-3)
        assert found.decode_share + found.forward_share == pytest.approx(1)

    def test_a_small_network_binds_by_decoding(self) -> None:
        found = choose.bound(DECODE[1], 4000, BothRate(2, 16, 510), cores=2, shared_cores=True)
        assert found.by == "decode"
        assert found.decode_share == pytest.approx(4000 / 4590, abs=1e-3)

    def test_fewer_decode_threads_than_cores_take_fewer_of_them(self) -> None:
        found = choose.bound(DECODE[0], 300, BothRate(1, 16, 200), cores=2, shared_cores=True)
        assert found.forward_share == pytest.approx(2 / 3, abs=1e-3)

    def test_beside_a_gpu_shares_are_how_busy_each_is(self) -> None:
        found = choose.bound(DECODE[1], 4000, BothRate(2, 16, 580), cores=2, shared_cores=False)
        assert (found.by, found.forward_share) == ("decode", 0.145)
        assert found.decode_share == pytest.approx(580 / 590, abs=1e-3)
        over = choose.bound(DECODE[1], 500, BothRate(2, 16, 510), cores=2, shared_cores=False)
        assert (over.by, over.forward_share) == ("forward", 1.0)

    def test_rows_in_between_use_the_next_smaller(self) -> None:
        assert choose.decode_at(DECODE, "scaled", 3).threads == 2
        assert choose.forward_at(SLOW, "fp32", 64) == 40
        assert choose.forward_at(SLOW, "fp32", 3) == 18

    @pytest.mark.parametrize(("rate", "images"), [(10, 48), (2000, 200), (1e6, 1024)])
    def test_a_burst_is_a_tenth_of_a_second(self, rate: float, images: int) -> None:
        assert choose.burst(rate) == images

    def test_threads_double_up_to_the_cores(self) -> None:
        assert bench.thread_counts(1) == [1]
        assert bench.thread_counts(6) == [1, 2, 4, 6]
        assert bench.thread_counts(8) == [1, 2, 4, 8]


class TestRecommendations:
    def test_every_setting_is_one_of_the_server_with_a_sentence(self, made_up: Report) -> None:
        assert tuple(choice.name for choice in made_up.settings) == CHOSEN
        assert set(CHOSEN) <= set(Settings.model_fields)
        for choice in made_up.settings:
            assert choice.why.endswith(".")
            assert "\n" not in choice.why

    def test_scaled_decoding_tells_what_it_gains(self, made_up: Report) -> None:
        assert "3.0 times" in {c.name: c.why for c in made_up.settings}["decoding"]

    def test_several_backbones_share_settings_that_suit_both(self) -> None:
        slow = recommend.settings(DECODE, SLOW, [BothRate(2, 8, 38)])
        fast = recommend.settings(DECODE, [*FAST, *table("bf16", "compiled", b16=4000, b1=500)], [BothRate(1, 32, 500)])
        joined = {c.name: c for c in recommend.together([("a", slow), ("b", fast)])}
        values = {name: choice.value for name, choice in joined.items()}
        assert values["max_batch"] == 32
        assert values["decode_threads"] == 2
        assert values["precision"] == "auto"
        assert values["compile"] == "behind"
        assert values["queue_interactive"] == 48
        assert joined["max_batch"].why.startswith("b: ")

    def test_a_written_file_is_what_the_server_reads(
        self, made_up: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in list(os.environ):
            if name.startswith("LIKEWISE_"):
                monkeypatch.delenv(name)
        monkeypatch.chdir(tmp_path)
        report.write(made_up, Path("likewise.toml"), force=False)
        assert set(tomllib.loads(Path("likewise.toml").read_text())) == set(CHOSEN)
        nothing_said: dict[str, Any] = {}
        read = Settings(**nothing_said)
        assert {name: getattr(read, name) for name in CHOSEN} == {c.name: c.value for c in made_up.settings}

    def test_a_file_that_is_there_is_kept_unless_forced(self, made_up: Report, tmp_path: Path) -> None:
        path = tmp_path / "likewise.toml"
        path.write_text("port = 1\n")
        with pytest.raises(AlreadyExists, match="--force"):
            report.write(made_up, path, force=False)
        assert path.read_text() == "port = 1\n"
        report.write(made_up, path, force=True)
        assert "port" not in tomllib.loads(path.read_text())

    def test_tables_show_what_was_found(self, made_up: Report, capsys: pytest.CaptureFixture[str]) -> None:
        report.show(made_up)
        shown = capsys.readouterr().out
        for text in ("a processor", "made-up", "eager fp32", "bound by forward", "90%", "103.0 ms", "something was"):
            assert text in shown
        assert "busy already" not in shown
        for choice in made_up.settings:
            assert choice.why in shown

    def test_a_busy_machine_is_told(self, made_up: Report, capsys: pytest.CaptureFixture[str]) -> None:
        made_up.machine = Machine("p", 2, "cpu", native_bf16=False, gpus=[], torch="2", load=1.5)
        report.show(made_up)
        assert "busy already" in capsys.readouterr().out


def test_without_a_compiler_the_rest_is_measured(
    tmp_path: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    told: list[str] = []
    plan = Plan(
        *(["likewise-tiny"], pictures, LIMITS, "cpu", "fp32", None, tmp_path / "compiled"), seconds=0.5, batches=(1, 2)
    )
    found = run.run(plan, told.append)
    (one,) = found.backbones
    assert {(row.precision, row.execution) for row in one.forward} == {("fp32", "eager")}
    assert any("no-such-compiler" in note for note in one.notes)
    assert any("compiling" in line for line in told)
    assert Choice("compile", "behind", "not measured; the server goes on eagerly wherever compiling fails.") in (
        found.settings
    )


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory, pictures: Pictures) -> tuple[dict[str, Any], Path]:
    """What the command prints as JSON, and the file it writes."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "one.jpg").write_bytes(pictures.data[0])
    options = ["--json", "--write", "likewise.toml", "--images", ".", "--no-compile", "--seconds", "1"]
    command = [sys.executable, "-m", "likewise.cli", "tune", "--device", "cpu", "--precision", "fp32", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    return json.loads(done.stdout), folder / "likewise.toml"


class TestCommand:
    def test_every_figure_is_there_and_positive(self, printed: tuple[dict[str, Any], Path]) -> None:
        found, _ = printed
        assert found["machine"]["cores"] == os.cpu_count()
        (one,) = found["backbones"]
        assert one["backbone"] == "likewise-tiny"
        assert [row["batch"] for row in one["forward"]][:2] == [1, 2]
        assert {(row["decoding"], row["threads"]) for row in one["decode"]} >= {("scaled", 1), ("full", 1)}
        for row in [*one["decode"], *one["forward"], *one["both"], one]:
            assert row["images_per_s"] > 0
        assert one["latency"]["decode_ms"] > 0
        assert one["latency"]["forward_ms"] > 0
        assert one["bound"]["by"] in ("decode", "forward")
        assert any("--no-compile" in note for note in one["notes"])

    def test_what_is_chosen_follows_from_the_tables(self, printed: tuple[dict[str, Any], Path]) -> None:
        found, _ = printed
        (one,) = found["backbones"]
        values = {choice["name"]: choice["value"] for choice in found["settings"]}
        guess = choose.best_batch([ForwardRate(**row) for row in one["forward"]])
        assert one["both"][0]["max_batch"] == guess
        best = choose.best_both([BothRate(**row) for row in one["both"]])
        assert (values["max_batch"], values["decode_threads"]) == (best.max_batch, best.decode_threads)
        assert one["images_per_s"] == best.images_per_s
        assert values["precision"] == "fp32"

    def test_the_file_holds_the_same_settings(self, printed: tuple[dict[str, Any], Path]) -> None:
        found, path = printed
        assert tomllib.loads(path.read_text()) == {c["name"]: c["value"] for c in found["settings"]}

    def test_an_existing_file_is_refused_before_anything_is_measured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # the command would leave it behind
        path = tmp_path / "likewise.toml"
        path.write_text("port = 1\n")
        result = CliRunner().invoke(app, ["tune", "--backbone", "no-such-backbone", "--write", str(path)])
        assert result.exit_code == 1
        assert "--force" in result.stderr
        assert path.read_text() == "port = 1\n"

    def test_a_missing_folder_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        result = CliRunner().invoke(app, ["tune", "--images", str(tmp_path / "missing")])
        assert result.exit_code == 1
        assert "no such folder" in result.stderr

    def test_help_names_every_option(self) -> None:
        shown = CliRunner().invoke(app, ["tune", "--help"]).stdout
        for option in ("backbone", "images", "weights-dir", "data", "device", "precision", "seconds", "write", "json"):
            assert f"--{option}" in shown
