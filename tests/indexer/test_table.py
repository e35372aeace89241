"""Lists: CSV, TSV and Parquet rows become entries."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from likewise.errors import InvalidArgument
from likewise_indexer.sources import Columns, open_source


def test_csv_columns_become_id_label_and_attributes(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text(
        '\ufeffpath,id,label,year,zip,score,note\nimg/a.jpg,one,cat,2020,01234,0.5,"x, y"\nimg/b.jpg,two,,-3,,1e5,\n',
        encoding="utf-8",
    )
    first, second = open_source(file)
    assert (first.id, first.label, first.path) == ("one", "cat", tmp_path / "img/a.jpg")
    assert first.uri == str(tmp_path / "img/a.jpg")
    assert first.attributes == {"year": 2020, "zip": "01234", "score": 0.5, "note": "x, y"}
    assert (second.label, second.attributes) == (None, {"year": -3, "score": "1e5"})
    assert open_source(file).count() == 2


def test_named_columns_and_chosen_attributes(tmp_path: Path) -> None:
    file = tmp_path / "list.tsv"
    file.write_text("file\tkey\tbreed\tyear\nx/a.jpg\t7\tpug\t2020\n")
    columns = Columns(path="file", id="key", label="breed", attributes=[])
    [entry] = open_source(file, columns=columns)
    assert (entry.id, entry.label, entry.attributes) == ("7", "pug", {})


def test_ids_default_to_the_path_and_labels_may_come_from_folders(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("path,label\ncat/a.jpg,ignored\n/elsewhere/dog/b.jpg,ignored\n")
    entries = list(open_source(file, label_from="dir"))
    assert [entry.id for entry in entries] == ["cat/a.jpg", "/elsewhere/dog/b.jpg"]
    assert [entry.label for entry in entries] == ["cat", "dog"]
    assert [str(entry.path) for entry in entries] == [f"{tmp_path}/cat/a.jpg", "/elsewhere/dog/b.jpg"]
    assert [(e.label, e.attributes) for e in open_source(file, label_from="none")] == [(None, {})] * 2


def test_parquet_keeps_types(tmp_path: Path) -> None:
    file = tmp_path / "list.parquet"
    columns = {
        "path": ["a.jpg", "b.jpg"],
        "label": [3, None],
        "year": [2020, 2021],
        "score": [0.5, float("nan")],
        "taken": [dt.date(2020, 1, 2), None],
        "tags": [["x", "y"], []],
        "text": ["007", "b"],
    }
    parquet.write_table(pa.table(columns), file)
    first, second = open_source(file)
    assert (first.id, first.label, second.label) == ("a.jpg", "3", None)
    assert first.attributes == {"year": 2020, "score": 0.5, "taken": "2020-01-02", "tags": ["x", "y"], "text": "007"}
    assert second.attributes == {"year": 2021, "tags": [], "text": "b"}
    assert open_source(file).count() == 2


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "list.parquet"
    file.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidArgument, match=r"pip install 'likewise\[indexer\]'"):
        open_source(file)


def test_rows_without_a_path_are_reported_and_the_others_kept(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("path,id\na.jpg,1\n,2\nc.jpg,\nd.jpg\n")
    entries = list(open_source(file))
    assert [entry.error is None for entry in entries] == [True, False, False, False]
    assert "row 2 of list.csv has no path" in str(entries[1].error)
    assert "row 3 of list.csv has no id" in str(entries[2].error)
    assert entries[2].id == "row 3"


@pytest.mark.parametrize(
    ("columns", "label_from", "said"),
    [
        (None, "csv", "no column 'label' but 'path', 'kind'"),
        (Columns(path="file"), "auto", "no column 'file' but"),
        (Columns(attributes=["year"]), "auto", "no column 'year' but"),
    ],
)
def test_missing_columns_are_named_with_those_there_are(
    tmp_path: Path, columns: Columns | None, label_from: str, said: str
) -> None:
    file = tmp_path / "list.csv"
    file.write_text("path,kind\na.jpg,x\n")
    with pytest.raises(InvalidArgument, match=said):
        open_source(file, columns=columns, label_from=label_from)


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"path\na.jpg\n\xff\xfe\n")
    with pytest.raises(InvalidArgument, match="is no UTF-8 list"):
        list(open_source(tmp_path / "list.csv"))
    (tmp_path / "list.parquet").write_bytes(b"path\na.jpg\n")
    with pytest.raises(InvalidArgument, match="as Parquet"):
        open_source(tmp_path / "list.parquet")
