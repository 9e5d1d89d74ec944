"Files as rows: every row of real and broken files is accounted for, in bounded memory."
import csv
import gzip
import io
import json
import random
import subprocess
import sys

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftnb.data.delimited import Dialect, records
from ftnb.data.lines import Recoded, lines
from ftnb.data.sources import BadRow, HubSource, Row, open_source
from ftnb.foundation.errors import BadInput


def read(path, **options):
    rows = list(open_source(path, **options))
    return [r for r in rows if isinstance(r, Row)], [r for r in rows if isinstance(r, BadRow)]


def write(folder, name, content):
    path = folder/name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Real files, counted by readers that share no code with ours

def test_banking77(public_data):
    for name, n in (("train.csv", 10_003), ("test.csv", 3_080)):
        good, bad = read(public_data/"banking77"/name)
        with open(public_data/"banking77"/name, newline="", encoding="utf-8") as f:
            theirs = list(csv.DictReader(f))
        assert len(good) == len(theirs) == n and not bad
        same = [{k: v.replace("\r\n", "\n") for k, v in t.items()} for t in theirs]
        assert [r.values for r in good] == same


def test_line_numbers_are_true(public_data):
    path = public_data/"banking77"/"train.csv"
    physical = path.read_bytes().split(b"\n")
    good, _ = read(path)
    for row in random.Random(0).sample(good, 300):
        first = row.values["text"].split("\n")[0].encode()
        assert first.replace(b'"', b"") in physical[row.line - 1].replace(b'"', b"").rstrip(b"\r")


def test_toxigen(public_data):
    path = public_data/"toxigen_annotated"/"toxigen.json"
    good, bad = read(path)
    theirs = json.loads(path.read_text(encoding="utf-8"))
    assert [r.values for r in good] == theirs and not bad and len(good) == 6_514
    text = path.read_bytes().split(b"\n")
    assert all(b"{" in text[r.line - 1] for r in good)


def test_davidson(public_data):
    path = public_data/"davidson_hate_offensive"/"labeled_data.csv.gz"
    good, bad = read(path)
    theirs = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert len(good) == len(theirs) == 24_783 and not bad
    assert [r.values["tweet"] for r in good] == [t.replace("\r\n", "\n") for t in theirs.tweet]
    assert open_source(path).columns[0] == "unnamed_1"


def test_hatexplain_has_no_quoting(public_data):
    path = public_data/"hatexplain"/"train_text_label.tsv.gz"
    good, bad = read(path)
    theirs = [line.split("\t")
              for line in gzip.open(path, "rt", encoding="utf-8", newline="\n").read().split("\n")
              if line]
    assert [[r.values["label"], r.values["text"]]
            for r in good] == theirs[1:] and not bad and len(good) == 14_936


def test_a_table_without_quoting_keeps_the_rows_that_pandas_loses(tmp_path):
    rows = [f'{i}\t{quote}text number {i}' for i,
            quote in enumerate(["", '"', "", '" ', '""', "'", ""] * 50)]
    path = write(tmp_path, "x.tsv", "label\ttext\n" + "\n".join(rows))
    good, bad = read(path)
    assert [f"{r.values['label']}\t{r.values['text']}" for r in good] == rows and not bad
    assert open_source(path).files[0].dialect.quote == "" and len(pd.read_csv(path,
                                                                              sep="\t")) < len(rows)


def test_identity_templates(public_data):
    folder = public_data/"identity_templates_en"
    for name, n in (("en_sentence_templates.csv.gz", 76_564),
                    ("toxicity_fuzzed_testset.csv", 1_492),
                    ("toxicity_nonfuzzed_testset.csv", 1_492), ("madlibber_words.csv", 169)):
        good, bad = read(folder/name)
        assert len(good) + len(bad) == len(pd.read_csv(folder/name, keep_default_na=False)) == n
        assert not bad


def test_adult(public_data):
    for name, n in (("adult.data.gz", 32_561), ("adult.test.gz", 16_281)):
        source = open_source(public_data/"adult"/name)
        assert source.columns[0] == "age" and source.columns[-1] == "outcome"
        good, bad = read(public_data/"adult"/name)
        assert len(good) == n and not bad
        assert not any(v.startswith(" ") for r in good[:500] for v in r.values.values())


def test_every_public_table_is_read_whole(public_data):
    for path in [public_data/"crows_pairs"/"crows_pairs_anonymized.csv",
                 public_data/"hatecheck_en"/"test_suite_cases.csv",
                 public_data/"mlma_hate_en"/"en_dataset_with_stop_words.csv"]:
        good, bad = read(path)
        with open(path, newline="", encoding="utf-8-sig") as f:
            n = sum(1 for row in csv.reader(f) if row) - 1
        assert len(good) == n and not bad, path.name
    for path in [public_data/"gsm8k", public_data/"bbq_subset", public_data/"dialogsum"]:
        good, bad = read(path)
        assert good and not bad


# Generated ones

text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r"), max_size=30)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(text, text, text), max_size=12), st.sampled_from(",\t;|"),
       st.integers(1, 50))
def test_what_csv_writes_is_read_back(rows, delimiter, block):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(rows)
    source = lines(io.BytesIO(out.getvalue().encode()), block=block)
    got = [tuple(r.fields) for r in records(source, Dialect(delimiter))]
    assert got == [r for r in rows if any(r)] or got == rows


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 40))
def test_no_bytes_are_lost_in_lines(data, block):
    got = [line.content for line in lines(io.BytesIO(data), limit=10_000, block=block)]
    whole = data.split(b"\n")
    if whole[-1] == b"": whole.pop()
    assert got == [w.removesuffix(b"\r") for w in whole]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(['a,b', '"a",b', '"a\nb",c', '"a,b', 'a"b,c', '"a"b",c', '',
                                 'a,b,c', 'é,"', '"",""']),
                max_size=15))
def test_every_line_of_a_broken_table_is_in_one_record(parts):
    data = "\n".join(parts).encode()
    physical = data.decode().split("\n")
    starts = [r.line for r in records(lines(io.BytesIO(data)), Dialect())]
    assert starts == sorted(set(starts)), "no line begins two records"
    assert all(physical[i - 1].strip() for i in starts)
    first = next((i for i, part in enumerate(physical, 1) if part.strip()), None)
    assert (starts[0] if starts else None) == first


@settings(max_examples=100, deadline=None)
@given(text, st.sampled_from(["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "gb18030"]),
       st.integers(1, 7))
def test_recoding_does_not_depend_on_blocks(some, codec, block):
    stream = io.BytesIO(some.encode(codec))
    recoded, got = Recoded(stream, codec), b""
    while chunk := recoded.read(block): got += chunk
    assert got.decode() == some


json_value = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
                          lambda x: st.lists(x, max_size=3)
                          | st.dictionaries(st.text(max_size=4), x, max_size=3), max_leaves=6)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), json_value), max_size=6),
       st.sampled_from([None, 0, 2]), st.booleans())
def test_json_arrays(tmp_path_factory, rows, indent, wrapped):
    written = json.dumps({"v": 1, "data": rows} if wrapped else rows, indent=indent,
                         ensure_ascii=False)
    if any(0xd800 <= ord(c) <= 0xdfff for c in written): return
    path = tmp_path_factory.mktemp("json")/"x.json"
    path.write_text(written, encoding="utf-8")
    good, bad = read(path)
    assert [r.values for r in good] == rows and not bad


def test_bad_lines_of_jsonl_each_get_a_reason(tmp_path):
    content = [b'{"text": "ok"}', b'\xff\xfe\x80', b'{"text": NaN}', b'[1]', b'{"a": 1, "a": 2}',
               b'{"text": "x', b'7',
               b'{"text": "a\x00b"}', b'', b'{"text": "' + b"x" * 5000 + b'"}', b'[' * 5000,
               b'{"text": "last"}']
    good, bad = read(write(tmp_path, "x.jsonl", b"\n".join(content)), max_line_bytes=4000)
    assert [r.line for r in good] == [1, 12]
    assert {b.line: b.reason for b in bad} == {
        2: "undecodable", 3: "not JSON", 4: "not an object", 5: "not JSON", 6: "not JSON",
        7: "not an object",
        8: "NUL byte", 10: "too long a line", 11: "too long a line"}


def test_bad_rows_of_csv_each_get_a_reason(tmp_path):
    content = (b'text,label\nok,a\n"never closed,b\nshort\none,two,three\n'
               b'byte \xff\xfe\x81 here,c\na\x00b,d\n'
               b'"two\nlines",e\n' + "ünïcödé,f\n".encode() + b"x" * 9000 + b",g\n\n   \nlast,h")
    good, bad = read(write(tmp_path, "x.csv", content), max_line_bytes=5000)
    assert [(r.line, r.values["label"]) for r in good] == [(2, "a"), (8, "e"), (10, "f"), (14, "h")]
    assert {b.line: b.reason for b in bad} == {3: "broken quoting", 4: "ragged", 5: "ragged",
                                               6: "undecodable", 7: "NUL byte",
                                              11: "too long a line"}


@pytest.mark.parametrize("codec",
                         ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1"])
def test_encodings(tmp_path, codec):
    body = "text,label\n" + "Où est mon café?,bar\nnaïve – “so”,x\n".replace("–"
                                                                             if codec == "latin-1"
                                                                             else "\0", "-") * 20
    if codec == "latin-1": body = body.replace("“", "'").replace("”", "'")
    good, bad = read(write(tmp_path, "x.csv", body.encode(codec)))
    assert len(good) == 40 and not bad and good[0].values == {"text": "Où est mon café?",
                                                              "label": "bar"}


def test_declared_encoding_and_its_bad_rows(tmp_path):
    path = write(tmp_path, "x.csv", "text,label\nПривет как дела,a\n".encode("cp1251"))
    with pytest.raises(BadInput, match="encoding"): open_source(path)
    assert read(path, encoding="cp1251")[0][0].values["text"] == "Привет как дела"
    good, bad = read(write(tmp_path, "y.csv",
                           b"text,label\nok,a\n\xff\xff,b\nlast,c\n"),
                           encoding="shift_jis")
    assert [r.values["text"] for r in good] == ["ok",
                                                "last"] and [b.reason
                                                             for b in bad] == ["undecodable"]
    with pytest.raises(BadInput, match="no encoding is called"):
        open_source(path, encoding="klingon")


def test_old_line_ends_and_headerless(tmp_path):
    assert len(read(write(tmp_path, "mac.csv", "text,label\ra,b\rc,d\r"))[0]) == 2
    path = write(tmp_path, "bare.csv", "one text,a\nanother,b\n")
    assert [r.values
            for r in read(path, column_names=["text", "label"])[0]][0] == {"text": "one text",
                                                                           "label": "a"}


@pytest.mark.parametrize("content", [
    b"PK\x03\x04rest", b"%PDF-1.7", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"", b"\n\n",
    b"text,text\na,b\n", b"\x89PNG\r\n",
    gzip.compress(b"PK\x03\x04rest", mtime=0), gzip.compress(b"text,label\n" * 9999, mtime=0)[:60],
    b"PAR1 and then nothing", b"ARROW1\0\0oops",
    b"version https://git-lfs.github.com/spec/v1\n"])
def test_files_that_are_no_tables(tmp_path, content):
    with pytest.raises(BadInput) as e: list(open_source(write(tmp_path, "x.csv", content)))
    assert e.value.fix and len(str(e.value)) < 400


@pytest.mark.parametrize("content",
                         ['[{"a": 1}, {"a": 2', '[{"a": 1} {"a": 2}]', '[1, 2',
                          '{"a": 1, "b": 2}\n ', '[{"a": "x'])
def test_json_that_breaks_off(tmp_path, content):
    with pytest.raises(BadInput, match="JSON|object"):
        list(open_source(write(tmp_path, "x.json", content)))


def test_missing_things(tmp_path):
    path = write(tmp_path, "train.csv", "text,label\na,b\n")
    with pytest.raises(BadInput, match="did you mean 'label'"):
        open_source(path).require("text", "lable")
    with pytest.raises(BadInput, match="train.csv"): open_source(tmp_path/"tarin.csv")
    with pytest.raises(BadInput, match="no way to read|needs a package"):
        open_source("nonsense://bucket/x.csv")
    (tmp_path/"empty").mkdir()
    with pytest.raises(BadInput, match="no data file"): open_source(tmp_path/"empty")


def values(source): return [r.values for r in source]


def test_folders_globs_and_remote(tmp_path):
    import fsspec
    for i in range(3): write(tmp_path, f"part-{i}.jsonl", f'{{"text": "{i}", "label": "a"}}\n')
    write(tmp_path, "README.md", "not data")
    for path in (tmp_path, f"{tmp_path}/*.jsonl"):
        assert [r.file for r in open_source(path)] == [f"part-{i}.jsonl" for i in range(3)]
    fsspec.filesystem("memory").pipe("/b/x.csv.gz", gzip.compress(b"text,label\na,b\n"))
    assert values(open_source("memory://b/x.csv.gz")) == [{"text": "a", "label": "b"}]


def test_a_saved_dataset(tmp_path):
    import datasets
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).save_to_disk(tmp_path/"set")
    found = values(open_source(tmp_path/"set"))
    assert found == [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


def test_hub_rows_get_their_class_names(monkeypatch):
    import datasets
    features = datasets.Features({"text": datasets.Value("string"),
                                  "label": datasets.ClassLabel(names=["no", "yes"])})
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]},
                                      features=features).to_iterable_dataset()
    asked = {}
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.update(k) or made)
    source = HubSource("owner/set", "", "0" * 40, "train").require("text", "label")
    assert values(source) == [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}]
    assert asked["revision"] == "0" * 40 and asked["streaming"]
    with pytest.raises(BadInput, match="no column"): source.require("txet")


MEASURE = """
import resource, sys
from ftnb.data.sources import open_source, Row
import pyarrow.parquet, pandas
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before, n, bad = peak(), 0, 0
for row in open_source(sys.argv[1]):
    n += isinstance(row, Row); bad += not isinstance(row, Row)
print(n, bad, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.json"])
def test_a_large_file_needs_no_large_memory(tmp_path, name):
    path, rows, long = tmp_path/name, 1_500_000, "x" * 50_000_000
    row = ('{{"text": "text number {0}, ' + "somewhat long " * 13
           + '", "label": "c"}}') if name != "x.csv" else (
        '"text number {0}, ' + "somewhat long " * 13 + '",c')
    with open(path, "w") as f:
        f.write({"x.csv": "text,label\n", "x.jsonl": "", "x.json": "["}[name])
        for i in range(rows):
            f.write(row.format(i) + (",\n" if name == "x.json" else "\n"))
            if i == 1000:
                f.write(f"{long},c\n" if name == "x.csv" else f'{{"text": "{long}", "label": "c"}}'
                        + ",\n" * (name == "x.json")
                        + "\n" * (name == "x.jsonl"))
        if name == "x.json": f.write('{"text": "last", "label": "c"}]')
    assert path.stat().st_size > 300_000_000
    made = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True,
                          text=True, check=True)
    n, bad, megabytes = map(int, made.stdout.split())
    assert n == rows + (name == "x.json") and bad == 1
    assert megabytes < 200, f"{megabytes} MB over what the imports need"
