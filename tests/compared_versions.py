"Report versions with all that they keep, made by hand: for tests of whatever reads versions."
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ftnb.evaluate.predict import Predictions, read_rows, write_predictions
from ftnb.evaluate.summaries import Measuring, plain_facts
from ftnb.foundation.files import sha256, write_json, write_text
from ftnb.foundation.intervals import Interval
from ftnb.foundation.settings import Settings, Stated
from ftnb.study.rows import write_rows
from ftnb.study.syntax import code_hash
from ftnb.study.versions import Version, open_version

LABELS = ["ec2", "iam", "kms", "s3"]
WORDS = "how do i stop the box reset a key rotate my bucket policy again please now".split()
MODULE = "def f(x):\n    return 2 * x\n"


def requests(n: int, seed: int = 0, groups: int = 3) -> list[dict[str, Any]]:
    "Rows in splits, in groups of some, each by somebody: its text names its number."
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        text = f"{' '.join(rng.choice(WORDS, rng.integers(4, 9)))} {i}"
        split = ("train", "test", "train", "validation", "test")[i // groups % 5]
        rows.append({"split": split, "text": text, "label": LABELS[rng.integers(4)],
                     "group": f"g{i // groups}",
                     "register": str(rng.choice(["typo", "formal", "chatty"]))})
    return rows


@dataclass
class Made:
    "What a version is to be like."
    rows: list[dict[str, Any]]
    strength: float = 1.5          # how good its model is
    noise: int = 1                 # seed of the model's own errors
    train: dict[str, Any] = field(default_factory=lambda: {"epochs": 3, "seed": 1})
    evaluate: dict[str, Any] = field(
        default_factory=lambda: {"calibration_bins": 10, "calibration_binning": "equal mass"})
    module: str = MODULE
    cell: str = "model = train(epochs)"
    packages: dict[str, str] = field(default_factory=lambda: {"torch": "2.13.0"})
    verdict: str = "ship"
    labels: list[str] = field(default_factory=lambda: LABELS)
    keep: bool = True


def answers(test, strength: float, noise: int) -> Predictions:
    "What a model of some strength says: half of its errors are those of every model."
    classes, n = len(test.labels), len(test)
    own = np.random.default_rng([noise, n]).normal(size=(n, classes))
    common = np.array([np.random.default_rng(abs(hash_of(t))).normal(size=classes)
                       for t in test.texts])
    logits = 1.2 * (common + own)
    logits[np.arange(n), test.truth] += strength
    e = np.exp(logits - logits.max(1, keepdims=True))
    return Predictions("model", test, e / e.sum(1, keepdims=True))


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[-8:], "big")


def bias_facts(said: Predictions) -> dict[str, Any]:
    "Gaps between registers, as the stage bias records them; intervals by hand."
    register = np.array(said.rows.columns["register"])
    groups = []
    for name in sorted(set(register)):
        mine = register == name
        gap = said.right[mine].mean() - said.right[~mine].mean()
        reach = 2 * (.25 / mine.sum())**.5
        groups.append({"group": name, "against_rest": Interval(
            float(gap), float(gap - reach), float(gap + reach)).to_dict()})
    return {"disparities": [{"grouping": "register", "score": "accuracy", "groups": groups}],
            "counterfactuals": {"flip_rate": Interval(.08, .05, .12).to_dict()}}


def make_version(root: Path, n: int, made: Made, study: str = "toy") -> Version:
    "Write a version's folder and what it keeps."
    site = Settings(root, Stated())
    bench = site.store/"versions"/study/str(n)/"workbench"
    folder = site.reports/study/str(n)
    said = _kept(bench, made)
    found = Measuring(replicates=100, permutations=100).metrics(said)
    criterion = {"criterion": "accuracy lower >= 0.5", "outcome": "met" if made.verdict == "ship"
                 else "not met", "evidence": found["accuracy"].to_dict()}
    write_json(folder/"metrics.json", {"stages": {
        "evaluate": {"schema": "ftnb/evaluation/1", "metrics": {"model": plain_facts(found)}},
        "bias": bias_facts(said),
        "release": {"decision": {"verdict": made.verdict, "criteria": [criterion]}}}})
    _published(folder, bench, made, n, study)
    if not made.keep:
        for file in [p for p in bench.rglob("*") if p.is_file()]: file.unlink()
    return open_version(folder)


def _kept(bench: Path, made: Made) -> Predictions:
    "What the stages handed on."
    examples = bench/"prepare"/"examples"
    for split in ("train", "validation", "test"):
        rows = [(i, r) for i, r in enumerate(made.rows) if r["split"] == split]
        lines = [json.dumps({"id": f"f:{i}", **{k: v for k, v in r.items() if k != "split"}},
                            sort_keys=True) for i, r in rows]
        write_text(examples/f"{split}.jsonl", "".join(line + "\n" for line in lines))
    write_json(bench/"prepare"/"labels.json", made.labels)
    test = read_rows(examples/"test.jsonl", made.labels)
    said = answers(test, made.strength, made.noise)
    write_predictions(said, bench/"evaluate"/"predictions.jsonl")
    write_json(bench/"train"/"model"/"weights.json", [made.strength, made.noise, made.train])
    return said


def _published(folder: Path, bench: Path, made: Made, n: int, study: str) -> None:
    "The version's own files."
    where = {"prepare": {"examples": "examples", "labels": "labels.json"},
             "train": {"model": "model"}, "evaluate": {"predictions": "predictions.jsonl"},
             "bias": {}, "release": {}}
    record = lambda stage, path: {"path": path, "sha256": sha256(bench/stage/path)}
    outputs = {s: {name: record(s, path) for name, path in some.items()}
               for s, some in where.items()}
    hashes = {f"{s}.{n}": r["sha256"] for s, some in outputs.items() for n, r in some.items()}
    parameters = {"prepare": {"seed": 1}, "train": made.train, "evaluate": made.evaluate}
    stages = {}
    for stage in where:
        inputs = {} if stage == "prepare" else {"prepare.examples": hashes["prepare.examples"]}
        if stage in ("evaluate", "bias"): inputs["train.model"] = hashes["train.model"]
        cells = [code_hash(made.cell)] if stage == "train" else []
        key = {"stage": stage, "cells": cells, "modules": {"ftnb.m": code_hash(made.module)},
               "files": {}, "packages": made.packages, "python": "3.11.7",
               "parameters": parameters.get(stage, {}), "contents": {}}
        receipt = code_hash(json.dumps([inputs, {}], sort_keys=True))[:16]   # as the store does
        stages[stage] = {"key": code_hash(json.dumps(key)), "receipt": receipt, "made": key,
                         "inputs": inputs, "reads": {}, "outputs": outputs[stage]}
    write_rows(bench/"prepare"/"examples", folder)
    write_json(folder/"parameters.json", {"all": parameters})
    write_json(folder/"environment.json", {
        "packages": made.packages, "machine": {"system": "Linux", "python": "3.11.7"}})
    cells = ["epochs: int = 3  # over the rows, in [1, 100]\nseed: int = 1  # in [0, 9]", made.cell]
    write_json(folder/"notebooks"/"02-train.ipynb", {"cells": [
        {"cell_type": "code", "id": f"c{i}", "source": text, "outputs": [],
         "metadata": {"tags": ["parameters"]} if i == 0 else {}} for i, text in enumerate(cells)]})
    write_json(folder/"version.json", {
        "schema": "ftnb/version/2", "study": study, "fingerprint": f"{n:064d}",
        "order": list(where), "stages": stages, "files": {}})
