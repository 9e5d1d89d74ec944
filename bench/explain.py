"""Which words matter to a fine-tuned MiniLM: integrated gradients, or shap's default for text.

Needs the model of a quickstart: `make report` first (or name a workbench: python explain.py FOLDER
[TEXTS]). All explainers see the same test texts, one after the other in one process, one thread;
CPU seconds hold everything from text to values. shap runs as its documentation has it, on
transformers' pipeline in float32 (PartitionExplainer, 500 evaluations, batches of 10); since that
arithmetic is slower than ours, it runs a second time on our classifier, which uses bfloat16 where
we do. Faithfulness: AOPC as in ftnb.explain.faithfulness, judged by our classifier, with the same
random orders for all; the paired tests are against shap on the pipeline. The correction was chosen
on 120 test texts, which aren't among these. Takes about half an hour, nearly all of it shap's.
"""
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from ftnb.evaluate.predict import Classifier, load_classifier, precision_here, read_rows
from ftnb.explain import attributions as by
from ftnb.explain.faithfulness import compare_faithfulness, faithfulness
from ftnb.explain.shapley import partition_shap, rank_agreement
from ftnb.foundation.files import read_json
from ftnb.foundation.records import HandingOver
from ftnb.foundation.settings import settings
from ftnb.study.versions import kept_files, study_versions

TEXTS, SEED = 200, 1


def newest_quickstart() -> Path:
    "The workbench of the newest version of the quickstart."
    versions = study_versions("quickstart")
    kept = [kept_files(v, settings())/"workbench" for v in reversed(versions)]
    there = [folder for folder in kept if folder.is_dir()]
    if not there:
        print("no quickstart here: run `make report` first, or name a workbench")
        sys.exit(0)  # so that the other benches go on
    return there[0]


def model_and_texts(root: Path, n: int) -> tuple[Classifier, list[str]]:
    "The fine-tuned model and test texts of a workbench."
    desk = HandingOver("bench", root.resolve())
    labels = read_json(desk.receive("prepare", "labels"))
    model = load_classifier(desk.receive("train", "model"), labels)
    rows = read_rows(desk.receive("prepare", "examples")/"test.jsonl", labels)
    tuned_on = np.random.default_rng(0).choice(len(rows), 120, replace=False)
    rest = np.setdiff1d(np.arange(len(rows)), tuned_on)
    chosen = np.random.default_rng(SEED).choice(rest, min(n, len(rest)), replace=False)
    return model, [rows.texts[i] for i in sorted(chosen)]


class Piped:
    "The model as transformers' pipeline, which is what shap's documentation explains."

    def __init__(self, model: Classifier):
        from transformers import pipeline
        self.tokenizer, self.labels = model.tokenizer, model.labels
        self.ask = pipeline("text-classification", model=model.model, tokenizer=model.tokenizer,
                            top_k=None, device="cpu")

    def __call__(self, texts, label: str = "") -> np.ndarray:
        rows: list = self.ask(list(texts))
        said = [{x["label"]: x["score"] for x in row} for row in rows]
        return np.array([[row[name] for name in self.labels] for row in said])


class Remembered:
    "The classifier that judges: a shortened text is asked about once for all explainers."

    def __init__(self, model: Classifier):
        self.model, self.tokenizer, self.labels = model, model.tokenizer, model.labels
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, texts, label: str = "") -> np.ndarray:
        new = [t for t in dict.fromkeys(texts) if t not in self.known]
        self.known.update(zip(new, self.model(new, "judge"), strict=True))
        return np.array([self.known[t] for t in texts])


def logit(logits, target): return logits.gather(1, target[:, None])[:, 0]


def probability(logits, target): return logits.softmax(1).gather(1, target[:, None])[:, 0]


def explainers(model: Classifier) -> dict:
    "Name → texts and predicted labels → attributions."
    half = precision_here()
    ig = lambda steps, m=model, most=0, **more: lambda texts, said: by.integrated_gradients(
        m, texts, said, steps=steps, most_steps=most or steps, **more)
    corrected = lambda answers: lambda texts, said: by.corrected(
        model, ig(8)(texts, said), answers)
    shap = lambda asked: lambda texts, said: partition_shap(
        asked, texts, said, probability=True, label="shap")
    return {
        "shap, default: pipeline, float32": shap(Piped(model)),
        f"shap on our classifier, {half}": shap(model),
        "8 steps, corrected by 48 answers (ours)": corrected(48),
        "8 steps, corrected by 64 answers": corrected(64),
        "8 steps, corrected by 32 answers": corrected(32),
        "integrated gradients, 16 steps, doubled where needed": ig(16, most=128),
        **{f"integrated gradients, {n} steps": ig(n) for n in (4, 8, 16, 32)},
        "16 steps, float32": ig(16, replace(model, precision="float32")),
        "16 steps, baseline: mean embedding": ig(16, baseline="mean"),
        "16 steps, of the logit": ig(16, score=logit),
        "16 steps, of the probability": ig(16, score=probability),
        "gradient × input": lambda texts, said: by.gradient_x_input(model, texts, said),
        "leave one word out": lambda texts, said: by.leave_one_out(model, texts, said),
    }


def frontier(model: Classifier, texts: list[str], which: dict) -> pd.DataFrame:
    "CPU seconds a text and faithfulness of every explainer."
    judge, rows, made = Remembered(model), [], {}
    said = [model.labels[i] for i in model(texts).argmax(1)]
    for name, explain in which.items():
        explain(texts[:2], said[:2])  # imports and compilations, on all sides
        start = time.process_time()
        found = explain(texts, said)
        seconds = (time.process_time() - start)/len(texts)
        p = judge(texts)[np.arange(len(texts)), [model.labels.index(a.label) for a in found]]
        found = [replace(a, probability=float(x)) for a, x in zip(found, p, strict=True)]
        made[name] = (found, faithfulness(judge, found), seconds)
        first = next(iter(made))
        theirs, test = made[first], compare_faithfulness(made[name][1], made[first][1])
        d, agree = test.differences, rank_agreement(found, theirs[0])
        rows.append({
            "explainer": name, "CPU s/text": round(seconds, 4),
            "times faster": round(theirs[2]/seconds, 1),
            "comprehensiveness": round(made[name][1].comprehensiveness.mean(), 3),
            "sufficiency": round(made[name][1].sufficiency.mean(), 3),
            "compr. better by": str(d["comprehensiveness"]), "p": test.p["comprehensiveness"],
            "suff. better by": str(d["sufficiency"]), "p ": test.p["sufficiency"],
            "rank corr.": round(agree.spearman.estimate, 2),
            "top 3": round(agree.overlap.estimate, 2),
            "missing": round(float(np.median([a.missing for a in found])), 3)})
        print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else newest_quickstart()
    model, texts = model_and_texts(root, int(sys.argv[2]) if len(sys.argv) > 2 else TEXTS)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        table = frontier(model, texts, explainers(model))
    print(f"\n{len(texts)} texts; > 0: better than shap's default; p: paired permutation test")
    print(table.to_string(index=False))
