"""The command line's ways to ask: thresholds, groups, examples, duplicates on a server and without one."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from likewise import Client
from support.pictures import jpeg, photographs
from support.place import Place
from support.server import start_server


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    for number, (name, image) in enumerate(sorted(photographs().items())):
        for copy, (side, quality) in enumerate(((400, 95), (300, 40))):
            (folder / f"{name}-{copy}.jpg").write_bytes(jpeg(image.resize((side, side)), quality=quality))
        assert number < 99
    (folder / "<b>.jpg").write_bytes((folder / "coffee-0.jpg").read_bytes())
    with start_server(folder / "data", "--precision", "fp32") as server:
        with Client(server.address) as lw:
            files = [path.name for path in sorted(folder.glob("*.jpg"))]
            uris = lw.create_collection("album")
            pictures = [(folder / name).read_bytes() for name in files]
            from likewise.collection import NewItem  # noqa: PLC0415

            items = [
                NewItem(name, picture, label=name.split("-")[0], uri=name)
                for name, picture in zip(files, pictures, strict=True)
            ]
            assert {outcome.status for outcome in uris.upsert(items)} == {"created"}
        yield Place(server, folder)


def test_collections_are_created_and_updated(place: Place) -> None:
    assert "created 'birds' of 3-d vectors" in place.run("collections", "create", "birds", "--dim", 3).stderr
    made = place.json("collections", "create", "more", "--index", "exact", "--indexed", "a", "--indexed", "b.c")
    assert (made["index"], made["indexed"], made["backbone"]) == ("exact", ["a", "b.c"], "likewise-tiny")
    assert place.json("collections", "update", "more", "--index", "auto")["indexed"] == ["a", "b.c"]
    assert "none" in place.run("collections", "update", "more", "--no-indexed").stderr
    assert "say what to change" in place.run("collections", "update", "more", status=2).stderr
    assert "exclude each other" in place.run(
        "collections", "update", "more", "--no-indexed", "--indexed", "a", status=2
    ).stderr.replace("\n", " ")
    assert "already" in place.run("collections", "create", "birds", "--dim", 4, status=1).stderr.lower()
    place.run("collections", "delete", "birds", "--yes")
    place.run("collections", "delete", "more", "--yes")


def test_indexing_makes_a_collection_with_its_index(place: Place, tmp_path: Path) -> None:
    index = ("index", place.folder, "-c", "indexed", "--pattern", "rocket*", "--journal", tmp_path / "journal")
    assert place.json(*index, "--index", "exact", "--indexed", "size")["new"] == 2
    facts = place.json("collections", "info", "indexed")["collection"]
    assert (facts["index"], facts["indexed"]) == ("exact", ["size"])
    place.run(*index, "--index", "exact")
    refused = place.run(*index, "--index", "auto", status=1).stderr
    assert "likewise collections update" in refused
    assert "likewise collections update" in place.run(*index, "--indexed", "year", status=1).stderr
    place.run("collections", "delete", "indexed", "--yes")


def test_info_is_for_people_and_for_programs(place: Place) -> None:
    text = place.run("collections", "info", "album").stdout
    for words in ("index", "exact", "fp32", "KiB"):
        assert words in text
    facts = place.json("collections", "info", "album")["collection"]
    assert facts["state"]["kind"] == "exact"
    assert facts["index"] == "auto"
    assert sum(facts["bytes"].values()) > 0


def test_search_by_score_group_and_examples(place: Place) -> None:
    near = place.json("search", "-c", "album", "rocket-0.jpg", "--min-score", 0.93)[0]["hits"]
    assert [hit["id"] for hit in near] == ["rocket-0.jpg", "rocket-1.jpg"]
    grouped = place.json("search", "-c", "album", "rocket-0.jpg", "-k", 2, "--group-by", "label", "--group-size", 2)
    assert [len(group["hits"]) for group in grouped[0]["groups"]] == [2, 2]
    assert grouped[0]["groups"][0]["value"] == "rocket"
    assert "rocket" in place.run("search", "-c", "album", "rocket-0.jpg", "--group-by", "label").stdout
    both = ("search", "-c", "album", "rocket-0.jpg", "chelsea-0.jpg", "--unlike", "rocket-1.jpg", "-k", 1)
    assert place.json(*both)[0]["hits"][0]["label"] == "chelsea"
    together = place.json("search", "-c", "album", "--id", "rocket-0.jpg", "--together", "-k", 1)
    assert together[0]["hits"][0]["id"] == "rocket-1.jpg"


def test_duplicates_as_a_table_csv_json_and_pictures(place: Place) -> None:
    command = ("collections", "duplicates", "album", "--min-score", 0.93)
    done = place.run(*command)
    assert "rocket-1.jpg" in done.stdout
    assert "17 items, 8 groups, 9 spare at a score of 0.93" in done.stderr
    found = place.json(*command)
    assert [item["id"] for item in found["groups"][0]] == ["<b>.jpg", "coffee-0.jpg", "coffee-1.jpg"]
    assert (found["exact"], found["truncated"]) == (True, 0)
    done = place.run(*command, "--csv", "out.csv", "--html", "out.html")
    assert not done.stdout
    with (place.folder / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows if row["group"] == "1"] == ["<b>.jpg", "coffee-0.jpg", "coffee-1.jpg"]
    page = (place.folder / "out.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 17
    assert "&lt;b&gt;.jpg" in page
    assert "<b>.jpg" not in page
    assert "8 groups" in page
    only = place.json(*command, "--where", "label = 'rocket'", "--max-neighbours", 5)
    assert (only["items"], len(only["groups"])) == (2, 1)


def test_a_page_without_the_pictures_says_so(place: Place, tmp_path: Path) -> None:
    elsewhere = Place(place.server, tmp_path)
    elsewhere.run("collections", "duplicates", "album", "--min-score", 0.93, "--html", "out.html")
    page = (tmp_path / "out.html").read_text()
    assert page.count("no preview") == 17
    assert "<img" not in page


def test_duplicates_without_a_server(place: Place, tmp_path: Path) -> None:
    command = ("collections", "duplicates", "album", "--min-score", 0.93, "--data")
    held = place.run(*command, "data", status=1).stderr
    assert "in use by process" in held
    assert "not the --data directory" in place.run(*command, tmp_path, status=1).stderr
    assert list(tmp_path.iterdir()) == []
    online = place.json(*command[:-1])
    assert place.server.stop() == 0
    assert place.json(*command, "data") == online
    missing = place.run("collections", "duplicates", "nowhere", "--data", "data", status=1)
    assert "no collection 'nowhere'" in missing.stderr
