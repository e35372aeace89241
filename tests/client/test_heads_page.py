"""`likewise heads update` and `eval --report`: the page says what the reply says, and refers to nothing outside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from typer.testing import CliRunner

from likewise.cli import heads_page
from likewise.cli.heads import app
from likewise.head_results import ClassReport, ConfusedItem, Evaluation, ReliabilityBin
from likewise.sync import Collection
from support.pictures import digit_images
from support.server import ServerProcess

Run = Callable[..., Any]


class Text(HTMLParser):
    """What a reader sees, and which tags there are."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.seen: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.seen.append(data)


def drawings(page: str) -> list[ET.Element]:
    """The page's drawings; fails unless each is well-formed and says in words what it shows."""
    found = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]  # noqa: S314  # our own
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in found)
    return found


def check_alone(page: str) -> None:
    assert not re.search(r"https?:|<link|url\(|@import", page)
    assert "script" not in Text(page).tags
    assert "prefers-color-scheme: dark" in page


@pytest.fixture
def run(server: ServerProcess) -> Run:
    """Run a `likewise heads` command and return its JSON, or its text."""

    def invoke(*arguments: object, as_json: bool = True) -> Any:
        words = [*map(str, arguments), "--server", server.address, *(["--json"] if as_json else [])]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout) if as_json else result.output

    return invoke


@pytest.fixture
def digits(collection: Collection, tmp_path: Path) -> Collection:
    """Digits 0 to 4 as files, 16 of each; a zero is called <script>, and half of each class is for the test."""
    images, labels = digit_images(16, classes=5)
    paths = [tmp_path / f"{i:02}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(image)
    collection.add(
        paths,
        ids=[path.stem for path in paths],
        labels=["<script>zero</script>" if label == "0" else label for label in labels],
        attributes=[{"test": i % 2 == 1} for i in range(len(images))],
    )
    return collection


def test_the_report_shows_what_the_reply_says(digits: Collection, run: Run, tmp_path: Path) -> None:
    head = run("train", "h", "-c", digits.name, "--kind", "ncm", "--where", "test = false and label != '4'")
    assert len(head["classes"]) == 4
    where = ("--where", "test = true")
    reply = run("eval", "h", "-c", digits.name, *where, "--report", tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text("utf-8")
    check_alone(page)
    seen = re.sub("[\u2068\u2069]", "", " ".join(Text(page).seen))
    for name in ("accuracy", "accuracy_low", "accuracy_high", "macro_f1", "ece", "false_reject_rate"):
        assert f"{100 * reply[name]:.1f}" in seen, name
    assert f"{100 * reply['unknown_accept_rate']:.1f} %" in seen
    assert f"{reply['rejection_auroc']:.3f}" in seen
    for each in reply["classes"]:
        assert each["label"] in seen
        assert f"{100 * each['precision']:.1f} %" in seen
    matrix, reliability, curve = drawings(page)
    counts = np.array(reply["confusion"])
    shown = sorted(int(t.text or 0) for t in matrix.findall("text") if t.get("text-anchor") == "middle")
    assert shown == sorted(counts[counts > 0].tolist())
    assert len(reliability.findall("circle")) == len(reply["reliability"])
    assert len(curve.findall("circle")) == len(reply["rejection_curve"])
    assert reply["mistakes"], "nearest means of eight digits make some"
    for mistake in reply["mistakes"]:
        assert f"{mistake['id']}: {mistake['label']}, answered {mistake['answer']}" in seen
        assert Path(mistake["uri"]).is_file()
    assert page.count('src="data:image/jpeg;base64,') == len(reply["mistakes"])
    assert "trained the head" not in page
    told = run("eval", "h", "-c", digits.name, "--report", tmp_path / "all.html", as_json=False)
    assert "32 of these items trained the head" in " ".join(told.split())
    assert "32 of these items trained the head" in (tmp_path / "all.html").read_text("utf-8")


def test_the_report_of_many_classes_lists_what_it_cannot_draw(tmp_path: Path) -> None:
    names = tuple(f"<b>{'x' * 100} {i}" for i in range(200))
    counts = np.diag(np.full(201, 5))
    counts[3, 4], counts[200, 200] = 2, 0
    classes = tuple(ClassReport(name, 0.5, 0.5, i / 200, 5) for i, name in enumerate(names))
    found = Evaluation(
        7, 1002, 1002, 0, 0.998, 0.99, 1.0, 0.5, 0.1, 0.0, None, classes, names, counts, ((1.0, 0.998),),
        (ReliabilityBin(0.9, 1.0, 1002),), None, (ConfusedItem("<i>", names[3], names[4], 0.9, "nowhere.jpg"),),
    )  # fmt: skip
    page = heads_page.write(found, "h<u>", "c&a", "c&a", tmp_path / "many.html").read_text("utf-8")
    check_alone(page)
    tags = Text(page).tags
    assert (tags.count("b"), tags.count("i"), tags.count("u")) == (6, 100, 0), "figures and bars, and no names"
    assert len(drawings(page)) == 2
    assert "200 classes are too many to draw" in page
    assert "100 better classes are not shown" in page
    assert "no preview" in page
    assert "h&lt;u&gt; v7 of c&amp;a" in page
    assert not any("x" * 70 in text for text in Text(page).seen), "long names are cut"


def test_the_report_of_classes_the_head_does_not_know(tmp_path: Path) -> None:
    report = ClassReport("a", 0.0, 0.0, 0.0, 0)
    counts = np.array([[0, 0], [0, 3]])
    curve = ((0.5, 0.0), (1.0, 0.0))
    found = Evaluation(1, 3, 0, 0, None, None, None, None, None, None, 0.0, (report,), ("a",), counts, curve)
    page = heads_page.write(found, "h", "c", "other", tmp_path / "none.html").read_text("utf-8")
    assert "none of the items is of a class it knows" in page
    assert "No item was given the name of another class" in page
    assert len(drawings(page)) == 2


def test_update_adds_and_forgets(digits: Collection, run: Run) -> None:
    run("train", "h", "-c", digits.name, "--kind", "ncm", "--where", "test = false")
    head = run("update", "h", "-c", digits.name, "--add-where", "label = '1'", "--add-id", "33", "--remove-id", "00")
    assert (head["version"], head["metrics"]["items"]) == (2, 40 + 8 + 1 - 1)
    assert head["class_counts"]["1"] == 16
    text = run("update", "h", "-c", digits.name, "--remove-id", "33", "--version", "2", as_json=False)
    assert "h v3" in text
    some = run("train", "few", "-c", digits.name, "--id", "00", "--id", "16", "--id", "17")
    assert some["class_counts"] == {"1": 2, "<script>zero</script>": 1}
    kinds = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "120"}).stdout
    assert "auto, ncm, ridge, lda, logreg, knn, mlp or ensemble" in " ".join(kinds.split())
