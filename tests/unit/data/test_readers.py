import bz2
import gzip
import json
import lzma
import os
import re

import pytest
from datasets import Features, Value

from llm_unlearn.data import readers
from llm_unlearn.data.source_files import load_source
from llm_unlearn.errors import InputError

OPEN = {"": open, ".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
ROWS = [{"text": "Good, “really” good.", "label": "pos"}, {"text": "Bad.\nVery bad.", "label": "neg"}]


def write(path, content):
    if not isinstance(content, (str, bytes)):
        content = "".join(json.dumps(row) + "\n" for row in content)
    with OPEN.get(path.suffix, open)(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return path


def contents(rows, ext):
    if ext == ".json":
        return json.dumps(rows, indent=1)
    if ext in (".csv", ".tsv"):
        separator = "," if ext == ".csv" else "\t"
        lines = [separator.join(f'"{value}"' for value in row.values()) for row in rows]
        return "\n".join([separator.join(rows[0]), *lines]) + "\n"
    return rows


@pytest.mark.parametrize("compression", ["", ".gz", ".xz", ".bz2"])
@pytest.mark.parametrize("ext", [".jsonl", ".ndjson", ".json", ".csv", ".tsv"])
def test_every_text_format(tmp_path, ext, compression):
    path = write(tmp_path / f"rows{ext}{compression}", contents(ROWS, ext))
    for loaded in (load_source(None, [str(path)]), load_source(str(path)), load_source(None, path)):
        assert loaded.to_list() == ROWS
        assert loaded.features == Features({"text": Value("string"), "label": Value("string")})


def test_zstandard(tmp_path, monkeypatch):
    zstandard = pytest.importorskip("zstandard")
    raw = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    path = write(tmp_path / "rows.jsonl.zst", zstandard.ZstdCompressor().compress(raw))
    assert load_source(None, [path]).to_list() == ROWS


def test_zstandard_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "zstandard", None)
    with pytest.raises(InputError, match="pip install zstandard"):
        load_source(None, [write(tmp_path / "rows.jsonl.zst", b"?")])


def test_a_json_file_may_hold_json_lines(tmp_path):
    assert load_source(None, [write(tmp_path / "rows.json", ROWS)]).to_list() == ROWS


def test_values_are_not_reinterpreted(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\nNA,01\n2020-01-01,1.50\n")
    expected = [{"text": "NA", "label": "01"}, {"text": "2020-01-01", "label": "1.50"}]
    assert load_source(None, [path]).to_list() == expected
    path = write(tmp_path / "a.jsonl", expected)
    assert load_source(None, [path]).to_list() == expected


def test_csv_with_byte_order_mark_long_field_and_quoted_newline(tmp_path):
    long = "word " * 40_000
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbf" + f'text,label\r\n"{long}",a\r\n"x\ny, z",b\r\n'.encode())
    assert load_source(None, [path]).to_list() == [{"text": long, "label": "a"}, {"text": "x\ny, z", "label": "b"}]


@pytest.mark.parametrize("compression", ["", ".xz", ".gz", ".bz2"])
def test_malformed_json_line(tmp_path, compression):
    lines = [json.dumps(ROWS[0]), "", '{"text": "unfinished', json.dumps(ROWS[1])]
    path = write(tmp_path / f"a.jsonl{compression}", "\n".join(lines))
    with pytest.raises(InputError) as raised:
        load_source(None, [path])
    message = str(raised.value)
    assert re.search(rf"{re.escape(str(path))}, line 3: .*JSON.*column 10\b", message)


def test_malformed_json_array_and_rows_that_are_no_objects(tmp_path):
    with pytest.raises(InputError, match=r"a\.json, line 2: .*valid JSON"):
        load_source(None, [write(tmp_path / "a.json", '[{"text": "x", "label": "y"},\n oops]')])
    with pytest.raises(InputError, match=r'b\.jsonl, line 1: .*object.*"just a string"'):
        load_source(None, [write(tmp_path / "b.jsonl", '"just a string"\n')])
    with pytest.raises(InputError, match=r"c\.json, row 1: .*object.*\b3\b"):
        load_source(None, [write(tmp_path / "c.json", "[3]")])


def test_malformed_csv(tmp_path):
    with pytest.raises(InputError, match=r"a\.csv, line 3: 3 fields.*\b2 \(text, label\)"):
        load_source(None, [write(tmp_path / "a.csv", "text,label\nx,y\nWell, yes,y\n")])
    with pytest.raises(InputError, match=r"b\.csv, line 2: .*end of data"):
        load_source(None, [write(tmp_path / "b.csv", 'text,label\n"never closed,y\n')])


def test_not_utf8(tmp_path):
    with pytest.raises(InputError, match=r"a.csv, line 2: not UTF-8"):
        load_source(None, [write(tmp_path / "a.csv", "text,label\ncafé,y\n".encode("latin-1"))])


@pytest.mark.parametrize("compression", [".xz", ".gz", ".bz2"])
def test_cut_off_or_mislabelled_compression(tmp_path, compression):
    path = write(tmp_path / f"a.jsonl{compression}", [{"text": os.urandom(40).hex(), "label": "x"}] * 3000)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be decompressed"):
        load_source(None, [path])
    path.write_bytes(b"plain text all along")
    with pytest.raises(InputError, match="cannot be decompressed.*line 0"):
        load_source(None, [path])


def test_unknown_ending_and_folder_as_file(tmp_path):
    with pytest.raises(InputError, match=r"rows\.xlsx .*\.csv.*\.parquet"):
        load_source(None, [write(tmp_path / "rows.xlsx", b"x")])
    with pytest.raises(InputError, match=r"^data\.files: .*is a folder"):
        load_source(None, [tmp_path])
