"The house stays in order: floors, pinned revisions, notebooks that export or run, true documents."
import ast
import json
import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from ftnb.foundation.files import read_json
from ftnb.foundation.parameters import holds_numbers, limits, read_parameters
from ftnb.foundation.settings import settings
from ftnb.study.hashing import Hashes
from ftnb.study.plan import ORDER, plain, read_study, read_yaml, study_schema
from ftnb.study.usage import differences, report_made, stages_made
from ftnb.study.versions import changed_files, open_version

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ["foundation", "rehearsal", "data", "places", "train", "evaluate", "bias", "explain",
          "release", "platform", "study", "versions", "cli", "door"]
STUDIES = sorted((ROOT/"params").glob("*.yaml"))
LIBRARY = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb")
                 if "stages" not in p.parts and ".ipynb_checkpoints" not in p.parts)
STAGES = [ROOT/"nbs"/"stages"/f"{name}.ipynb" for name in ORDER]


def tracked() -> list[Path]:
    "The files that git knows, or all of them in an export without git."
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        return [p for p in ROOT.rglob("*") if p.is_file() and ".venv" not in p.parts]
    return [ROOT/name for name in listed.stdout.splitlines() if (ROOT/name).is_file()]


def imports(file: Path) -> set[str]:
    "The ftnb modules that a module imports, anywhere in it."
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module: found.add(node.module)
        if isinstance(node, ast.Import): found |= {a.name for a in node.names}
    return {name for name in found if name.startswith("ftnb.")}


MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p
           for p in (ROOT/"ftnb").rglob("*.py") if not p.name.startswith("_")}


def test_imports_go_down():
    for name, file in MODULES.items():
        for other in imports(file):
            here, there = name.split(".")[1], other.split(".")[1]
            goes_down = FLOORS.index(there) <= FLOORS.index(here)
            assert goes_down, f"{name} imports {other}, a floor above"


def test_the_rehearsal_knows_nothing_of_the_rest():
    "It can be used alone: of ftnb it needs the ground floor only."
    for name, file in MODULES.items():
        if not name.startswith("ftnb.rehearsal."): continue
        areas = {other.split(".")[1] for other in imports(file)}
        assert areas <= {"foundation", "rehearsal"}, f"{name} knows {areas}"


def test_no_import_goes_in_a_circle():
    graph = {name: {o for o in imports(file) if o in MODULES} for name, file in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)   # raises CycleError


@pytest.mark.parametrize("study", STUDIES, ids=lambda p: p.stem)
def test_studies_are_right(study):
    try: plan = read_study(study)
    except Exception as e:
        problems = getattr(e, "problems", [])
        only_files = all("no such file" in p.what for p in problems)   # the user's own
        assert problems and only_files, str(e)
        return
    assert plan.name == study.stem and plan.question


@pytest.mark.parametrize("study", STUDIES, ids=lambda p: p.stem)
def test_revisions_are_pinned(study):
    for section in plain(read_yaml(study)).values():
        if not isinstance(section, dict): continue
        for name, value in section.items():
            if name.endswith("revision") and value:
                assert re.fullmatch(r"[0-9a-f]{40}", value), name
        if section.get("hub_dataset"):
            assert section.get("hub_revision"), f"{study.name}: unpinned data set"
        if "/" in section.get("base_model", ""):
            assert section.get("base_revision"), f"{study.name}: unpinned model"


def test_the_schema_for_editors_is_in_step():
    assert read_json(ROOT/"params"/"study.schema.json") == json.loads(json.dumps(study_schema())), \
        "run `ftnb params --write-schema params/study.schema.json`"


def cells(notebook: Path) -> list[dict]:
    return [{**c, "source": "".join(c["source"])} for c in read_json(notebook)["cells"]]


@pytest.mark.parametrize("notebook", STAGES, ids=lambda p: p.stem)
def test_a_stage_notebook_runs_and_exports_nothing(notebook):
    found = cells(notebook)
    code = [c for c in found if c["cell_type"] == "code"]
    assert sum("parameters" in c["metadata"].get("tags", []) for c in code) == 1
    assert not any(re.search(r"^#\|\s*(export|default_exp)", c["source"], re.M) for c in code)
    defines = any(re.search(r"^\s*(def|class) ", c["source"], re.M) for c in code)
    assert not defines, "a function: export it"
    has_outputs = any(c["outputs"] for c in code)
    assert not has_outputs, "a stage is committed without outputs: the report is its output"
    prose = "\n".join(c["source"] for c in found if c["cell_type"] == "markdown")
    assert prose.startswith("# ") and "\n> " in prose
    assert "## Findings" in prose and "## Limits" in prose


@pytest.mark.parametrize("notebook", STAGES, ids=lambda p: p.stem)
def test_every_parameter_says_what_it_means(notebook):
    for p in read_parameters(notebook).values():
        assert len(p.meaning) > 8, f"{p.name} needs a comment"
        if holds_numbers(p.type): assert limits(p.meaning), f"{p.name}'s comment states no range"


@pytest.mark.parametrize("notebook", LIBRARY, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_library_notebook_exports_shows_and_asserts(notebook):
    code = [c for c in cells(notebook) if c["cell_type"] == "code"]
    exported = [c for c in code if re.search(r"^#\|\s*exporti?\b", c["source"], re.M)]
    shown = [c for c in code if c not in exported]
    assert exported and not any("parameters" in c["metadata"].get("tags", []) for c in code)
    assert any(re.search(r"\bassert\b", c["source"]) for c in shown), "exports, and asserts nothing"
    assert any(c["outputs"] for c in shown), "exports, and shows nothing"
    assert any("## Limits" in c["source"] for c in cells(notebook))


def test_nothing_names_a_machine_or_holds_a_secret():
    from ftnb.data.privacy import find_private
    private = re.compile(r"/work/(?!flow)\w|/root/|/home/(?!user)\w+/")
    for file in tracked():
        if file.suffix in (".png", ".parquet") or file == Path(__file__): continue
        text = file.read_text(encoding="utf-8", errors="replace")
        found = private.search(text)
        assert not found, f"{file.relative_to(ROOT)}: {found[0]}"
        if file.suffix in (".yaml", ".ini", ".toml", ".sh"):
            assert not find_private(text, ["key"]), file


def test_committed_versions_are_whole():
    for file in (ROOT/"reports").glob("*/*/version.json"):
        version = open_version(file.parent)
        assert changed_files(version) == {}, version.name
        assert version.page.stat().st_size < 8_000_000
        assert version.decision in ("ship", "don't ship", "–")


@pytest.mark.slow
def test_the_committed_quickstart_is_of_this_code():
    "`make report` on this checkout would find the report that is committed."
    versions = [p for p in (ROOT/"reports"/"quickstart").iterdir() if p.name.isdigit()]
    committed = open_version(max(versions, key=lambda p: int(p.name)))
    plan, hashes = read_study(ROOT/"params"/"quickstart.yaml"), Hashes(None)
    for stage, made in stages_made(plan, settings(), hashes).items():
        changed = differences(committed.facts["stages"][stage]["made"], made)
        assert not changed, f"run `make report` and commit: {changed}"
    assert committed.facts["report"] == report_made(settings(), hashes)


def test_the_readme_names_what_there_is():
    text = (ROOT/"README.md").read_text()
    for path in re.findall(r"\]\((?!http|#)([^)#]+)\)", text): assert (ROOT/path).exists(), path
    targets = re.findall(r"^([a-z-]+):", (ROOT/"Makefile").read_text(), re.M)
    for target in re.findall(r"\bmake ([a-z-]+)\b", text):
        assert target in targets or not re.search(rf"`make {target}", text), target
    from ftnb.cli import app
    commands = {c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands}
    commands |= {str(group.name) for group in app.registered_groups}
    for command in re.findall(r"^\s*ftnb ([a-z]+)", text, re.M): assert command in commands, command


def test_the_rehearsals_rooms_are_all_named():
    text = (ROOT/"nbs"/"rehearsal"/"README.md").read_text()
    named = re.findall(r"^- \[(\w+)\]\(\1\.ipynb\)", text, re.M)
    assert sorted(named) == [p.stem for p in LIBRARY if p.parent.name == "rehearsal"]


def test_the_front_door_opens_quickly():
    "`ftnb --help` loads no torch, transformers or papermill."
    import sys
    heavy = ("torch", "transformers", "papermill", "mlflow")
    command = [sys.executable, "-c",
               f"import sys, ftnb.cli; print([m for m in {heavy} if m in sys.modules])"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=settings().root)
    assert found.stdout.strip() == "[]", found.stdout + found.stderr
