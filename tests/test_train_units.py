"Contract, base models, order of rows, recipe: the parts of a training."
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from ftnb.foundation.errors import BadInput
from ftnb.places.contract import (
    CHANNEL_NAME,
    JOB_NAME,
    Job,
    JobFolders,
    as_strings,
    lay_out,
    metric_line,
    read_metric_line,
    sm_environment,
)
from ftnb.train.batches import EpochBatches, read_examples
from ftnb.train.classifier import Recipe, class_weights, recipe_from
from ftnb.train.encoders import embedded_encoder, local_encoder, tensor_table
from ftnb.train.tracking import run_name, track_training


@settings(deadline=None)
@given(st.text(max_size=70))
def test_names_are_ascii_as_sagemaker_wants_them(name):
    if JOB_NAME.fullmatch(name):
        assert name.isascii() and len(name) <= 63 and name[0] != "-" != name[-1]
    if CHANNEL_NAME.fullmatch(name): assert name.isascii() and "/" not in name and len(name) <= 64


@pytest.mark.parametrize(
    "values, says",
    [
        ({"name": "a/b"}, "job names"),
        ({"name": ""}, "job names"),
        ({"channels": {"../x": "y"}}, "channel name"),
        ({"channels": {"..": "y"}}, "channel name"),
        ({"hyperparameters": {"a b": 1}}, "hyperparameter name"),
        ({"hyperparameters": {"a": "x" * 2501}}, "2500"),
        ({"hyperparameters": {f"p{i}": 1 for i in range(101)}}, "100"),
        ({"channels": {f"c{i}": "y" for i in range(21)}}, "20"),
    ],
)
def test_what_sagemaker_would_refuse_is_refused(values, says):
    with pytest.raises(BadInput, match=says): Job(**{"name": "j", "module": "m"} | values)


def test_the_contract_s_files(tmp_path):
    (tmp_path/"folder").mkdir()
    (tmp_path/"folder"/"a.txt").write_text("a")
    (tmp_path/"b.txt").write_text("b")
    job = Job(
        "j-1",
        "m",
        {"x": 0.5, "s": "1e5", "none": None},
        {"one": tmp_path / "folder", "two": tmp_path / "b.txt"},
    )
    folders = JobFolders(tmp_path/"ml")
    (folders.model).mkdir(parents=True)
    (folders.model/"old").write_text("from before")
    lay_out(job, folders)
    config = {p.name: json.loads(p.read_text()) for p in folders.config.iterdir()}
    assert config["hyperparameters.json"] == {"x": "0.5", "s": "1e5", "none": "null"}
    assert config["inputdataconfig.json"]["one"]["TrainingInputMode"] == "File"
    assert config["resourceconfig.json"]["hosts"] == ["algo-1"]
    assert (folders.channel("one") / "a.txt").read_text() == "a" and (
        folders.channel("two") / "b.txt"
    ).read_text() == "b"
    assert not (folders.model/"old").exists()
    env = sm_environment(job, folders)
    assert env["SM_CHANNEL_ONE"] == str(folders.channel("one")) and json.loads(
        env["SM_HPS"]
    ) == as_strings(job.hyperparameters)
    lay_out(job, folders)  # links to data are removed, the data isn't
    assert (tmp_path/"folder"/"a.txt").exists()


names = st.from_regex(r"[a-z][a-z_0-9]{0,20}", fullmatch=True)


@settings(deadline=None)
@given(
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    st.dictionaries(names, st.floats(-1e6, 1e6), max_size=5),
)
def test_metric_lines_are_read_back(done, total, metrics):
    parsed = read_metric_line(metric_line("step", done, total, **metrics))
    assert parsed is not None
    what, d, t, read = parsed
    assert (what, d, t) == ("step", done, total) and read.keys() == metrics.keys()
    assert all(np.isclose(read[k], v, rtol=1e-5, atol=1e-12) for k, v in metrics.items())


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_line_may_be_said(line): read_metric_line(line)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=300),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.integers(0, 5),
    st.integers(1, 9),
)
def test_every_row_once_in_an_order_of_seed_and_epoch(lengths, size, seed, epoch, window):
    def order():
        batches = EpochBatches(lengths, size, seed, window)
        batches.set_epoch(epoch)
        return batches
    got = list(order())
    assert sorted(sum(got, [])) == list(range(len(lengths)))
    assert got == list(order()) and len(got) == len(order()) and max(map(len, got)) <= size


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=80))
def test_balanced_weights_are_scikit_learn_s(y):
    y = np.array(y)
    ours, seen = class_weights(y, 7), np.unique(y)
    assert np.allclose(ours[seen], compute_class_weight("balanced", classes=seen, y=y))
    assert np.isclose(ours[y].mean(), 1) and ours.sum() == pytest.approx(ours[seen].sum())


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": "0"},
        {"epochs": "2.0"},
        {"learning_rate": "nan"},
        {"learning_rate": "0"},
        {"learning_rate": "fast"},
        {"precision": "float16"},
        {"seed": "-1"},
        {"label_smoothing": "0.9"},
        {"epoch": "1"},
        {"batch_size": ""},
    ],
)
def test_wrong_hyperparameters(wrong):
    with pytest.raises(BadInput): recipe_from(wrong)


def test_a_recipe_survives_the_way_through_strings():
    from dataclasses import asdict
    recipe = Recipe(epochs=3, learning_rate=1 / 3, class_weights="balanced", seed=2**32 - 1)
    assert recipe_from(as_strings(asdict(recipe))) == recipe


def table_bytes(table: dict, body: bytes) -> bytes:
    head = json.dumps(table).encode()
    return struct.pack("<Q", len(head)) + head + body


GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234",
        struct.pack("<Q", 10**12),
        struct.pack("<Q", 50) + b"{",
        struct.pack("<Q", 2) + b"[]",
        table_bytes(GOOD, b"1234567"),
        table_bytes(GOOD, b"123456789"),
        table_bytes({"a": 1}, b""),
        table_bytes({"a": {}}, b""),
    ],
)
def test_damaged_weights_are_told_from_their_header(tmp_path, content):
    (tmp_path/"model.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match="damaged"): tensor_table(tmp_path/"model.safetensors")


def test_whole_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(
        table_bytes(GOOD | {"__metadata__": {"format": "pt"}}, b"12345678")
    )
    assert list(tensor_table(tmp_path/"model.safetensors")) == ["a"]


@pytest.mark.parametrize(
    "model, revision, says",
    [
        ("org/model", None, "not pinned"),
        ("org/model", "main", "not pinned"),
        ("org/model", "v1.0", "not pinned"),
        ("org/model", "A" * 40, "not pinned"),
        ("/no/such/folder", None, "no such model folder"),
        ("", None, "model"),
        ("../nowhere", None, "no such model folder"),
    ],
)
def test_base_models_that_are_refused(model, revision, says, tmp_path):
    with pytest.raises(BadInput, match=says): local_encoder(model, revision, cache=tmp_path)


def test_an_embedded_model_that_was_changed_is_refused(monkeypatch):
    monkeypatch.setattr("ftnb.train.encoders.EMBEDDED_SHA256", "0" * 64)
    with pytest.raises(BadInput, match="not the published one"): embedded_encoder()


@pytest.mark.parametrize(
    "line, says",
    [
        ("[]", "text and label"),
        ('{"text": 1, "label": "a"}', "text and label"),
        ("{", "JSON"),
        ('{"text": "x"}', "text and label"),
    ],
)
def test_examples_with_a_bad_line(tmp_path, line, says):
    (tmp_path/"x.jsonl").write_text('{"text": "x", "label": "a"}\n' + line + "\n")
    with pytest.raises(BadInput, match="line 2") as e: read_examples(tmp_path, ["a"])
    assert says in str(e.value)


def test_names_of_runs_say_what_differs():
    assert run_name({"a": 1, "learning_rate": 1e-5}, {"a": 1, "learning_rate": 3e-4}) == "lr=1e-05"


def test_tracking_never_fails_a_training():
    with pytest.warns(UserWarning, match="not tracked"):
        assert track_training("n", {}, {"steps": [], "epochs": []}, {}, uri="nonsense://x") == ""


def test_the_light_modules_stay_light():
    import subprocess
    import sys
    code = (
        "import sys; import ftnb.train.classifier, ftnb.train.encoders, ftnb.train.curves;"
        "import ftnb.train.tracking, ftnb.places.local;"
        "bad = {'torch', 'transformers', 'mlflow', 'datasets'} & set(sys.modules);"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
