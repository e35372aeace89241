"""`likewise labels` as people type it: tables, JSON, CSV and the page of a review."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from html.parser import HTMLParser

import numpy as np
import pytest

from likewise import Client
from likewise.collection import NewItem
from support.pictures import digit_images
from support.place import Place
from support.server import start_server

WRONG = ("3-1.png", "5-2.png", "8-4.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Collection "digits": twelve of each labelled, three of them wrongly, and three of each without a label.

    Collection "inverted": the same on a white ground, of which some have a label.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("place")
    images, labels = digit_images(15)
    plain, inverted = list[NewItem](), list[NewItem]()
    for n, (data, label) in enumerate(zip(images, labels, strict=True)):
        name = f"{label}-{n % 15}.png"
        (folder / name).write_bytes(data)
        given: str | None = label if n % 15 < 12 else None
        if name in WRONG:
            given = "0"
        plain.append(NewItem(name, data, label=given, uri=name))
        with Image.open(folder / name) as image:
            ImageOps.invert(image.convert("RGB")).save(folder / f"inverted-{name}")
        inverted.append(NewItem(name, (folder / f"inverted-{name}").read_bytes(), label=label if n % 15 < 5 else None))
    seven = (folder / "7-1.png").read_bytes()
    plain.append(NewItem("<b>.png", seven, label="1"))
    with start_server(folder / "data", "--precision", "fp32") as server:
        with Client(server.address) as lw:
            for name, items in (("digits", plain), ("inverted", inverted)):
                assert {outcome.status for outcome in lw.create_collection(name).upsert(items)} == {"created"}
        yield Place(server, folder)


def test_labels_are_set_one_by_one_and_from_a_file(place: Place) -> None:
    done = place.run("labels", "set", "-c", "inverted", "0-12.png=zero", "2-0.png=", "1-0.png=1")
    assert "2 of 3 items have another label now" in done.stderr
    with Client(place.server.address) as lw:
        inverted = lw.collection("inverted")
        found = inverted.get(["0-12.png", "2-0.png"])
        assert [item.label for item in found if item] == ["zero", None]
        missing = place.run("labels", "set", "-c", "inverted", "1-12.png=a=b", "0-12.png=new", status=3)
        assert "1-12.png=a: no such item in 'inverted'" in missing.stderr
        assert "1 of 2 items" in missing.stderr
        (place.folder / "labels.csv").write_text("id,other,label\n0-12.png,,\n2-0.png,x,2\nnobody,x,y\n")
        told = json.loads(
            place.run("labels", "set", "-c", "inverted", "--from", "labels.csv", "--json", status=3).stdout
        )
        assert told == {"changed": 2, "missing": ["nobody"]}
        assert [item.label for item in inverted.get(["0-12.png", "2-0.png"]) if item] == [None, "2"]
    (place.folder / "bad.csv").write_text("name,label\na,b\n")
    (place.folder / "worse.csv").write_bytes(b"id,label\n\xff\xfe,b\n")
    for arguments, told in (
        (["--from", "bad.csv"], "names the columns id and label"),
        (["--from", "worse.csv"], "no CSV file in UTF-8"),
        (["a"], "write ID=LABEL"),
        ([], "give ID=LABEL, or --from"),
        (["a=b", "--from", "labels.csv"], "give ID=LABEL, or --from"),
    ):
        text = place.run("labels", "set", "-c", "inverted", *arguments, status=2).stderr
        assert told in " ".join(text.replace("│", " ").split())


class Page(HTMLParser):
    """What a page shows, and the tags it opens."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_review_is_a_table_json_and_a_page_with_pictures(place: Place) -> None:
    review = ("labels", "review", "-c", "digits", "--kind", "lda", "--errors", 6, "--next", 4)
    found = place.json(*review)
    assert len({doubt["id"] for doubt in found["doubtful"][:4]} & {*WRONG, "<b>.png"}) >= 3
    assert len(found["next"]) == 4
    done = place.run(*review)
    for doubt in found["doubtful"]:
        assert doubt["id"] in done.stdout
        assert f"{100 * doubt['suggested_probability']:.1f} %" in done.stdout
    assert "121 items with a label, 30 without; lda head: accuracy" in done.stderr
    assert "the same picture is in more than one class: '7-1.png' as '7', '<b>.png' as '1'" in done.stderr.replace(
        "'<b>.png' as '1', '7-1.png' as '7'", "'7-1.png' as '7', '<b>.png' as '1'"
    )
    done = place.run(*review, "--report", "review.html")
    assert "report in " in done.stderr
    text = (place.folder / "review.html").read_text("utf-8")
    page = Page(text)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == len(found["doubtful"]) - 1 + len(found["next"])  # "<b>.png" is no file here
    assert page.text.count("no preview") == 1
    assert all((attributes["src"] or "").startswith("data:image/jpeg;base64,") for attributes in pictures)
    assert not [tag for tag, _ in page.tags if tag in ("script", "b>", "link", "iframe")]
    for doubt in found["doubtful"]:
        share = f"{100 * doubt['suggested_probability']:.1f} %"
        assert f"{doubt['id']}: {doubt['label']}" in page.text
        assert f"rather {doubt['suggested']} {share}" in page.text
    for each in found["next"]:
        assert f"{each['id']}: {each['reason']}" in page.text
    accuracy = found["metrics"]["accuracy"]
    assert f"{100 * accuracy:.1f} %" in page.text
    assert "&lt;b&gt;.png: 1" in text
    assert "<b>.png" not in text


def test_source_items_are_chosen_for_a_target(place: Place) -> None:
    select = ("labels", "select", "-c", "digits", "--target", "inverted", "--keep", 0.5, "--kind", "ncm")
    found = place.json(*select)
    assert len(found) == 121
    done = place.run(*select, "--csv", "chosen.csv")
    kept = [item["id"] for item in found if item["kept"]]
    assert f"{len(kept)} of 121 items to train on" in done.stderr
    with (place.folder / "chosen.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows if row["kept"] == "True"] == kept
    assert [float(row["nearness"]) for row in rows] == pytest.approx([item["nearness"] for item in found])
    assert "over 0 and up to 1" in place.run(*select[:-4], "--keep", 0, status=1).stderr


def test_a_head_is_trained_for_other_pictures(place: Place) -> None:
    train = ("heads", "train", "grounds", "-c", "digits", "--kind", "ridge")
    adapted = (*train, "--adapt", "ot", "--target", "inverted", "--target-where", "id like '%.png'")
    report = place.json(*adapted)["adaptation"]
    assert report["method"] == "ot"
    assert report["target_items"] == 150
    assert report["measured_items"] >= 49
    done = place.run(*adapted)
    assert "ot: 121 items to 150 of the target" in done.stdout
    before, after = (f"{100 * report[f'accuracy_{when}']:.1f} % {when}" for when in ("before", "after"))
    assert f"{before}, {after}" in done.stdout
    assert place.json(*train)["adaptation"] is None
    assert "say adapt=" in place.run(*train, "--target", "inverted", status=1).stderr


def test_a_head_labels_what_it_is_sure_of(place: Place) -> None:
    place.run("labels", "set", "-c", "digits", f"{WRONG[0]}=3", f"{WRONG[1]}=5", f"{WRONG[2]}=8")
    place.run("heads", "train", "sure", "-c", "digits", "--kind", "lda")
    pseudo = ("labels", "pseudo", "-c", "digits", "--head", "sure", "--min-score", 0.6, "--max-per-class", 2)
    dry = place.run(*pseudo, "--dry-run", "--csv", "pseudo.csv")
    with (place.folder / "pseudo.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    taken = [row for row in rows if row["taken"] == "True"]
    assert len(rows) == 30
    assert 5 < len(taken) <= 20
    assert f"{len(taken)} of 30 items without a label would be labelled by sure v1" in dry.stderr
    assert all(row["reason"] for row in rows if row["taken"] == "False")
    found = place.json(*pseudo)
    assert [item["id"] for item in found if item["taken"]] == [row["id"] for row in taken]
    assert np.mean([item["id"].startswith(f"{item['label']}-") for item in found if item["taken"]]) > 0.8
    assert "0 of " in place.run(*pseudo, "--where", "exists(label_source)").stderr
    with Client(place.server.address) as lw:
        assert lw.collection("digits").count("label_source = 'head sure v1 of digits'") == len(taken)
