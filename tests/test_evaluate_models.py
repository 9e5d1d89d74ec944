"Saved classifiers, baselines and errors; and the stage as a whole on a small workbench."

import json
import shutil

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from ftnb.evaluate import baselines, errors, predict
from ftnb.foundation.errors import BadInput
from ftnb.foundation.files import read_json, write_json
from ftnb.foundation.pictures import Picture
from ftnb.foundation.records import Workbench
from ftnb.foundation.settings import settings

LABELS = ["billing", "cards", "limits"]
WORDS = {
    "billing": ["invoice", "refund", "charge"],
    "cards": ["card", "pin", "chip"],
    "limits": ["limit", "maximum", "cap"],
}


def rows(seed, n, grouped=True):
    "Rows in groups of two; one word of the label among others."
    rng = np.random.default_rng(seed)
    truth = np.repeat(rng.integers(0, 3, n // 2), 2)
    other = ["my", "the", "why", "please", "is", "it", "too", "high"]
    texts = [
        " ".join([*rng.choice(other, rng.integers(2, 9)), rng.choice(WORDS[LABELS[k]])])
        for k in truth
    ]
    return predict.Rows(
        [f"{seed}-{i}" for i in range(n)],
        texts,
        truth,
        LABELS,
        np.arange(n) // 2 if grouped else None,
        {"channel": list(rng.choice(["app", "mail"], n))},
    )


def test_an_unseen_label_and_no_validation_rows():
    train, none, test = rows(0, 120), rows(1, 0), rows(2, 60)
    train = predict.Rows(train.ids, train.texts, np.minimum(train.truth, 1), LABELS)
    for make in (baselines.majority, baselines.tfidf):
        p = make(train, none, test).probabilities
        assert (p > 0).all() and p[:, 2].max() < 0.2
    on_validation, _ = baselines.on_both(baselines.tfidf, train, none, test)
    assert on_validation is None


def test_one_label_is_refused():
    train = predict.Rows(["1", "2"], ["a b", "c d"], np.zeros(2, int), LABELS)
    with pytest.raises(BadInput, match="only one label"):
        baselines.tfidf(train, rows(1, 0), rows(2, 10))


def test_texts_without_words_still_work():
    train = predict.Rows([str(i) for i in range(20)], ["?!", "…"] * 10, np.arange(20) % 2, LABELS)
    assert baselines.tfidf(train, rows(1, 0), rows(2, 10)).probabilities.shape == (10, 3)


def test_strongest_does_not_look_at_test_rows():
    validation = rows(3, 40)
    good, lucky = np.eye(3)[validation.truth] * 0.9 + 0.1 / 3, np.full((40, 3), 1 / 3)
    assert (
        baselines.strongest(
            {
                "a": predict.Predictions("a", validation, lucky),
                "b": predict.Predictions("b", validation, good),
            }
        )
        == "b"
    )


def test_rows_with_damage_are_named(tmp_path):
    file = tmp_path / "test.jsonl"
    file.write_text('{"id": 1, "text": "a", "label": "unknown"}\n')
    with pytest.raises(BadInput, match="unknown"):
        predict.read_rows(file, LABELS)


def test_many_labels_give_pairs_not_a_picture():
    rng, names = np.random.default_rng(0), [f"intent {i:02}" for i in range(77)]
    many = predict.Rows(
        [str(i) for i in range(500)], ["words here"] * 500, rng.integers(0, 77, 500), names
    )
    p = predict.Predictions("m", many, rng.dirichlet(np.ones(77), 500))
    assert not isinstance(errors.confusion_picture(p), Picture)
    assert list(errors.confused_pairs(p).frame.columns) == [
        "label",
        "taken for",
        "rows",
        "of",
        "such as",
    ]
    assert len(errors.slice_picture(errors.slice_results(p, least=5), p.right.mean()).svg) < 200_000


def test_hostile_text_is_escaped():
    bad = predict.Rows(["1", "2"], ["<script>alert(1)</script> | x", "b"], np.array([0, 1]), LABELS)
    p = predict.Predictions("m", bad, np.array([[0.1, 0.8, 0.1], [0.1, 0.8, 0.1]]))
    assert "<script>" not in errors.worst_errors(p)._repr_mimebundle_()["text/html"]


# the stage


def tiny_classifier(folder, labels):
    "A classifier with random weights, in transformers' format."
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from ftnb.train.encoders import local_encoder

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: i for i, name in enumerate(labels)}
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(local_encoder("embedded")).save_pretrained(folder)


@pytest.fixture(scope="module")
def handed_on(tmp_path_factory):
    "A workbench on which prepare and train have handed on what evaluate needs."
    root = tmp_path_factory.mktemp("bench")
    prepare, train = Workbench.open("prepare", root), Workbench.open("train", root)
    for seed, (split, n) in enumerate({"train": 200, "validation": 60, "test": 120}.items()):
        r = rows(seed + 10, n)
        lines = [
            {
                "id": r.ids[i],
                "text": r.texts[i],
                "label": LABELS[r.truth[i]],
                "group": f"g{r.groups[i]}",
                "channel": r.columns["channel"][i],
            }
            for i in range(n)
        ]
        (prepare.folder / "examples").mkdir(exist_ok=True)
        (prepare.folder / "examples" / f"{split}.jsonl").write_text(
            "".join(json.dumps(x) + "\n" for x in lines)
        )
    write_json(prepare.folder / "labels.json", LABELS)
    prepare.hand_on("examples", "examples", "ftnb/examples/1")
    prepare.hand_on("labels", "labels.json", "ftnb/labels/1")
    tiny_classifier(train.folder / "model", LABELS)
    train.hand_on("model", "model", "ftnb/model/1")
    return root


def run_stage(handed_on, folder, monkeypatch, **parameters):
    "Run the stage on a copy of the workbench, in a kernel of its own."
    shutil.copytree(handed_on, folder)
    monkeypatch.setenv("FTNB_WORKBENCH", str(folder))
    file = settings().stages / "evaluate.ipynb"
    nb = nbformat.read(file, 4)
    at = next(i for i, cell in enumerate(nb.cells) if "parameters" in cell.metadata.get("tags", []))
    few = {
        "replicates": 200,
        "permutations": 200,
        "baselines": ["majority", "tfidf"],
        "threads": 1,
    } | parameters
    nb.cells.insert(
        at + 1, nbformat.v4.new_code_cell("\n".join(f"{k} = {v!r}" for k, v in few.items()))
    )
    NotebookClient(nb, timeout=300, resources={"metadata": {"path": str(file.parent)}}).execute()
    return nb, folder / "evaluate"


def test_the_stage(handed_on, tmp_path, monkeypatch):
    nb, found = run_stage(handed_on, tmp_path / "one", monkeypatch, slice_columns=["channel"])
    facts, record = read_json(found / "facts.json"), read_json(found / "record.json")
    assert set(record["outputs"]) == {"metrics", "predictions", "errors", "baseline_predictions"}
    assert (
        facts == read_json(found / "metrics.json")
        and facts["rows"] == 120
        and facts["groups"] == 60
    )
    assert facts["best_baseline"] == "tfidf" and len(facts["comparisons"]) == 6
    assert {"accuracy", "macro_f1", "auc", "log_loss", "calibration_error"} <= facts["metrics"][
        "model"
    ].keys()
    for metric in facts["metrics"]["model"].values():
        assert metric["low"] <= metric["estimate"] <= metric["high"]
    worse = next(
        c for c in facts["comparisons"] if c["metric"] == "accuracy" and c["baseline"] == "tfidf"
    )
    assert (
        worse["verdict"] == "worse" and "worse than TF-IDF" in worse["sentence"]
    )  # random weights must not be sold
    said = [json.loads(line) for line in (found / "predictions.jsonl").read_text().splitlines()]
    assert np.mean([x["label"] == x["predicted"] for x in said]) == pytest.approx(
        facts["metrics"]["model"]["accuracy"]["estimate"]
    )
    assert any(s["slicing"] == "channel" for s in facts["slices"])
    assert len((found / "errors.jsonl").read_text().splitlines()) == sum(
        x["label"] != x["predicted"] for x in said
    )
    blocks = read_json(found / "front.json")
    assert "worse" in blocks[0]["sentence"] and blocks[0]["figure"]
    _, again = run_stage(handed_on, tmp_path / "two", monkeypatch, slice_columns=["channel"])
    for name in ("metrics.json", "predictions.jsonl", "errors.jsonl", "front.json"):
        assert (found / name).read_bytes() == (again / name).read_bytes()


def test_the_stage_without_baselines(handed_on, tmp_path, monkeypatch):
    _, found = run_stage(handed_on, tmp_path / "none", monkeypatch, baselines=[], slice_columns=[])
    facts = read_json(found / "facts.json")
    assert (
        facts["comparisons"] == []
        and facts["best_baseline"] is None
        and read_json(found / "front.json")
    )


def test_a_misspelt_slice_column_is_said_before_the_work(handed_on, tmp_path, monkeypatch):
    with pytest.raises(Exception, match="did you mean 'channel'"):
        run_stage(handed_on, tmp_path / "typo", monkeypatch, slice_columns=["chanel"])
