"""Bias planted into training labels, through the whole study: is it found, and is its size covered?

Requests name who asks, drawn by hash. A share of the labels of women's training requests is made
wrong; validation and test labels stay true. The true size of the harm is known by construction:
every test request is asked again by a woman, by a man and by somebody neutral, and the model
answers all three. The study sees only one of the three. `make test-all` runs it (about 20 minutes
on two cores); the numbers of one run stand in bench/RESULTS.md.
"""
from pathlib import Path

import numpy as np
import pytest

from ftnb.data.requesters import asked_again
from ftnb.evaluate.predict import load_classifier, read_rows
from ftnb.foundation.files import read_json
from ftnb.study.plan import read_study
from ftnb.study.runner import run_study
from ftnb.study.versions import kept_files

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["prepare.test_share=0.6", "train.epochs=3", "evaluate.baselines=[]",
         "evaluate.replicates=200", "evaluate.permutations=200", "bias.swapped=none",
         "bias.sensitive_columns=[requester_gender]", "bias.mitigations=[]", "bias.simulations=0",
         "release.criteria=[accuracy lower >= 0.1]", "explain.texts=10", "explain.shap_texts=0"]


def true_gap(workbench: Path, most: int = 2500) -> float:
    "Accuracy of the others less that of women, every request asked by all of them."
    labels = read_json(workbench/"prepare"/"labels.json")
    test = read_rows(workbench/"prepare"/"examples"/"test.jsonl", labels)
    asked = asked_again(test.texts[:most], {c: v[:most] for c, v in test.columns.items()}, "gender")
    record = read_json(workbench/"train"/"record.json")["outputs"]["model"]
    model = load_classifier(workbench/"train"/record["path"], labels)
    right: dict[str, list] = {g: [] for g in ("woman", "man", "neutral")}
    texts = [(g, text, i) for i, some in enumerate(asked) for g, text in some]
    said = model([text for _, text, _ in texts]).argmax(1)
    for (g, _, i), answer in zip(texts, said, strict=True): right[g].append(answer == test.truth[i])
    return float(np.mean(right["man"] + right["neutral"]) - np.mean(right["woman"]))


def run(rate: float, seed: int, site) -> dict:
    "One study: what its bias stage says of women, and the truth."
    given = [f"prepare.planted_bias={rate}", f"prepare.seed={seed}", f"train.seed={seed}"]
    plan = read_study(ROOT/"params"/"planted-bias.yaml", [*QUICK, *given], site=site)
    version, _ = run_study(plan, site=site)
    facts = read_json(version.folder/"metrics.json")["stages"]["bias"]
    about = {d["score"]: d for d in facts["disparities"]}
    woman = next(g for g in about["accuracy"]["groups"] if g["group"] == "woman")
    ends = sorted(-woman["against_rest"][k] for k in ("low", "high"))
    truth = true_gap(kept_files(version, site)/"workbench")
    return {"rate": rate, "seed": seed, "verdict": facts["verdict"], "gap": ends, "truth": truth,
            "accuracy": about["accuracy"]["verdict"], "p": about["accuracy"]["p_corrected"],
            "covered": ends[0] <= truth <= ends[1]}


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0., .2, .4])
def test_planted_bias_is_found_and_sized(site, rate):
    found = [run(rate, seed, site) for seed in range(1, 6)]
    for f in found: print(f)
    hits = sum(f["verdict"] == "disparity found" for f in found)
    if rate == 0: assert hits <= 1      # two or more of five by chance: 2 % of times
    if rate == .4: assert hits == 5 and all(f["accuracy"] == "disparity found" for f in found)
    assert sum(f["covered"] for f in found) >= 4     # fewer by chance: 2 % of times
