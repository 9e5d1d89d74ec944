"""A version's rows by name, and the version as an RO-Crate that others can read.

Whether a crate is right is said by the public validator and the library rocrate, which stand in an
environment of their own; what PROV tools see is asked with rdflib.
"""
import copy
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as examples
from toy import toy_site
from version_folders import ROWS, build_version, empty_site

from ftnb.foundation.errors import BadInput
from ftnb.foundation.files import read_json, sha256, write_json, write_text
from ftnb.foundation.settings import settings
from ftnb.study.crate import CONTEXT, NAME, PROFILES, crate, stage_facts, write_crate
from ftnb.study.plan import read_study
from ftnb.study.rows import (
    Place,
    read_rows_digests,
    row_digest,
    row_line,
    rows_named,
    split_files,
    write_rows,
)
from ftnb.study.runner import run_study

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = sorted((ROOT/"reports").glob("*/*/version.json"))


# -- rows ---------------------------------------------------------------------------------------

SPLITS = strategies.dictionaries(
    strategies.sampled_from(["train", "validation", "test", "extra"]),
    strategies.lists(strategies.dictionaries(strategies.text(), strategies.text(), max_size=2),
                     max_size=6), min_size=1)


@examples(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SPLITS)
def test_every_row_is_named_in_its_place(tmp_path, splits):
    folder = tmp_path/"examples"
    shutil.rmtree(folder, ignore_errors=True)
    for split, rows in splits.items():
        write_text(folder/f"{split}.jsonl", "".join(row_line(r) + "\n" for r in rows))
    content = write_rows(folder, tmp_path).read_bytes()
    names = {s: [row_digest(row_line(r)) for r in rows] for s, rows in splits.items() if rows}
    assert read_rows_digests(tmp_path) == names
    for split, some in names.items():
        for number, digest in enumerate(some, 1):
            assert Place(split, number) in list(rows_named(content, digest))
    order = [p.stem for p in split_files(folder)]
    assert order == [s for s in ("train", "validation", "test", "extra") if s in splits]


def test_a_version_without_rows_says_so(tmp_path):
    with pytest.raises(BadInput, match="no train.jsonl"): write_rows(tmp_path, tmp_path)
    with pytest.raises(BadInput, match="names no rows"): read_rows_digests(tmp_path)


@pytest.mark.parametrize("line", ["train\tABCDEFABCDEF", "train\t0123", "train 012345678901", ""])
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path/"rows.txt").write_text(f"train\t{'0' * 12}\n{line}\n")
    with pytest.raises(BadInput, match=r"rows\.txt line 2"): read_rows_digests(tmp_path)


def test_fifty_thousand_rows_take_less_than_a_second(tmp_path):
    import time
    lines = [row_line({"text": f"a text of some length, {n}", "label": "a"}) for n in range(50_000)]
    write_text(tmp_path/"train.jsonl", "\n".join(lines) + "\n")
    began = time.process_time()
    write_rows(tmp_path, tmp_path)
    assert len(read_rows_digests(tmp_path)["train"]) == 50_000
    assert time.process_time() - began < 1


# -- the crate by itself ------------------------------------------------------------------------

@pytest.fixture
def version(tmp_path): return build_version(empty_site(tmp_path))


def old_version(file: Path, tmp_path: Path) -> Path:
    "A copy of a committed version, described as a crate."
    shutil.copytree(file.parent, tmp_path/"old")
    write_crate(tmp_path/"old", read_json(file))
    return tmp_path/"old"


def entities(folder: Path) -> dict[str, dict]:
    return {e["@id"]: e for e in read_json(folder/NAME)["@graph"]}


def refs(value) -> set[str]:
    "Every entity that a value refers to."
    if isinstance(value, dict): return {value["@id"]} if "@id" in value else set()
    return {i for v in value for i in refs(v)} if isinstance(value, list) else set()


def whole(folder: Path) -> None:
    "Every reference leads somewhere, every file is described, and is what the crate says."
    graph = read_json(folder/NAME)["@graph"]
    known = {e["@id"] for e in graph}
    assert len(known) == len(graph)
    outside = {r for e in graph for k, v in e.items() if k != "@id" for r in refs(v)} - known
    assert all(r.startswith(("https://bioschemas.org/profiles/", "https://w3id.org/ro/crate/"))
               for r in outside), outside
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    parts = refs(entities(folder)["./"]["hasPart"])
    assert parts == files - {NAME, "timings.json", "run.html"}
    for path in parts - {"version.json"}:
        said = entities(folder)[path]
        assert said["sha256"] == sha256(folder/path)
        assert said["contentSize"] == str((folder/path).stat().st_size)


def test_a_crate_is_whole(version): whole(version.folder)


@pytest.mark.parametrize("file", COMMITTED, ids=lambda p: "/".join(p.parts[-3:-1]))
def test_committed_versions_are_described_whole(file, tmp_path): whole(old_version(file, tmp_path))


def test_what_each_stage_used_and_made(version):
    said = entities(version.folder)
    facts = stage_facts(version.folder, read_json(version.folder/"version.json"))
    for stage in facts:
        action = said[f"#run/{stage.name}"]
        used = {said[i].get("sha256") for i in refs(action["used"])} - {None}
        assert used == set(stage.inputs.values()) | set(stage.data.values())
        made = {said[i]["sha256"] for i in refs(action["result"])}
        assert made == {r["sha256"] for r in stage.outputs.values()} | {
            sha256(version.folder/stage.notebook)}
        values = {said[i]["name"]: said[i]["value"] for i in refs(action["object"])
                  if said[i]["@type"] == "PropertyValue"}
        assert values == {
            f"{stage.name}.{k}": v if isinstance(v, str | int | float) else json.dumps(v)
            for k, v in stage.parameters.items()}
    needed = [said[i] for i in refs(said["#stage/train"]["softwareRequirements"])]
    assert {e["name"]: e["softwareVersion"] for e in needed} == {
        "torch": "2.13.0", "pandas": "3.1.1", "Python": "3.11.7"}
    assert said[said["./"]["license"]["@id"]]["name"] == "not stated"
    assert said["cards/data_card.md"]["wasGeneratedBy"] == {"@id": "#run/prepare"}   # by its hash


def test_a_crate_holds_no_clock_and_no_chance(version, tmp_path):
    facts = read_json(version.folder/"version.json")
    before = (version.folder/NAME).read_bytes()
    write_json(version.folder/"timings.json", {"prepare": {"seconds": 99}})
    for file in version.folder.rglob("*"): os.utime(file, (0, 0))
    assert write_crate(version.folder, facts).read_bytes() == before
    (tmp_path/"other").mkdir()
    twin = build_version(empty_site(tmp_path/"other"))
    assert (twin.folder/NAME).read_bytes() == before      # another place, another time
    assert str(tmp_path).encode() not in before


def test_the_licence_is_an_spdx_one_or_the_study_s_own_words(version):
    facts = read_json(version.folder/"version.json")
    for said, name in (("apache-2.0", "Apache-2.0"), ("ask Ada", "ask Ada"), ("", "not stated")):
        facts["stages"]["evaluate"]["made"]["parameters"]["license"] = said
        graph = {e["@id"]: e for e in crate(version.folder, facts)["@graph"]}
        assert graph[graph["./"]["license"]["@id"]]["name"] == name


def test_prov_tools_find_what_the_model_came_from(version):
    "rdflib knows nothing of RO-Crate; the context is given it by hand, since it has no network."
    from rdflib import Graph
    described = crate(version.folder, read_json(version.folder/"version.json"))
    described["@context"] = [{"@vocab": "http://schema.org/"}, CONTEXT[1]]
    seen = Graph().parse(data=json.dumps(described), format="json-ld", publicID="http://x/")
    found = seen.query("""
        PREFIX prov: <http://www.w3.org/ns/prov#> PREFIX s: <http://schema.org/>
        SELECT ?name WHERE {
            <http://x/#output/train.model/> prov:wasDerivedFrom+ ?from . ?from s:name ?name }""")
    assert {str(row["name"]) for row in found} == {   # type: ignore
        "a-model", "prepare.examples", "data.csv", "ftnb/data/names.json", "notes.txt"}


# -- the crate, by others -----------------------------------------------------------------------

@pytest.fixture(scope="session")
def validator() -> Path:
    "The Python of an environment with the public validator and rocrate; made once, in the cache."
    place = settings().cache/"validators"/"roc-validator-0.13.0"
    python = place/("Scripts" if os.name == "nt" else "bin")/"python"
    if not (place/".whole").exists():
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                        "roc-validator==0.13.0", "rocrate==0.14.0"], check=True)
        (place/".whole").touch()
    return python


def validate(python: Path, tmp_path: Path, severity: str, *folders: Path) -> dict[str, list[dict]]:
    "What the public validator finds in each folder, of this severity and worse."
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([python, ROOT/"tests"/"validate_crate.py", severity, tmp_path/"cache",
                           *folders], capture_output=True, text=True, env=clean, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LEFT_OUT = {   # what the profiles recommend and these crates leave out, on purpose
    "The Application SHOULD have a url",
    "The SoftwareApplication id SHOULD be an absolute URI",
    "The Action SHOULD have an endTime in ISO 8601 format",
    "The Action SHOULD have an agent that is a Person or Organization",
    "The Root Data Entity SHOULD have a link to a Contextual Entity representing the `author` of "
    "the RO-Crate",
    "The `publisher` property of a `Root Data Entity` SHOULD be an `Organization`",
    "The README.md SHOULD be about the crate",                           # there is none: the check
    "The README.md SHOULD have text/markdown as its encodingFormat",     # asks regardless
}


@pytest.mark.slow
def test_the_public_validator_finds_nothing_missing(version, validator, tmp_path):
    "In a version as the builder makes it, in one that a real run left, and in a committed one."
    site = toy_site(tmp_path/"toy")
    run, _ = run_study(read_study(site.root/"params"/"toy.yaml", [], site), site=site)
    whole(run.folder)
    old = [old_version(file, tmp_path/file.parent.name) for file in COMMITTED[-1:]]
    told = validate(validator, tmp_path, "RECOMMENDED", version.folder, run.folder, *old)
    for found in told.values():
        assert [i for i in found if i["severity"] == "REQUIRED"] == []
        assert {i["message"] for i in found} <= LEFT_OUT


def without(described: dict, id: str, *names: str) -> dict:
    "A crate whose entity lacks some properties."
    changed = copy.deepcopy(described)
    entity = next(e for e in changed["@graph"] if e["@id"] == id)
    for name in names: del entity[name]
    return changed


BREAKS = [   # (entity, what is taken from it, a word of the complaint)
    ("./", "license", "license"), ("./", "datePublished", "datePublished"),
    ("./", "name", "`name`"),
    ("./", "conformsTo", "Provenance Run Crate profile"), ("./", "mainEntity", "Main Workflow"),
    (NAME, "conformsTo", "RO-Crate specification version"), (NAME, "about", "`about`"),
    ("study.yaml", "programmingLanguage", "programmingLanguage"),
    ("study.yaml", "hasPart", "orchestrated tools"), ("#step/train", "workExample", "workExample"),
    ("#run/train", "instrument", "instrument"), ("#control/train", "object", "action"),
    ("#organize", "result", "workflow run"),
    ("#parameter/train.seed", "additionalType", "additionalType"),
    ("#connection/prepare.examples/train", "sourceParameter", "sourceParameter"),
]


@pytest.mark.slow
def test_the_public_validator_complains_of_what_is_missing(version, validator, tmp_path):
    described, folders = read_json(version.folder/NAME), {}
    for n, (id, name, word) in enumerate(BREAKS):
        folder = tmp_path/f"{n:02d}"
        shutil.copytree(version.folder, folder)
        write_json(folder/NAME, without(described, id, name))
        folders[str(folder)] = (id, name, word)
    shutil.copytree(version.folder, tmp_path/"lost")
    (tmp_path/"lost"/"index.html").unlink()
    folders[str(tmp_path/"lost")] = ("./", "index.html", "index.html")
    for folder, found in validate(validator, tmp_path, "REQUIRED", *map(Path, folders)).items():
        said = " ".join(i["message"] for i in found)
        assert folders[folder][2] in said, (folders[folder], said)


@pytest.mark.slow
def test_the_library_rocrate_reads_a_crate(version, validator, tmp_path):
    code = ("import json, sys; from rocrate.rocrate import ROCrate; c = ROCrate(sys.argv[1]); "
            "told = lambda name: [e.id for e in c.root_dataset[name]]; "
            "print(json.dumps([c.mainEntity.id, sorted(e.id for e in c.data_entities), "
            "told('mentions'), told('conformsTo')]))")
    done = subprocess.run([validator, "-c", code, version.folder], capture_output=True, text=True,
                          cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    main, data, actions, profiles = json.loads(done.stdout)
    assert main == "study.yaml"
    assert {"index.html", "rows.txt", "notebooks/02-train.ipynb"} <= set(data)
    assert {"#run", "#run/prepare", "#run/train", "#run/evaluate"} <= set(actions)
    assert profiles == list(PROFILES)


def test_a_crate_loads_nothing_heavy():
    "Describing a version loads nothing that takes long."
    done = subprocess.run(
        [sys.executable, "-c", "import sys, ftnb.study.crate, ftnb.study.rows; "
         "print([m for m in ('rdflib', 'pandas', 'torch', 'numpy') if m in sys.modules])"],
        capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_rows_of_the_builder_are_those_of_the_rows_file(version):
    assert read_rows_digests(version.folder) == {
        split: [row_digest(row_line(r)) for r in rows] for split, rows in ROWS.items()}
