"""A run does what a change calls for, survives anything, and ends in the same bytes.

On a repository of six stages that take no time (tests/toy.py). What changes is put back after each
case, and a run then executes nothing: A → B → A.
"""
import ctypes
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import faults
import nbformat
import pytest
from toy import CELLS, toy_site, write_stage

from ftnb.foundation.errors import BadInput, StudyFailed
from ftnb.foundation.settings import Settings, Stated
from ftnb.study.plan import ORDER, read_study
from ftnb.study.reasons import explain
from ftnb.study.runner import Outcome, perform
from ftnb.study.versions import changed_files, kept_files, study_versions

THREE = "study: toy\nquestion: Does it run?\nstages: [prepare, train, evaluate]\n"
ALL = ("prepare", "train", "evaluate")


def study(site: Settings, text: str = THREE, name: str = "toy") -> Path:
    file = site.root/"params"/f"{name}.yaml"
    file.write_text(text)
    return file


def run(site: Settings, *given: str, **options) -> Outcome:
    return perform(read_study(site.root/"params"/"toy.yaml", given, site), site=site, **options)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A repository whose study has run."
    made = toy_site(tmp_path_factory.mktemp("toy"))
    study(made)
    (made.root/"words.txt").write_text("undeclared")
    prepare = [*CELLS["prepare"], "from pathlib import Path\n"
               "word = (settings().root/'words.txt').read_text()[:2]"]
    write_stage(made, "prepare", prepare)
    (made.stages/"unused.py").write_text("x = 1\n")
    first = run(made)
    assert first.executed == ALL and first.new
    return made


def edit(file: Path, old: str, new: str) -> Callable[[], None]:
    "Change a text file; the undo."
    before = file.read_bytes()
    assert old.encode() in before
    file.write_bytes(before.replace(old.encode(), new.encode()))
    return lambda: (file.write_bytes(before), None)[1]


def edit_cell(file: Path, old: str, new: str) -> Callable[[], None]:
    "Change a notebook's cell; the undo."
    before = file.read_bytes()
    nb = nbformat.read(file, as_version=4)
    cell = next(c for c in nb.cells if old in c.source)
    cell.source = cell.source.replace(old, new)
    nbformat.write(nb, file)
    return lambda: (file.write_bytes(before), None)[1]


def touch(file: Path) -> Callable[[], None]:
    s = file.stat()
    os.utime(file, ns=(s.st_atime_ns, s.st_mtime_ns + 3_600_000_000_000))
    return lambda: None


def behind_the_clock(file: Path, old: str, new: str) -> Callable[[], None]:
    "Change a file's content to one of the same length, and put its time back."
    s = file.stat()
    undo = edit(file, old, new)
    assert file.stat().st_size == s.st_size
    os.utime(file, ns=(s.st_atime_ns, s.st_mtime_ns))
    return undo


def outputs_of(nb: Path) -> Callable[[], None]:
    "Give a notebook outputs, counts, metadata and other cell ids."
    before = nb.read_bytes()
    content = json.loads(before)
    for n, cell in enumerate(content["cells"]):
        cell["id"] = f"other-{n}"
        cell["metadata"]["collapsed"] = True
        if cell["cell_type"] == "code":
            cell["execution_count"] = n
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "said"}]
    nb.write_text(json.dumps(content))
    return lambda: (nb.write_bytes(before), None)[1]


CHANGES: dict[str, tuple[Callable[[Settings], Callable[[], None]], tuple[str, ...]]] = {
    "touch the input": (lambda s: touch(s.root/"data.csv"), ()),
    "other rows in the input": (lambda s: edit(s.root/"data.csv", "7\n", "70\n"), ALL),
    "the same size, time put back": (
        lambda s: behind_the_clock(s.root/"data.csv", "17\n", "71\n"), ("prepare", "evaluate")),
    "a comment in a cell": (
        lambda s: edit_cell(s.stages/"train.ipynb", "weight = 0.0", "weight = 0.0  # here"), ()),
    "formatting of a cell": (
        lambda s: edit_cell(s.stages/"train.ipynb", "weight = 0.0", "weight  =  (0.0)"), ()),
    "prose": (lambda s: edit_cell(s.stages/"train.ipynb", "Does train run?", "Does it?"), ()),
    "outputs, counts and ids": (lambda s: outputs_of(s.stages/"train.ipynb"), ()),
    "a cell": (
        lambda s: edit_cell(s.stages/"train.ipynb", "weight = 0.0", "weight = 0.5"),
        ("train", "evaluate")),
    "a cell, and nothing comes of it": (
        lambda s: edit_cell(s.stages/"train.ipynb", "weight = 0.0", "weight = 0.0 * 1"),
        ("train",)),
    "a helper that is imported": (
        lambda s: edit(s.stages/"helper.py", "{x}", "{x:.2f}"), ALL),
    "a helper, and nothing comes of it": (
        lambda s: edit(s.stages/"helper.py", "in rows", "in list(rows)"), ("prepare",)),
    "a comment in a helper": (lambda s: edit(s.stages/"helper.py", "def", "# why\ndef"), ()),
    "a module that nobody imports": (lambda s: edit(s.stages/"unused.py", "1", "2"), ()),
    "a file that is read unsaid": (
        lambda s: edit(s.root/"words.txt", "undeclared", "said"), ("prepare",)),
    "a parameter": (
        lambda s: edit(s.root/"params"/"toy.yaml", "stages:", "train: {factor: 3}\nstages:"),
        ("train", "evaluate")),
    "a default, said aloud": (
        lambda s: edit(s.root/"params"/"toy.yaml", "stages:", "train: {factor: 2.0}\nstages:"), ()),
    "a comment in the study": (
        lambda s: edit(s.root/"params"/"toy.yaml", "stages:", "# three\nstages:"), ()),
    "a setting": (
        lambda s: edit(s.root/"settings.ini", "[ftnb]", "[ftnb]\nstage_hours = 3"), ()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_change_calls_for_and_nothing_else(site, what):
    change, expected = CHANGES[what]
    undo = change(site)
    said = {r.stage: r.runs for r in explain(read_study(site.root/"params"/"toy.yaml", site=site),
                                             site).stages}
    try: outcome = run(site)
    finally: undo()
    assert outcome.executed == expected
    assert all(said[s] in ("yes", "perhaps") for s in expected)
    assert all(said[s] in ("no", "perhaps") for s in set(ALL) - set(expected))
    if not expected: assert not outcome.new
    assert run(site).executed == ()          # and back


def test_stages_that_join_or_leave(site):
    undo = edit(site.root/"params"/"toy.yaml", "train, evaluate]", "train, evaluate, explain]")
    joined = run(site)
    undo()
    assert joined.executed == ("explain",) and joined.new
    undo = edit(site.root/"params"/"toy.yaml", "train, evaluate]", "train]")
    left = run(site)
    undo()
    assert left.executed == () and left.new


def test_another_question_is_another_version_without_any_work(site):
    undo = edit(site.root/"params"/"toy.yaml", "Does it run?", "Does it walk?")
    outcome = run(site)
    undo()
    assert outcome.executed == () and outcome.new


# what is damaged

def object_of(site: Settings, outcome: Outcome, stage: str, name: str) -> Path:
    folder = kept_files(outcome.version, site)/"workbench"/stage
    found = outcome.version.facts["stages"][stage]["outputs"][name]
    path = folder/found["path"]
    assert path.exists()
    return path if path.is_file() else next(p for p in path.rglob("*") if p.is_file())


def spoil(file: Path) -> None:
    "Other content in place, as nobody should."
    file.chmod(0o644)
    file.write_bytes(b"999\n" + file.read_bytes()[4:])


@pytest.mark.parametrize("stage,name", [("train", "model"), ("evaluate", "said")])
def test_a_spoilt_output_is_found_and_computed_again(site, stage, name):
    first = run(site)
    content = object_of(site, first, stage, name).read_bytes()
    spoil(object_of(site, first, stage, name))       # a link: the store's object is spoilt, too
    again = run(site)
    assert again.executed == (stage,) and again.version == first.version
    assert object_of(site, again, stage, name).read_bytes() == content


def test_a_spoilt_copy_is_put_right_without_work(site):
    first = run(site)
    file = object_of(site, first, "evaluate", "said")
    content = file.read_bytes()
    file.unlink()
    file.write_text("another file")
    again = run(site)
    assert again.executed == () and file.read_bytes() == content


def test_lost_objects_are_computed_again(site):
    first = run(site)
    shutil.rmtree(site.store/"objects")
    again = run(site)
    assert again.executed == ALL and again.version == first.version and not again.new


@pytest.mark.parametrize("name", ["hashes.json", "installed.json"])
def test_a_damaged_memory_is_made_again(site, name):
    run(site)
    (site.store/name).write_text('{"half a')
    assert run(site).executed == ()


def test_a_damaged_receipt_counts_as_none(site):
    first = run(site)
    train = first.version.facts["stages"]["train"]
    receipt = site.store/"receipts"/"train"/train["key"]/f"{train['receipt']}.json"
    receipt.write_text(receipt.read_text()[:-20])
    again = run(site)
    assert again.executed == ("train",) and again.version == first.version


def test_a_version_that_was_written_to_is_not_what_was_published(site):
    version = run(site).version
    undo = edit(version.page, "<body", "<body ")
    assert changed_files(version) == {"index.html": "changed"}
    assert run(site).note == "since it was published: index.html changed"
    undo()
    assert run(site).note == ""
    assert changed_files(version) == {}


# what fails

def test_a_cell_that_fails_says_how_to_go_on_and_what_was_done_is_kept(site):
    undo = edit_cell(site.stages/"train.ipynb", "weight = 0.0", "weight = 1 / 0")
    before = len(study_versions("toy", site))
    undo_data = edit(site.root/"data.csv", "7\n", "8\n")
    with pytest.raises(StudyFailed) as e: run(site)
    assert "ZeroDivisionError" in e.value.what and "stage train, cell" in e.value.where
    evidence = Path(e.value.fix.split(" is ")[1].split(";")[0])
    nb = nbformat.read(site.root/evidence if not evidence.is_absolute() else evidence, 4)
    states = [c.metadata["papermill"]["status"] for c in nb.cells if "papermill" in c.metadata]
    assert states.count("failed") == 1 and "pending" in states and states[-1] != "completed"
    assert len(study_versions("toy", site)) == before
    undo()
    assert run(site).executed == ("train", "evaluate")      # prepare was done, and is kept
    undo_data()


def test_a_missing_data_file_is_said_before_anything_runs(site):
    (site.root/"data.csv").rename(site.root/"elsewhere.csv")
    try:
        with pytest.raises(BadInput, match=r"no such file or folder 'data.csv'"): run(
            site, "prepare.path=data.csv")
    finally: (site.root/"elsewhere.csv").rename(site.root/"data.csv")


def test_a_stage_that_takes_too_long_is_cut(site):
    undo = edit(site.root/"settings.ini", "[ftnb]", "[ftnb]\nstage_hours = 0.0004")
    from ftnb.foundation.settings import settings
    slow = settings(site.root)
    try:
        with pytest.raises(StudyFailed, match="stage train"):
            perform(read_study(slow.root/"params"/"toy.yaml", ["train.pause=20"], slow), site=slow)
    finally: undo()


def test_code_that_changes_while_its_stage_runs_leaves_no_result(site, monkeypatch):
    from ftnb.study import execution
    real, undone = execution.execute, []
    def meanwhile(*args, **more):
        done = real(*args, **more)
        undone.append(edit_cell(site.stages/"train.ipynb", "weight = 0.0", "weight = 0.25"))
        return done
    monkeypatch.setattr(execution, "execute", meanwhile)
    with pytest.raises(StudyFailed, match="changed while it ran: code cell"):
        run(site, "train.factor=9")
    monkeypatch.undo()
    undone[0]()
    assert run(site, "train.factor=9").executed == ("train", "evaluate")


# whole processes

COMMAND = [sys.executable, "-c", "from ftnb.door import main; main()", "run"]


def start(site: Settings, *arguments: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FTNB_")}
    heeds = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([*COMMAND, *arguments], cwd=site.root, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=heeds)


def left_running(root: Path) -> list[str]:
    "Processes that work in a repository, by the variables that kernels are told."
    mark, found = f"FTNB_ROOT={root}".encode(), []
    for p in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (p/"environ").read_bytes().split(b"\0"):
                found.append((p/"cmdline").read_text().replace("\0", " ")[:120])
        except OSError: continue
    return found


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name not in ("timings.json", "run.html")}


def killed_and_run_again(root: Path, kills: int, seed: int, reference: dict[str, bytes]) -> int:
    "Kill a run at random moments, run it again to the end; how many kills hit a run at work."
    draw, hits = random.Random(seed), 0
    for n in range(kills):
        folder = root/f"k{n}"
        site = toy_site(folder)
        study(site)
        rounds = draw.choice((1, 1, 2))
        for _ in range(rounds):
            process = start(site, "params/toy.yaml")
            try: process.wait(draw.uniform(.3, 9))
            except subprocess.TimeoutExpired: hits += 1
            process.send_signal(signal.SIGKILL)
            process.communicate()
            deadline = time.monotonic() + 10
            while left_running(site.root) and time.monotonic() < deadline: time.sleep(.05)
            assert not left_running(site.root), "something goes on after the runner has died"
        again = start(site, "params/toy.yaml")
        out, err = again.communicate(timeout=300)
        assert again.returncode == 0, out + err
        versions = study_versions("toy", site)
        assert [v.number for v in versions] == [1] and changed_files(versions[0]) == {}
        assert bytes_of(versions[0].folder) == reference
        shutil.rmtree(folder)
    return hits


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "The files of the toy study's version when nothing goes wrong."
    calm = toy_site(tmp_path_factory.mktemp("calm"))
    study(calm)
    return bytes_of(run(calm).version.folder)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_run_that_is_killed_goes_on_and_ends_in_the_same_bytes(tmp_path, undisturbed):
    killed_and_run_again(tmp_path, 2, 1, undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_two_hundred_kills(tmp_path, undisturbed):
    hits = killed_and_run_again(tmp_path, 200, 2, undisturbed)
    print(f"{hits} kills hit a run at work")
    assert hits >= 100


def interrupt_a_thread(pid: int) -> None:
    "What the system may do with a Ctrl-C: whichever thread doesn't block it can get it."
    def takes_it(thread: Path) -> bool:
        blocked = (thread/"status").read_text().partition("SigBlk:")[2].split()[0]
        return not int(blocked, 16) >> int(signal.SIGINT) - 1 & 1
    other = next(int(p.name) for p in Path(f"/proc/{pid}/task").iterdir()
                 if int(p.name) != pid and takes_it(p))
    tgkill = 234 if platform.machine() == "x86_64" else 131
    assert ctypes.CDLL(None).syscall(tgkill, pid, other, int(signal.SIGINT)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("interrupt", [lambda p: p.send_signal(signal.SIGINT),
                                       lambda p: interrupt_a_thread(p.pid)],
                         ids=["main thread", "another thread"])
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path, interrupt):
    site = toy_site(tmp_path)
    study(site)
    process = start(site, "params/toy.yaml", "-p", "train.pause=30")
    deadline = time.monotonic() + 120
    while not list((site.store/"receipts").glob("prepare/*/*.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(.1)
    time.sleep(1)
    interrupt(process)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "the same command goes on from" in err, out + err
    assert not study_versions("toy", site) and not left_running(site.root)
    assert run(site).executed == ("train", "evaluate")


def test_runs_at_once_share_the_work_and_number_their_versions(tmp_path):
    site = toy_site(tmp_path)
    study(site)
    for name, factor in (("toy-b", 3), ("toy-c", 4)):
        text = THREE.replace("study: toy", f"study: {name}") + f"train: {{factor: {factor}}}\n"
        study(site, text, name)
    wanted = [("toy", ()), ("toy", ()), ("toy-b", ()), ("toy-b", ("-p", "train.seed=2")),
              ("toy-c", ()), ("toy-c", ()), ("toy", ("-p", "train.seed=2")), ("toy-c", ())]
    processes = [start(site, f"params/{n}.yaml", *more, "--json") for n, more in wanted]
    said = [p.communicate(timeout=600) for p in processes]
    for p, (out, err) in zip(processes, said, strict=True): assert p.returncode == 0, out + err
    answers = [json.loads(out) for out, _ in said]
    for name, count in (("toy", 2), ("toy-b", 2), ("toy-c", 1)):
        versions = study_versions(name, site)
        assert [v.number for v in versions] == list(range(1, count + 1))
        assert all(changed_files(v) == {} for v in versions)
    executed = [s for a in answers for s in a["executed"]]
    assert {s: executed.count(s) for s in ALL} == {"prepare": 1, "train": 5, "evaluate": 5}


def test_the_door_answers_what_it_is_asked_again(tmp_path):
    site = toy_site(tmp_path)
    study(site)
    def ask(*more):
        p = start(site, "params/toy.yaml", *more)
        out, err = p.communicate(timeout=300)
        assert p.returncode == 0, err
        return out
    first = ask("--json")
    time.sleep(2.2)
    slow, fast = ask("--json"), ask("--json")
    assert json.loads(first)["new"] and slow == fast and not json.loads(fast)["new"]
    assert list((site.store/"proofs").glob("*.json"))
    (site.root/"data.csv").write_text("1\n2\n3\n4\n")
    assert json.loads(ask("--json"))["executed"] == ["prepare", "train", "evaluate"]


def test_every_stage_of_the_six_runs_side_by_side_where_it_may(tmp_path, monkeypatch):
    from ftnb.study import runner
    monkeypatch.setattr(runner, "slots", lambda: 2)
    site = toy_site(tmp_path)
    outcome = run(site)
    assert outcome.executed == ORDER
    again = run(site, force=True, cold=True)
    assert (again.version, again.new) == (outcome.version, False)


# faults at durable operations

def disturbed(folder: Path, kinds: tuple[str, ...], sample: int) -> dict[str, int]:
    "Put faults at durable operations of a whole run; what was published is whole."
    def here(home: Path) -> Settings: return Settings(home.resolve(), Stated(tracking_uri=""))

    def prepare(home: Path) -> None:
        toy_site(home)
        study(here(home))

    def believe(home: Path, ended: faults.Ended) -> None:
        assert all(changed_files(v) == {} for v in study_versions("toy", here(home)))
        assert not left_running(home.resolve())

    def result(home: Path) -> tuple[list[int], dict[str, bytes]]:
        versions = study_versions("toy", here(home))
        return [v.number for v in versions], bytes_of(versions[-1].folder) if versions else {}

    return faults.every_fault(folder, prepare, lambda home: run(here(home)), believe, result,
                              kinds=kinds, sample=sample)


def test_a_fault_at_a_durable_operation_is_survived(tmp_path):
    assert disturbed(tmp_path, (faults.KILL,), 2)[faults.KILL] >= 1    # how often it saves varies


@pytest.mark.slow
def test_faults_of_every_kind_are_survived(tmp_path):
    done = disturbed(tmp_path, faults.KINDS, 20)
    print(done)
    assert all(n >= 15 for n in done.values())


# a training that is killed

TRAINED = """study: trained
question: Does a training that was killed end in the same bytes?
stages: [prepare, train]
prepare: {source: files, path: params/example.csv, text_column: message, label_column: topic,
          group_column: "", keep_columns: [], split: stratified, dataset_name: example,
          languages: false, label_noise: "off"}
train: {epochs: 5, max_tokens: 32}
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_training_that_is_killed_goes_on_from_its_checkpoint(tmp_path):
    (tmp_path/"trained.yaml").write_text(TRAINED)
    root = Path(__file__).resolve().parent.parent

    def begin(name: str) -> tuple[subprocess.Popen, Settings]:
        folders = {n: str(tmp_path/name/n) for n in ("reports", "data_cards", "store")}
        told = {f"FTNB_{n.upper()}": folder for n, folder in folders.items()}
        process = subprocess.Popen(
            [*COMMAND, str(tmp_path/"trained.yaml")], cwd=root, text=True,
            env={**os.environ, **told, "FTNB_TRACKING_URI": ""},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return process, Settings(root, Stated(**folders, tracking_uri=""))

    process, calm = begin("calm")
    assert process.wait(300) == 0
    model = study_versions("trained", calm)[0].facts["stages"]["train"]["outputs"]["model"]

    process, hit = begin("hit")
    deadline = time.monotonic() + 300
    while not list((hit.store/"checkpoints").glob("*/train/checkpoint-*/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(.02)
    process.kill()
    process.communicate()
    process, hit = begin("hit")
    log, said = "runs/*/workbench/train/job/job.log", ""
    while process.poll() is None:
        time.sleep(.1)
        with suppress(OSError): said = "".join(f.read_text() for f in hit.store.glob(log)) or said
    assert process.returncode == 0 and "going on from checkpoint-" in said, process.communicate()
    version = study_versions("trained", hit)[0]
    assert version.facts["stages"]["train"]["outputs"]["model"]["sha256"] == model["sha256"]
    shown = (version.folder/"notebooks"/"02-train.ipynb").read_bytes()
    assert shown == (study_versions("trained", calm)[0].folder/"notebooks"/"02-train.ipynb"
                     ).read_bytes()
    assert not list((hit.store/"checkpoints").glob("*"))      # nobody needs them any more
