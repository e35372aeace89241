"""The commands themselves: help without torch, one line for a mistake, and settings that are documented."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from likewise.cli.main import app
from likewise_training.settings import Distill, FineTune
from support.pictures import ROOT

FINETUNE = ["finetune", "{data}", "--name", "mine", "--weights-dir", "{weights}", "--run", "{run}"]
DISTILL = ["distill", "{data}", "--name", "mine", "--weights-dir", "{weights}", "--run", "{run}", "--teacher"]


def invoke(words: list[str], data: Path, folder: Path) -> tuple[int, str, str]:
    weights, run = folder / "weights", folder / "run"
    filled = [word.format(data=data, weights=weights, run=run) for word in words]
    done = CliRunner().invoke(app, filled, env={"LIKEWISE_WEIGHTS_DIR": ""})
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ([*FINETUNE, "--set", "nonsense=1"], 2, "setting nonsense"),
        ([*FINETUNE, "--set", "steps"], 2, "write NAME=VALUE"),
        ([*FINETUNE, "--set", "name=../up"], 2, "setting name"),
        ([*FINETUNE, "--set", "name=a+b"], 2, "setting name"),
        ([*FINETUNE, "--set", "name=resnet50"], 1, "a name of the server's own"),
        ([*FINETUNE, "--backbone", "resnet5o"], 1, "unknown backbone 'resnet5o'"),
        ([*FINETUNE, "--blocks", "99"], 1, "this network has 8; use fewer"),
        ([*FINETUNE, "--label-from", "none"], 1, "a folder of its own"),
        ([*FINETUNE, "--set", "hold_out=classes"], 1, "use hold_out=items"),
        ([*FINETUNE, "--device", "tpu"], 1, "use auto, cpu or cuda"),
        ([*DISTILL, "nobody"], 1, "unknown backbone 'nobody'"),
        ([*DISTILL, "likewise-tiny", "--student", "timm/x"], 1, "unknown backbone 'timm/x'"),
        ([*DISTILL, "likewise-tiny", "--set", "feature=0", "--set", "relation=0"], 1, "give one of them a weight"),
        ([word.replace("{data}", "{data}/nowhere") for word in FINETUNE], 1, "there is no"),
        ([word.replace("{data}", "{data}/0/000.png") for word in FINETUNE], 1, "is no folder, no list"),
        ([word.replace("{data}", "{data}/*/000.png") for word in FINETUNE], 1, "has 1 readable pictures"),
    ],
)
def test_mistakes_are_told_in_a_line(words: list[str], status: int, told: str, digits: Path, tmp_path: Path) -> None:
    code, out, err = invoke(words, digits, tmp_path)
    assert (code, out) == (status, "")
    assert told in " ".join(err.split())
    assert "Traceback" not in err
    assert not (tmp_path / "weights").exists()


def test_a_name_is_taken_once_unless_forced(digits: Path, tmp_path: Path) -> None:
    quick = ["--steps", "1", "--device", "cpu", "--set", "batch=4", "--set", "workers=0", "--json"]
    code, out, _ = invoke([*FINETUNE, *quick], digits, tmp_path)
    assert code == 0
    report = json.loads(out)
    assert Path(report["weights"]).name == "mine.safetensors"
    code, _, err = invoke([*FINETUNE, *quick], digits, tmp_path)
    assert code == 1
    assert "--force" in err
    code, out, err = invoke([*FINETUNE, *quick, "--force"], digits, tmp_path)
    assert code == 0
    assert "goes on at step 1" in err
    assert json.loads(out)["fingerprint"] == report["fingerprint"]


def test_a_place_for_the_result_is_asked_for(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIKEWISE_WEIGHTS_DIR", raising=False)
    done = CliRunner().invoke(app, ["finetune", str(digits), "--name", "mine"])
    assert done.exit_code == 2
    assert "--weights-dir" in done.stderr


def test_help_and_a_missing_extra_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['likewise', *{!r}]\nfrom likewise.cli import main; main()"
    )
    for words in (["distill", "--help"], ["finetune", "--help"]):
        done = subprocess.run([sys.executable, "-c", code.format(words)], capture_output=True, text=True, check=True)
        assert "--weights-dir" in done.stdout
    words = ["finetune", "x", "--name", "n", "--weights-dir", "w"]
    done = subprocess.run([sys.executable, "-c", code.format(words)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'likewise[server]'" in done.stderr


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs/training.md").read_text()
    for settings in (Distill, FineTune):
        for name, field in settings.model_fields.items():
            assert f"| `{name}` |" in page, name
            assert (field.description or "") in page, name
