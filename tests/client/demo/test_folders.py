"""A person's own pictures, and what is said when they do not do."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from likewise.demo import extras, folders
from likewise.demo.extras import DemoError


def fill(folder: Path, **counts: int) -> Path:
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / label / f"{i}.png")
    return folder


def test_each_folder_is_a_class_and_other_files_are_not_pictures(tmp_path: Path) -> None:
    fill(tmp_path, cat=2, dog=3, **{".hidden": 4})
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    found = folders.folder(tmp_path, 0)
    assert [(p.id, p.label) for p in found][:2] == [("cat/0.png", "cat"), ("cat/1.png", "cat")]
    assert len(found) == 5


def test_a_large_folder_is_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MOST", 8)
    labels = [p.label for p in folders.folder(fill(tmp_path, cat=9, dog=9), 0)]
    assert (labels.count("cat"), labels.count("dog")) == (4, 4)


@pytest.mark.parametrize(
    ("counts", "said"),
    [({}, "0 classes"), ({"cat": 3}, "1 class, the demo needs 2"), ({"cat": 3, "dog": 1}, "dog in .* has under 2")],
)
def test_too_few_pictures_are_refused_with_the_way_out(tmp_path: Path, counts: dict[str, int], said: str) -> None:
    with pytest.raises(DemoError, match=said):
        folders.folder(fill(tmp_path, **counts), 0)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="is no folder"):
        folders.folder(tmp_path / "missing", 0)


def test_a_missing_package_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name="torchvision")

    monkeypatch.setattr(extras, "import_module", missing)
    with pytest.raises(DemoError, match=r"torchvision.*pip install 'likewise\[demo\]'"):
        folders.torchvision_set("CIFAR10", Path(), 0)
    with pytest.raises(DemoError, match=r"pip install 'likewise\[demo\]'"):
        extras.package_folder("likewise_has_no_such_package")


def test_a_data_set_that_cannot_be_had_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Offline:
        def __init__(self, root: str, *, download: bool) -> None:
            raise OSError(f"no route to host for {root} {download}")

    sets = SimpleNamespace(__all__=["Offline"], Offline=Offline)
    monkeypatch.setattr(folders, "need", lambda _: sets)
    with pytest.raises(DemoError, match="Offline could not be downloaded or read"):
        folders.torchvision_set("Offline", tmp_path, 0)
    with pytest.raises(DemoError, match="no data set 'Online'"):
        folders.torchvision_set("Online", tmp_path, 0)


def test_importing_the_command_needs_no_package_of_the_demo() -> None:
    module = importlib.import_module("likewise.demo.cli")
    assert not {"np", "Image", "rich", "report"} & set(vars(module))
