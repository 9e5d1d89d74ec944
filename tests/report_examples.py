"A report version made by hand: four stages with tables, pictures and hostile words."

import json
from pathlib import Path

import nbformat
import numpy as np
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ftnb.foundation.intervals import Interval
from ftnb.foundation.pictures import PALETTE, drawing, picture, table
from ftnb.release.criteria import decide
from ftnb.release.model_card import Findings, Words, model_card

HOSTILE = (
    "<script>alert('x')</script> <img src=https://example.org/p.png onerror=alert(1)> | `a` ]]>"
)
CLASSES = [
    "Simple Storage Service",
    "Elastic Compute Cloud",
    "Key Management Service",
    "CloudWatch",
    "Route 53",
    "Step Functions",
    "Secrets Manager",
    "Lambda",
    "DynamoDB",
    "Kinesis",
]


def interval(e, w):
    return Interval(e, e - w, e + w)


def curve():
    "A learning curve."
    with drawing() as (fig, ax):
        x = np.arange(1, 8)
        ax.plot(x, 2.9 * np.exp(-x / 2) + 0.4, color=PALETTE[0], label="training")
        ax.plot(x, 2.6 * np.exp(-x / 2) + 0.62, color=PALETTE[1], marker="o", label="validation")
        ax.axvline(5, color=PALETTE[2], lw=1, ls="--")
        ax.set(xlabel="passes over the data", ylabel="log loss (nats)")
        ax.legend()
    return picture(
        fig,
        "Log loss falls over seven passes and flattens after the fifth.",
    )


def reliability():
    "A reliability picture."
    with drawing(4.2, 3.6) as (fig, ax):
        x = np.linspace(0.15, 0.95, 9)
        ax.plot([0, 1], [0, 1], color="#888889", lw=1)
        ax.errorbar(x, x - 0.04 * np.sin(5 * x), 0.05, fmt="o", color=PALETTE[0], capsize=2)
        ax.set(xlabel="stated probability", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    return picture(
        fig,
        "Stated probabilities against shares that were right: close to the diagonal.",
    )


def code(source, *outputs, tags=None):
    "An executed code cell."
    shown = [
        new_output("stream", name="stdout", text=o)
        if isinstance(o, str)
        else new_output("display_data", o if isinstance(o, dict) else o._repr_mimebundle_())
        for o in outputs
    ]
    return new_code_cell(
        source, execution_count=1, outputs=shown, metadata={"tags": tags} if tags else {}
    )


def notebook(title, question, parameters, *cells):
    "A stage notebook."
    return new_notebook(
        cells=[
            new_markdown_cell(f"# {title}\n\n> {question}"),
            code(parameters, tags=["parameters"]),
            *cells,
        ]
    )


def prepare():
    mix = [
        {"class": c, "training": 100 + 7 * i, "validation": 12 + i, "test": 30 + i}
        for i, c in enumerate(CLASSES)
    ]
    bad = [
        {"file": "requests.jsonl", "line": 17, "reason": "empty text", "text": ""},
        {"file": "requests.jsonl", "line": 90, "reason": "repeats a test request", "text": HOSTILE},
    ]
    return notebook(
        "The data",
        "What do we train on, and what was wrong with it?",
        "source: str = 'requests'  # requests, operations, or a path\n"
        "test_share: float = .2  # of the rows, in (0, 0.5]\n"
        "seed: int = 0  # ≥ 0",
        code("import pandas as pd\n\nfrom ftnb.foundation.pictures import table"),
        code('show_parameters("prepare", globals())', table([{"parameter": "seed", "value": "0"}])),
        new_markdown_cell(
            "## Rows in, rows out\n\nNo row vanishes."
        ),
        code("tally", "1,719 rows in = 1,717 kept + 2 in quarantine.\n", table(bad, "Quarantine")),
        new_markdown_cell("## Splits"),
        code("splits", table(mix, "Rows by class and split")),
        new_markdown_cell("## Findings"),
        code(
            "print(finding)",
            "Near duplicates were found in 12 pairs, none of them across splits.\n"
            "One request in 300 may have the wrong label.",
        ),
        new_markdown_cell(
            "## Limits\n\nLanguages are guessed from letters. "
            "A request that is *meant* as English but spelt otherwise counts as something else."
        ),
    )


def train():
    return notebook(
        "Training",
        "Does the model learn, and when does it stop?",
        "learning_rate: float = 3e-4  # step size, in (0, 1]\n"
        "epochs: int = 6  # passes over the data, in [1, 100]\n"
        "base_model: str = 'embedded'  # hub id, folder, or embedded",
        code("# Parameters\nlearning_rate = 5e-05\n", tags=["injected-parameters"]),
        new_markdown_cell("## Learning\n\nThe curve that counts is the validation's."),
        code("curve", curve()),
        new_markdown_cell("## Findings"),
        code("print(finding)", "The best epoch is 5 of 6; training stopped by itself."),
        new_markdown_cell("## Limits\n\nOne seed."),
    )


def evaluate():
    wide = [
        {"metric": m, **{c: interval(0.8 + i / 100, 0.03).__str__() for i, c in enumerate(CLASSES)}}
        for m in ("precision", "recall", "F1")
    ]
    errors = [
        {
            "text": "hi team, pls can somebody explain why my bucket policy isn't "
            "letting the lambda in?? its been two days and i tried everything "
            * 2,
            "label": "Simple Storage Service",
            "predicted": "Lambda",
            "probability": 0.93,
        },
        {"text": HOSTILE, "label": "Lambda", "predicted": "Kinesis", "probability": 0.88},
    ]
    return notebook(
        "Evaluation",
        "How good is the model, against honest baselines, and where does it fail?",
        "level: float = .95  # nominal coverage, in (0, 1)",
        new_markdown_cell(
            "## Against the baselines\n\n- majority\n- TF-IDF with logistic regression\n"
            "- frozen embeddings with logistic regression"
        ),
        code(
            "results",
            table(
                [
                    {
                        "": n,
                        "accuracy": str(interval(a, 0.02)),
                        "macro F1": str(interval(a - 0.01, 0.021)),
                    }
                    for n, a in [
                        ("model", 0.907),
                        ("embeddings", 0.871),
                        ("tfidf", 0.862),
                        ("majority", 0.05),
                    ]
                ],
                "Test set, 812 requests",
            ),
        ),
        new_markdown_cell("## By class"),
        code("by_class", table(wide, "By class")),
        new_markdown_cell("## Calibration"),
        code("reliability", reliability()),
        new_markdown_cell("## Worst errors"),
        code("errors", table(errors, "Wrong, and sure of it")),
        code("print(counts)", "class        n\nLambda      12\nKinesis      7\n"),
        new_markdown_cell("## Findings"),
        code(
            "print(finding)",
            "The model is better than the best baseline (embeddings) by 3.6 points "
            "[1.4, 5.8], p = 0.002 after Holm over 3 comparisons.",
        ),
        new_markdown_cell("## Limits\n\nOne test set."),
    )


def evaluation():
    "The evaluation's facts."
    model = {
        "accuracy": interval(0.907, 0.02),
        "macro_f1": interval(0.897, 0.021),
        "log_loss": interval(0.34, 0.06),
        "calibration_error": interval(0.071, 0.035),
    }
    plain = lambda d: {k: v.to_dict() for k, v in d.items()}
    return {
        "metrics": {
            "model": plain(model),
            "embeddings": plain({"accuracy": interval(0.871, 0.023)}),
            "majority": plain({"accuracy": interval(0.05, 0.014)}),
        },
        "best_baseline": "embeddings",
        "rows": 812,
        "comparisons": [
            {
                "metric": "accuracy",
                "baseline": "embeddings",
                "gain": interval(0.036, 0.022).to_dict(),
                "p_corrected": 0.002,
            }
        ],
    }


CRITERIA = [
    "accuracy lower >= 0.80",
    "gain over best baseline > 0",
    "calibration error upper <= 0.10",
]


def version(folder: Path, criteria=CRITERIA) -> Path:
    "A version's folder, complete but for the page."
    decision = decide(criteria, {"evaluate": evaluation()})
    release = notebook(
        "Release",
        "Does the evidence meet the bar?",
        "criteria: list[str] = []  # all must be met",
        code("decision", {"text/markdown": decision._repr_markdown_()}),
        new_markdown_cell("## Findings"),
        code("print(decision.sentence)", decision.sentence),
    )
    numbers = [
        {"label": k.replace("_", " "), **v} for k, v in evaluation()["metrics"]["model"].items()
    ]
    front = [
        (
            "prepare",
            [
                {
                    "title": "The data",
                    "sentence": "1,717 requests in 10 classes; 2 rows in quarantine.",
                    "verdict": "",
                    "numbers": [
                        {"label": "rows kept", "text": "1,717 of 1,719"},
                        {"label": "near duplicates across splits", "text": "none"},
                        {"label": "a label", "text": HOSTILE},
                    ],
                    "figure": None,
                    "alt": "",
                }
            ],
        ),
        (
            "train",
            [
                {
                    "title": "Learning",
                    "sentence": "The best of 6 passes is the fifth.",
                    "verdict": "",
                    "numbers": [],
                    "figure": curve().svg,
                    "alt": curve().alt,
                }
            ],
        ),
        (
            "evaluate",
            [
                {
                    "title": "Quality",
                    "sentence": "Better than the best baseline (embeddings) by 3.6 points "
            "[1.4, 5.8], p = 0.002 after Holm over 3 comparisons.",
                    "verdict": "better",
                    "numbers": numbers,
                    "figure": reliability().svg,
                    "alt": reliability().alt,
                }
            ],
        ),
        (
            "release",
            [
                {
                    "title": "Decision",
                    "sentence": decision.sentence,
                    "verdict": decision.verdict,
                    "numbers": [],
                    "figure": None,
                    "alt": "",
                }
            ],
        ),
    ]
    files = {
        "front": {
            "study": "quickstart",
            "question": "Can a small model tell which cloud service a request is for?",
            "fingerprint": "3b1f" * 16,
            "stages": [{"stage": s, "blocks": b} for s, b in front],
        },
        "metrics": {
            "schema": "ftnb/metrics/1",
            "study": "quickstart",
            "fingerprint": "3b1f" * 16,
            "stages": {
                "evaluate": evaluation(),
                "release": {
                    "decision": decision.to_dict(),
                    "inputs": {"prepare.examples": "53aa" * 16, "train.model": "0f3a" * 16},
                },
            },
        },
        "parameters": {
            "stated": {"train": {"learning_rate": 5e-05}},
            "all": {
                "train": {"learning_rate": 5e-05, "epochs": 6, "base_model": "embedded"},
                "prepare": {"source": "requests", "test_share": 0.2, "seed": 0},
                "evaluate": {"level": 0.95},
                "release": {"criteria": list(criteria)},
            },
        },
        "environment": {
            "machine": {
                "system": "Linux",
                "architecture": "x86_64",
                "instruction_sets": ["avx2", "avx512f"],
                "python": "3.11.9",
                "torch": "2.13.0",
                "gpu": None,
            },
            "packages": {f"package-{i}": f"{i}.{i % 7}.0" for i in range(150)},
        },
    }
    (folder / "notebooks").mkdir(parents=True)
    (folder / "cards").mkdir()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    for n, (stage, nb) in enumerate(
        [
            ("prepare", prepare()),
            ("train", train()),
            ("evaluate", evaluate()),
            ("release", release),
        ],
        1,
    ):
        nbformat.write(nb, folder / f"notebooks/{n:02d}-{stage}.ipynb")
    found = Findings(
        decision,
        evaluation(),
        CLASSES + [HOSTILE],
        {"epochs": 6, "learning_rate": 5e-05},
        "requests",
        {"prepare.examples": "53aa" * 16},
        {"name": "sentence-transformers/all-MiniLM-L6-v2", "parameters": 22_713_216},
    )
    (folder / "cards/model_card.md").write_text(
        model_card(
            Words(
                "requests", "Routing requests to the team that answers them.", license="apache-2.0"
            ),
            found,
        ),
        encoding="utf-8",
    )
    (folder / "cards/data_card.md").write_text(
        f"---\nlicense: cc0-1.0\npretty_name: requests\n---\n# requests\n\n## Summary\n\n"
        f"What people ask of a cloud.\n\n{HOSTILE}\n\n"
        "| split | rows |\n|---|---|\n| train | 1,200 |\n",
        encoding="utf-8",
    )
    return folder
