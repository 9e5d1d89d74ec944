"""Report versions of schema 2 as they are published, made in no time, for tests of what reads them.

Every hash in them is true: of the rows, of the data file, of what the stages hand on, of the
folder's files.
"""
import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from ftnb.foundation.files import sha256, size, write_json, write_text
from ftnb.foundation.records import Record
from ftnb.foundation.settings import Settings, Stated
from ftnb.study.crate import write_crate
from ftnb.study.rows import row_line, write_rows
from ftnb.study.versions import Version, kept_files

ROWS = {"train": [{"text": "the bucket is full", "label": "s3"},
                  {"text": "start two machines", "label": "ec2"}],
        "test": [{"text": "où est mon bucket ?", "label": "s3"}]}
PACKAGES = {"torch": "2.13.0", "pandas": "3.1.1"}
MODULES = {"ftnb.data.splits": "5" * 64, "helper": "6" * 64}


def empty_site(root: Path) -> Settings:
    "A site without versions."
    (root/"settings.ini").write_text("[ftnb]\ntracking_uri =\n")
    return Settings(root.resolve(), Stated(tracking_uri=""))


def record(folder: Path, name: str, path: str, kind: str, rows: int | None = None, **about) -> dict:
    "The record of a file or folder that a stage left."
    at = folder/path
    return asdict(Record(name, path, sha256(at), size(at), kind, rows, about))


def prepared(bench: Path, data: Path, rows: dict[str, list[dict]], modules: dict) -> dict:
    "What the stage prepare leaves."
    for split, some in rows.items():
        write_text(bench/"examples"/f"{split}.jsonl", "".join(row_line(r) + "\n" for r in some))
    write_text(bench/"card.md", "# data\n")
    write_text(bench/"quarantine.jsonl", "")
    counts = {split: len(some) for split, some in rows.items()}
    total = sum(counts.values())
    outputs = [record(bench, "examples", "examples", "ftnb/examples/1", total, **counts),
               record(bench, "card", "card.md", "ftnb/card/1"),
               record(bench, "quarantine", "quarantine.jsonl", "ftnb/quarantine/1", 0)]
    made = {"parameters": {"path": data.name, "licence": "cc0-1.0", "drawn": name(rows)},
            "modules": modules, "files": {"ftnb/data/names.json": "7" * 64},
            "contents": {"path": sha256(data)}, "packages": {"pandas": "3.1.1"}}
    return {"inputs": {}, "outputs": {o["name"]: o for o in outputs}, "reads": {}, "made": made}


def trained(bench: Path, before: dict, base: str, packages: dict, seed: int) -> dict:
    "What the stage train leaves; the model follows from rows, base and seed."
    from_rows = before["outputs"]["examples"]["sha256"]
    write_json(bench/"model"/"weights.json", [from_rows, base, seed])
    made = {"parameters": {"learning_rate": 3e-4, "seed": seed, "base_model": base,
                           "base_revision": None},
            "modules": {"ftnb.data.splits": "5" * 64}, "files": {}, "contents": {},
            "packages": packages}
    return {"inputs": {"prepare.examples": from_rows}, "reads": {"notes.txt": "8" * 64},
            "outputs": {"model": record(bench, "model", "model", "ftnb/model/1", base=base)},
            "made": made}


def evaluated(bench: Path, prepare: dict, train: dict) -> dict:
    "What the stage evaluate leaves."
    inputs = {"prepare.examples": prepare["outputs"]["examples"]["sha256"],
              "train.model": train["outputs"]["model"]["sha256"]}
    write_json(bench/"metrics.json", inputs)
    made = {"parameters": {"level": 0.95},
            **{k: {} for k in ("modules", "files", "contents", "packages")}}
    return {"inputs": inputs, "reads": {}, "made": made,
            "outputs": {"metrics": record(bench, "metrics", "metrics.json", "ftnb/evaluation/1")}}


def build_version(
    site: Settings,
    study: str = "toy",
    number: int = 1,
    rows: dict[str, list[dict]] | None = None,
    base: str = "a-model",
    packages: dict[str, str] | None = None,
    modules: dict[str, str] | None = None,
    seed: int = 1,
    keep: bool = True,      # what the stages handed on stays in the store
) -> Version:
    "Publish a version of three stages whose data, model and packages are as said."
    folder = site.reports/study/str(number)
    version = Version(folder, study, number, f"{number:064x}")
    bench, rows = kept_files(version, site)/"workbench", rows or ROWS
    data = site.root/"data.csv"
    if not data.exists(): write_text(data, "text,label\n")
    prepare = prepared(bench/"prepare", data, rows, modules or MODULES)
    train = trained(bench/"train", prepare, base, packages or PACKAGES, seed)
    stages = {"prepare": prepare, "train": train,
              "evaluate": evaluated(bench/"evaluate", prepare, train)}
    publish(version, stages, bench)
    if not keep: shutil.rmtree(bench.parent)
    return version


def publish(version: Version, stages: dict[str, dict], bench: Path) -> None:
    "Write a version's folder."
    folder = version.folder
    for n, (stage, facts) in enumerate(stages.items(), 1):
        facts["made"] |= {"stage": stage, "cells": [f"{n}" * 64], "python": "3.11.7"}
        file = write_json(folder/"notebooks"/f"{n:02d}-{stage}.ipynb", {"cells": [], "of": stage})
        receipt = name([facts["inputs"], facts["reads"]])[:16]
        facts |= {"notebook": sha256(file), "receipt": receipt, "key": name(facts["made"])}
        facts["inputs"]["names"] = name(sorted(facts["inputs"]))   # of what it could have received
    write_text(folder/"study.yaml", f"study: {version.study}\nquestion: Does it run?\n")
    write_text(folder/"index.html", f"<h1>{version.name}</h1>\n")
    write_text(folder/"cards"/"data_card.md", (bench/"prepare"/"card.md").read_text())
    write_json(folder/"parameters.json",
               {"all": {s: f["made"]["parameters"] for s, f in stages.items()}})
    write_json(folder/"metrics.json", {"stages": {"evaluate": {"accuracy": 0.9}}})
    write_json(folder/"front.json", {"question": "Does it run?", "stages": []})
    write_json(folder/"environment.json",
               {"machine": {}, "packages": {"ftnb": "0.3.0", **PACKAGES}})
    write_json(folder/"timings.json", {"prepare": {"seconds": version.number}})
    write_rows(bench/"prepare"/"examples", folder)
    facts = {"schema": "ftnb/version/2", "study": version.study, "fingerprint": version.fingerprint,
             "overrides": {}, "order": list(stages), "stages": stages,
             "report": {"modules": {"ftnb.study.report": "4" * 64}, "files": {}}}
    write_crate(folder, facts)
    files = {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*"))
             if p.is_file() and p.name not in ("timings.json", "run.html")}
    write_json(folder/"version.json", facts | {"files": files})


def name(value) -> str:
    "The SHA-256 of a JSON value."
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
