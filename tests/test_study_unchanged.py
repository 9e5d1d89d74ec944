"A proof that nothing has changed holds while nothing has, and not a moment longer."
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from test_study_usage import TICK, Plan, distribution, fresh, known, later, plan, put
from toy import toy_site

from ftnb.foundation import settings as full
from ftnb.foundation.settings import Settings, settings
from ftnb.study import unchanged
from ftnb.study.unchanged import Asked, proof_file, proven, record_proof, said
from ftnb.study.usage import stages_made

ROOT = Path(__file__).resolve().parent.parent
ANSWER = {"text": "toy@1: ship\nreports/toy/1/index.html", "facts": {"study": "toy", "new": False},
          "note": "nothing has changed since then; --force runs it again"}


class Toy:
    "The toy repository with a version, and whoever finds out whether it still holds."

    def __init__(self, site: Settings):
        self.site, self.root = site, site.root
        self.study = site.root/"params"/"toy.yaml"
        self.version = site.reports/"toy"/"1"
        self.kept = site.store/"versions"/"toy"/"1"
        for folder in (self.version/"notebooks", self.kept/"workbench"/"train"/"model"):
            folder.mkdir(parents=True)
        for name in ("version.json", "index.html", "notebooks/01-prepare.ipynb"):
            (self.version/name).write_text("{}")
        self.model = self.kept/"workbench"/"train"/"model"/"weight.json"
        self.model.write_text("12345")
        self.object = site.store/"objects"/"ab"/"abcd"
        self.object.parent.mkdir(parents=True)
        os.link(self.model, self.object)
        self.receipts = site.store/"receipts"/"train"/"key"
        self.receipts.mkdir(parents=True)
        (self.receipts/"one.json").write_text("{}")

    def find_out(self, given: Plan | None = None, overrides=(), began: int | None = None) -> bool:
        hashes = fresh()
        stages_made(given or plan(), self.site, hashes)
        hashes.of(self.object)
        mine, listed = [self.version, self.kept, self.receipts], [self.site.reports/"toy"]
        return record_proof(self.study, list(overrides), self.site, hashes, ANSWER,
                            began or later(), mine, listed)

    def still(self, *more: str) -> bool: return proven(["run", str(self.study), *more]) is not None


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Toy:
    site = toy_site(tmp_path)
    (site.stages/"unrelated.py").write_text("N = 1\n")
    site.store.mkdir()
    (site.store/"installed.json").symlink_to(known()/"installed.json")
    for name in [n for n in os.environ if n.startswith("FTNB_")]: monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return Toy(settings())


def backwards(file: Path) -> None:
    "Other content of the same size, the old time put back."
    put(file, file.read_text()[::-1])


CHANGES = {
    "data, same size and time": lambda t: backwards(t.root/"data.csv"),
    "data replaced by rename": lambda t: os.replace(
        shutil.copy2(t.root/"data.csv", t.root/"part"), t.root/"data.csv"),
    "data removed": lambda t: (t.root/"data.csv").unlink(),
    "data touched": lambda t: os.utime(t.root/"data.csv"),
    "data of the future": lambda t: os.utime(t.root/"data.csv", ns=(0, later() * 2)),
    "data of the past": lambda t: os.utime(t.root/"data.csv", ns=(0, 0)),
    "the study": lambda t: put(t.study, t.study.read_text().replace("Does", "Will")),
    "the settings": lambda t: put(t.root/"settings.ini", "[ftnb]\ntracking_uri=\n "),
    "a stage": lambda t: backwards(t.site.stages/"bias.ipynb"),
    "a helper": lambda t: backwards(t.site.stages/"helper.py"),
    "a helper made a package": lambda t: (
        (t.site.stages/"helper").mkdir(), (t.site.stages/"helper"/"__init__.py").write_text("")),
    "a module that shadows another": lambda t: (t.site.stages/"random.py").write_text(""),
    "the page": lambda t: put(t.version/"index.html", "[]"),
    "a notebook of the version": lambda t: put(t.version/"notebooks"/"01-prepare.ipynb", "[]"),
    "a file more in the version": lambda t: (t.version/"notebooks"/"02").write_text(""),
    "a folder more in the version": lambda t: (t.version/"cards").mkdir(),
    "a file less in the version": lambda t: (t.version/"index.html").unlink(),
    "the version gone": lambda t: shutil.rmtree(t.version),
    "another version": lambda t: (t.site.reports/"toy"/"2").mkdir(),
    "the model": lambda t: put(t.model, "12346"),
    "the object behind it": lambda t: put(t.object, "12346"),
    "the model unlinked and the same": lambda t: (
        t.model.unlink(), shutil.copy2(t.object, t.model)),
    "a receipt": lambda t: put(t.receipts/"one.json", "[]"),
    "another receipt": lambda t: (t.receipts/"two.json").write_text("{}"),
    "the store gone": lambda t: shutil.rmtree(t.site.store),
}
NOT_CHANGES = {
    "nothing": lambda t: None,
    "an unrelated study": lambda t: (t.root/"params"/"other.yaml").write_text("study: other\n"),
    "another study's version": lambda t: (t.site.reports/"other"/"1").mkdir(parents=True),
    "an unrelated module's text": lambda t: (t.site.stages/"unrelated.py").write_text("N = 2\n"),
    "a run in progress": lambda t: (t.site.store/"runs"/"toy-x").mkdir(parents=True),
    "read only": lambda t: (t.root/"data.csv").read_text(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_ends_the_proof(toy, name):
    assert toy.find_out() and toy.still() and toy.still("--json")
    time.sleep(TICK)
    CHANGES[name](toy)
    assert not toy.still()


@pytest.mark.parametrize("name", NOT_CHANGES)
def test_what_the_answer_did_not_depend_on_leaves_it(toy, name):
    assert toy.find_out() and toy.still()
    time.sleep(TICK)
    NOT_CHANGES[name](toy)
    assert toy.still()


def test_a_link_that_is_made_to_point_elsewhere_ends_the_proof(toy):
    for name in "ab":
        (toy.root/name).mkdir()
        (toy.root/name/"1.csv").write_text("1\n")
    (toy.root/"link").symlink_to("a")
    given = plan(prepare__path="link")
    assert toy.find_out(given) and toy.still()
    (toy.root/"link").unlink()
    (toy.root/"link").symlink_to("b")               # a folder with the same names in it
    assert not toy.still()


@pytest.mark.parametrize("path, new", [
    ("folder", "folder/new.csv"), ("folder", "folder/empty/new.csv"),
    ("folder/*.csv", "folder/new.csv"), ("**/1.csv", "folder/empty/1.csv"),
    ("f*/1.csv", "fresh/1.csv"), ("missing.csv", "missing.csv")])
def test_a_file_that_appears_ends_the_proof(toy, path, new):
    (toy.root/"folder"/"empty").mkdir(parents=True)
    (toy.root/"folder"/"1.csv").write_text("1\n")
    assert toy.find_out(plan(prepare__path=path)) and toy.still()
    (toy.root/new).parent.mkdir(exist_ok=True)
    (toy.root/new).write_text("2\n")
    assert not toy.still()


@pytest.mark.parametrize("name, value", [
    ("FTNB_KERNELS", "cold"), ("FTNB_ANYTHING", ""), ("PYTHONPATH", "/elsewhere"),
    ("PYTHONHASHSEED", "7")])
def test_another_environment_is_another_question(toy, monkeypatch, name, value):
    assert toy.find_out() and toy.still()
    with monkeypatch.context() as m:
        m.setenv(name, value)
        assert not toy.still()
    assert toy.still()


def test_another_folder_python_or_package_is_another_question(toy, monkeypatch):
    assert toy.find_out() and toy.still()
    for where, attribute, value in ((sys, "version", "3.99"), (sys, "prefix", "/elsewhere"),
                                    (unchanged, "package", lambda: "/elsewhere")):
        with monkeypatch.context() as m:
            m.setattr(where, attribute, value)
            assert not toy.still()
    monkeypatch.chdir(toy.root/"params")
    assert not toy.still()                          # paths are printed as seen from here


def test_other_parameters_are_another_question(toy):
    given = plan(train__steps=4)
    assert toy.find_out(given, ["train.steps=4"]) and toy.still("-p", "train.steps=4")
    assert toy.still("--parameter", "train.steps=4") and toy.still("--parameter=train.steps=4")
    assert not toy.still() and not toy.still("-p", "train.steps=5")
    assert not toy.still("-p", "train.steps=4", "-p", "train.steps=4")


def test_an_installed_package_ends_the_proof(toy, tmp_path_factory, monkeypatch):
    places = tmp_path_factory.mktemp("packages")
    distribution(places, "some", "1.0")
    monkeypatch.syspath_prepend(str(places))
    assert toy.find_out() and toy.still()
    time.sleep(TICK)
    (places/"some-1.0.dist-info").rename(places/"some-1.1.dist-info")
    assert not toy.still()


def test_an_edit_of_this_package_ends_the_proof(toy, monkeypatch):
    copy = toy.root/"copy"
    for name in ("__init__.py", "foundation", "study/unchanged.py"):
        (copy/"ftnb"/name).parent.mkdir(parents=True, exist_ok=True)
        if name == "foundation": shutil.copytree(ROOT/"ftnb"/name, copy/"ftnb"/name)
        else: shutil.copy(ROOT/"ftnb"/name, copy/"ftnb"/name)
    import ftnb
    monkeypatch.setattr(ftnb, "__file__", str(copy/"ftnb"/"__init__.py"))
    assert toy.find_out() and toy.still()
    (copy/"ftnb"/"study"/"__pycache__").mkdir()
    assert not toy.still()                          # the names in its folders changed, once
    assert toy.find_out() and toy.still()
    (copy/"ftnb"/"study"/"__pycache__"/"x.pyc").write_text("")
    assert toy.still()                              # compiled modules say nothing new
    backwards(copy/"ftnb"/"study"/"unchanged.py")
    assert not toy.still()


def test_nothing_that_is_too_new_is_proven(toy):
    now = time.time_ns()
    assert not toy.find_out(began=now) and not toy.still()
    assert not toy.find_out(began=now + 10**9)      # a second later: still within the racy two
    assert toy.find_out(began=time.time_ns() + 3 * 10**9) and toy.still()
    os.utime(toy.root/"data.csv", ns=(0, later() + 10**12))
    assert not toy.find_out()                       # a time in the future is never old enough


def test_what_changes_while_finding_out_is_not_proven(toy, monkeypatch):
    "A file that is edited after it was read, and before the proof is kept."
    real = unchanged.gather
    def late(*given):
        (toy.site.stages/"helper.py").write_text("lines = str\n")
        return real(*given)
    began = time.time_ns()
    monkeypatch.setattr(unchanged, "gather", late)
    assert not toy.find_out(began=began)


def test_what_is_gone_when_the_proof_is_kept_is_not_proven(toy, monkeypatch):
    real = unchanged.gather
    def late(change):
        def gather(*given):
            change()
            return real(*given)
        monkeypatch.setattr(unchanged, "gather", gather)
    late(lambda: (toy.site.stages/"helper.py").unlink())
    assert not toy.find_out()
    late(lambda: (toy.site.stages/"helper.py").write_text("lines = str\n"))
    assert toy.find_out()
    late(lambda: (toy.root/"missing.csv").write_text("1\n"))
    assert not toy.find_out(plan(prepare__path="missing.csv"))
    late(lambda: shutil.rmtree(toy.version))
    assert not toy.find_out()


def test_a_temporary_file_among_the_versions_does_no_harm(toy):
    "A run tries whether it can write there, which changes the folder's time."
    now = time.time_ns() + 3 * 10**9
    (toy.site.reports/"toy"/"trying").write_text("")
    (toy.site.reports/"toy"/"trying").unlink()
    os.utime(toy.site.reports/"toy", ns=(later(), later()))
    assert toy.find_out(began=now) and toy.still()
    (toy.site.reports/"toy"/"2").mkdir()
    os.utime(toy.site.reports/"toy"/"2", ns=(later(), later()))
    assert not toy.find_out(began=now)              # a version that is new


@given(st.integers(0, 10**7), st.integers(1, 255))
@profile(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_flipped_bit_proves_nothing(toy, where, flip):
    if not toy.still(): assert toy.find_out()
    circumstances = Asked(str(toy.study), []).circumstances(str(toy.root))
    file = Path(proof_file(str(toy.site.store), circumstances))
    whole = bytearray(file.read_bytes())
    damaged = bytearray(whole)
    damaged[where % len(whole)] ^= flip
    file.write_bytes(damaged)
    assert not toy.still()
    file.write_bytes(whole[:where % len(whole)])
    assert not toy.still()
    file.write_bytes(whole)
    assert toy.still()


def test_a_proof_of_another_question_in_the_same_file_is_none(toy, monkeypatch):
    monkeypatch.setattr(unchanged, "crc32", lambda content: 0 if content[:1] == b"[" else 1)
    assert toy.find_out() and toy.still()           # every question's file has one name now
    assert not toy.still("-p", "train.steps=4")


@pytest.mark.parametrize("ini, env, found", [
    ("[ftnb]\nstore = elsewhere\n", None, "elsewhere"), ("[ftnb]\nSTORE: a b\n", None, None),
    ("[ftnb]\n# store = x\nstore=~/x\n", None, "~/x"), ("", None, ".ftnb"),
    ("[ftnb]\n", "by/env", "by/env"), ("[ftnb]\nstore = one\n  two\n", None, None)])
def test_the_store_is_found_as_the_full_reader_finds_it_or_not_at_all(
        tmp_path, monkeypatch, ini, env, found):
    (tmp_path/"settings.ini").write_text(ini)
    monkeypatch.delenv("FTNB_STORE", raising=False)
    if env: monkeypatch.setenv("FTNB_STORE", env)
    true = settings(tmp_path.resolve()).store
    mine = unchanged.store(str(tmp_path.resolve()))
    assert (mine == str(true)) == (found is not None)


def test_the_repository_is_found_as_the_full_reader_finds_it(toy, monkeypatch, tmp_path_factory):
    for folder in (toy.root, toy.root/"params", toy.site.stages, tmp_path_factory.mktemp("none")):
        monkeypatch.chdir(folder)
        assert unchanged.repository() == str(full.repository())
    (toy.root/"by link").symlink_to(toy.root)
    for named in (str(toy.root/"by link"), "~", "."):
        monkeypatch.setenv("FTNB_ROOT", named)
        assert unchanged.repository() == str(full.repository())


def test_a_site_that_would_not_be_found_again_gets_no_proof(toy):
    other = Settings(toy.root, full.Stated(store="elsewhere"))
    assert not record_proof(toy.study, [], other, fresh(), ANSWER, later())


def test_only_so_many_proofs_are_kept(toy, monkeypatch):
    monkeypatch.setattr(unchanged, "KEPT", 3)
    for n in range(6):
        assert toy.find_out(overrides=[f"train.steps={n}"])
        time.sleep(TICK)
    assert len(list((toy.site.store/"proofs").iterdir())) == 3 and toy.still("-p", "train.steps=5")


# the command itself
LIBRARIES = ["typer", "click", "rich", "ruamel", "nbformat", "papermill", "torch", "pydantic",
             "pandas", "numpy", "ftnb.cli", "hashlib", "tempfile", "typing", "dataclasses"]


def door(*words: str, code: str = "") -> subprocess.CompletedProcess:
    start = f"import sys; from ftnb.door import main\ntry: main()\nfinally: {code or 'pass'}"
    return subprocess.run([sys.executable, "-c", start, *words], capture_output=True, text=True)


@pytest.fixture
def proof(toy, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert toy.find_out()
    return toy


def test_the_door_says_what_was_found_out(proof):
    done = door("run", "params/toy.yaml")
    assert (done.stdout, done.stderr) == (said(ANSWER, False) + "\n", "")
    done = door("run", "--json", "params/toy.yaml")
    assert json.loads(done.stdout) == ANSWER["facts"]


def test_the_door_loads_no_library(proof):
    code = f"print([m for m in {LIBRARIES} if m in sys.modules])"
    assert door("run", "params/toy.yaml", code=code).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("words", [
    ["run", "params/toy.yaml", "--check"], ["run", "--help"], ["run", "params/none.yaml"],
    ["--version"], ["run", "params/toy.yaml", "--nonsense"], [],
    ["run", "params/toy.yaml", "-p", "x.y=1"]])
def test_everything_else_is_handed_over(proof, words):
    here = door(*words)
    command = [sys.executable, "-c", "from ftnb.cli import main; main()", *words]
    there = subprocess.run(command, capture_output=True, text=True)
    assert (here.returncode, here.stdout) == (there.returncode, there.stdout)
    assert here.stdout != said(ANSWER, False) + "\n"


def test_the_door_adds_little_to_python_s_own_start(proof):
    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    ours = ("-c", "from ftnb.door import main; main()", "run", "params/toy.yaml")
    times = [(seconds(*ours), seconds("-c", "pass")) for _ in range(9)]
    mine, bare = (min(t) for t in zip(*times, strict=True))
    assert mine < 2 * bare                          # 37 ms and 27 ms were measured


def test_a_folder_that_is_gone_is_no_place_to_prove_anything(toy, monkeypatch):
    (toy.root/"gone").mkdir()
    monkeypatch.chdir(toy.root/"gone")
    (toy.root/"gone").rmdir()
    assert not toy.still()
