"Verifying: what isn't as it was when a version was published is found, named and sized."
import json
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console
from toy import CELLS, toy_site, write_stage

from ftnb.foundation.errors import BadInput, StudyFailed
from ftnb.foundation.files import read_json, write_json
from ftnb.foundation.settings import Settings, Stated, settings
from ftnb.study.plan import BadStudy, read_study
from ftnb.study.runner import perform
from ftnb.study.versions import find_version, kept_files, open_version
from ftnb.versions import isolation
from ftnb.versions.isolation import clean_environment, clean_room, rerun
from ftnb.versions.sameness import Side
from ftnb.versions.verify import Changes, Verdict, changes, damage, verify, with_reads

STUDY = "study: toy\nquestion: Does it run?\nstages: [prepare, train]\nprepare:\n  path: data.csv\n"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    "The toy repository with a version of two stages."
    site = toy_site(tmp_path_factory.mktemp("published"))
    (site.root/"params"/"toy.yaml").write_text(STUDY)
    plan = read_study(site.root/"params"/"toy.yaml", ["train.factor=3.0"], site)
    return site, perform(plan, site=site).version


@pytest.fixture
def toy(published, tmp_path):
    "A copy of it that may be changed."
    site, version = published
    (tmp_path/".ftnb").mkdir()
    for part in ("params", "nbs", "data.csv", "reports", ".ftnb/versions", ".ftnb/hashes.json",
                 ".ftnb/installed.json"):
        source, target = site.root/part, tmp_path/part
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    for file in (tmp_path/".ftnb").rglob("*"): file.chmod(0o755)      # the store's are read-only
    site = Settings(tmp_path.resolve(), Stated(tracking_uri=""))
    return site, find_version("toy", site)


def test_nothing_changed_is_identical(published):
    "Run again cold, with nothing of this session: the same to the bit; the store isn't touched."
    site, version = published
    before = {p: p.stat().st_mtime_ns for p in site.store.rglob("*") if p.is_file()}
    verdict = verify(version, site, quiet=True)
    assert verdict.rung == "identical", verdict.rows()
    assert verdict.exit_code == 0 and not verdict.changes and verdict.network.startswith("denied")
    after = {p: p.stat().st_mtime_ns for p in site.store.rglob("*") if p.is_file()}
    stat_caches = {site.store/"hashes.json", site.store/"installed.json"}
    assert {p for p in before.keys() ^ after.keys() if p not in stat_caches} == set()
    assert [v.number for v in map(open_version, version.folder.parent.iterdir())] == [1]


def test_what_people_wrote_in_a_data_card_is_there_again(tmp_path):
    "A stage reads the site's data card: identical; after an edit of it, that file is named."
    site = toy_site(tmp_path)
    site.data_cards.mkdir()
    card = site.data_cards/"toy.md"
    card.write_text("why: to try\n")
    cells = list(CELLS["prepare"])
    cells[-1] += "\nbench.facts(why=(settings().data_cards/'toy.md').read_text())"
    write_stage(site, "prepare", cells)
    (site.root/"params"/"toy.yaml").write_text(STUDY)
    version = perform(read_study(site.root/"params"/"toy.yaml", [], site), site=site).version
    assert set(version.facts["stages"]["prepare"]["reads"]) == {"data_cards/toy.md"}
    verdict = verify(version, site, quiet=True)
    assert verdict.rung == "identical" and not verdict.changes, verdict.rows()
    card.write_text("why: to see\n")
    verdict = verify(version, site, quiet=True)
    assert verdict.exit_code == 3
    assert any("data_cards/toy.md" in " ".join(row) for row in verdict.rows()), verdict.rows()


SPY = """
import os
import socket
import time
tried = {}
for name, address in (("outside", ("192.0.2.1", 9)), ("here", ("127.0.0.1", PORT))):
    try: socket.create_connection(address, timeout=5)
    except OSError as e: tried[name] = type(e).__name__
    else: tried[name] = "connected"
bench.facts(tried=tried, variables=sorted(os.environ), home=os.listdir(os.environ["HOME"]),
            zone=time.strftime("%z", time.localtime(0)))
"""


def test_a_changed_cell_and_row_are_named_and_the_room_is_clean(toy, monkeypatch):
    site, version = toy
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: server.accept(), daemon=True).start()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("https_proxy", "http://192.0.2.1:3128")
    spy = SPY.replace("PORT", str(server.getsockname()[1]))
    cells = CELLS["prepare"]
    write_stage(site, "prepare", [*cells[:3], cells[3] + spy])
    (site.root/"data.csv").write_text((site.root/"data.csv").read_text().replace("\n3\n", "\n4\n"))
    verdict = verify(version, site, quiet=True, keep=True)
    lines = [text for _, text in verdict.rows()]
    assert verdict.rung == "differs" and verdict.exit_code == 3
    assert "code cell 4 of prepare" in lines and "data data.csv (prepare)" in lines
    assert str(verdict.same.first) == "prepare.train: line 3: 3.0 → 4.0"
    assert any(n.path == "train.weight" for n in verdict.same.numbers)
    json.dumps(verdict.to_dict())
    assert verdict.room
    seen = read_json(verdict.room/"reports"/"toy"/"1"/"metrics.json")["stages"]["prepare"]
    assert seen["tried"]["outside"] in ("OSError", "PermissionError", "ConnectionError")
    if "namespace" in verdict.network: assert seen["tried"]["here"] == "ConnectionRefusedError"
    assert not {"AWS_SECRET_ACCESS_KEY", "https_proxy"} & set(seen["variables"])
    assert seen["zone"] == "+0545"
    isolation.remove_room(verdict.room)


def test_a_study_that_fails_says_so_and_keeps_the_evidence(toy):
    site, version = toy
    write_stage(site, "prepare", [*CELLS["prepare"], "1 / 0"])
    with pytest.raises(StudyFailed, match="ZeroDivisionError") as e:
        verify(version, site, quiet=True)
    room = Path(e.value.fix.rpartition(" ")[2])
    assert "stage prepare" in e.value.where and list(room.glob("store/runs/*/notebooks/*.ipynb"))
    isolation.remove_room(room)


def test_one_changed_byte_of_every_file_is_found_before_anything_runs(toy, monkeypatch):
    site, version = toy
    monkeypatch.setattr("ftnb.versions.verify.rerun", None)      # nothing may run
    kept = kept_files(version, site)/"workbench"
    named = {"timings.json", "run.html", "version.json"}
    files = [p for p in version.folder.rglob("*") if p.is_file() and p.name not in named]
    assert len(files) > 8
    for file in files:
        name = file.relative_to(version.folder).as_posix()
        with flipped(file):
            verdict = verify(version, site)
            assert name in verdict.damaged and name in verdict.sentence, verdict
            assert verdict.exit_code == 3 and verdict.rung == "differs"
    for name, file in (("prepare.train", "prepare/train.txt"), ("train.model",
                                                               "train/model/weight.json")):
        with flipped(kept/file):
            assert verify(version, site).damaged == {name: "in the store isn't what was recorded"}
    assert damage(version, site) == {}


class flipped:
    "One bit of a file is another one, for as long as a block lasts."

    def __init__(self, file: Path): self.file, self.before = file, file.read_bytes()

    def __enter__(self):
        content = bytearray(self.before)
        content[len(content) // 3] ^= 1
        self.file.write_bytes(content)

    def __exit__(self, *_): self.file.write_bytes(self.before)


def test_files_that_come_and_go_are_named(toy):
    site, version = toy
    (version.folder/"cards"/"new.md").parent.mkdir(exist_ok=True)
    (version.folder/"cards"/"new.md").touch()
    (version.folder/"front.json").unlink()
    (version.folder/"notebooks"/"01-prepare.ipynb").unlink()
    found = verify(version, site).damaged
    assert found == {"front.json": "is missing", "notebooks/01-prepare.ipynb": "is missing",
                     "cards/new.md": "was added",
                     "notebooks/prepare": "isn't the notebook that the stage left"}


@pytest.mark.parametrize("part, value", [("cells", ["0" * 64]), ("parameters", {"factor": 9.0}),
                                         ("packages", {"torch": "1.0"}), ("python", "3.9.1")])
def test_a_version_that_was_rewritten_disagrees_with_itself(toy, part, value):
    site, version = toy
    facts = read_json(version.folder/"version.json")
    facts["stages"]["train"]["made"][part] = value
    write_json(version.folder/"version.json", facts)
    assert "gives train a key" in verify(open_version(version.folder), site).sentence


def test_a_missing_input_is_named_before_anything_runs(toy):
    site, version = toy
    (site.root/"data.csv").unlink()
    with pytest.raises(BadStudy, match="no such file or folder 'data.csv'"): verify(version, site)


def a_package(folder: Path, number: str) -> None:
    "An installed distribution that isn't one."
    for old in folder.glob("fakepackage-*"): shutil.rmtree(old)
    (folder/"fakepackage.py").write_text("value = 1\n")
    info = folder/f"fakepackage-{number}.dist-info"
    info.mkdir()
    (info/"METADATA").write_text(f"Metadata-Version: 2.1\nName: fakepackage\nVersion: {number}\n")
    (info/"top_level.txt").write_text("fakepackage\n")
    (info/"RECORD").write_text(f"fakepackage.py,,\n{info.name}/METADATA,,\n")


def test_a_changed_and_a_missing_package_are_named(toy, tmp_path, monkeypatch):
    site, version = toy
    folder = tmp_path/"packages"
    folder.mkdir()
    a_package(folder, "1.0")
    monkeypatch.syspath_prepend(folder)
    write_stage(site, "prepare", [*CELLS["prepare"], "import fakepackage"])
    plan = read_study(site.root/"params"/"toy.yaml", (), site)
    from ftnb.study.hashing import Hashes
    from ftnb.study.usage import stages_made
    made = stages_made(plan, site, Hashes(site.store/"hashes.json"))
    assert made["prepare"]["packages"].get("fakepackage") == "1.0"
    facts = read_json(version.folder/"version.json")
    for stage in facts["stages"]: facts["stages"][stage]["made"] = made[stage]
    write_json(version.folder/"version.json", facts)
    version = open_version(version.folder)
    assert not changes(version, plan, site)
    a_package(folder, "2.0")
    found = changes(version, plan, site)
    assert found.lines() == ["package fakepackage 1.0 → 2.0 (prepare)"] and not found.study
    for file in folder.glob("fakepackage*"): shutil.rmtree(file) if file.is_dir() else file.unlink()
    with pytest.raises(BadInput, match="prepare needs fakepackage 1.0, which isn't installed") as e:
        changes(version, plan, site)
    assert e.value.fix == "pip install fakepackage==1.0"


def test_changes_of_modules_parameters_and_machine_are_named(toy, monkeypatch):
    site, version = toy
    machine = read_json(version.folder/"environment.json")["machine"]
    monkeypatch.setattr("ftnb.versions.verify.machine_facts",
                        lambda: {**machine, "instruction_sets": ["sse2"]})
    (site.stages/"helper.py").write_text("def lines(rows): return ''.join(map(str, rows))\n")
    plan = read_study(version.folder/"study.yaml", ["train.factor=4.0"], site)
    lines = changes(version, plan, site).lines()
    assert any(line.startswith("helper") for line in lines)
    assert "parameter train.factor 3.0 → 4.0 (train)" in lines
    assert any(line.startswith("instruction_sets") for line in lines)
    (site.root/"params"/"toy.yaml").write_text(STUDY + "train:\n  steps: 9\n")
    assert any(line.startswith("params/toy.yaml is another") for line in
               changes(version, plan, site).lines())


def test_a_file_that_a_stage_read_unsaid_counts(toy):
    site, version = toy
    then = Side(version.folder, kept_files(version, site))
    now = Side(version.folder, kept_files(version, site))
    facts = read_json(version.folder/"version.json")
    facts["stages"]["train"]["reads"] = {"notes.txt": "0" * 64}
    vars(now)["facts"] = facts
    found = with_reads(Changes(), then, now)
    assert found.study and found.lines() == ["file notes.txt, which it reads (train)"]
    assert not with_reads(Changes(), then, then)


def test_signatures_alone_run_nothing(toy, monkeypatch):
    from test_study_signing import write_key

    from ftnb.study.signing import sign, sign_models
    site, version = toy
    monkeypatch.setattr("ftnb.versions.verify.rerun", None)
    verdict = verify(version, site, signatures=True)
    assert (verdict.signature, verdict.exit_code, verdict.rung) == ("unsigned", 0, "")
    write_key(site.root)
    site = Settings(site.root, Stated(signing_key="key.pem", verify_key="key.pub"))
    assert verify(version, site, signatures=True).exit_code == 3    # a key is set, but unsigned
    sign(version.folder, site)
    assert len(sign_models(version, site)) == 1
    verdict = verify(version, site, signatures=True)
    assert verdict.exit_code == 0 and verdict.signature.endswith("valid")
    with flipped(version.folder/"timings.json"):                    # no hash of ours covers it
        verdict = verify(version, site, signatures=True)
        assert verdict.damaged == {"timings.json": "differs"} and verdict.exit_code == 3
    write_key(site.root)                                            # another key
    verdict = verify(version, site, signatures=True)
    assert "isn't trusted" in verdict.signature and verdict.exit_code == 3


def test_what_goes_wrong_inside_is_raised_outside(toy):
    site, _ = toy
    (site.root/"wrong.yaml").write_text(STUDY + "train:\n  factr: 3\n")
    with pytest.raises(BadInput, match="factr"), clean_room() as room:
        rerun(site.root/"wrong.yaml", {}, site, room, quiet=True)
    assert not room.exists()


def test_the_environment_is_cleaned():
    site, room = Settings(Path("/srv/site")), Path("/srv/room")
    outside = {"PATH": "/bin", "HTTPS_PROXY": "x", "AWS_PROFILE": "x", "FTNB_STORE": "/else",
               "FTNB_SIGNING_PASSPHRASE": "x", "HF_TOKEN": "x", "PYTHONPATH": "/evil",
               "PYTHONHASHSEED": "7", "LC_ALL": "de_DE", "TZ": "UTC", "LD_LIBRARY_PATH": "/lib",
               "CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "2", "HOME": "/home"}
    inside = clean_environment(site, room, outside)
    assert {n: inside[n] for n in ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES",
                                   "OMP_NUM_THREADS")} == {n: outside[n] for n in (
        "PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    assert not {"HTTPS_PROXY", "AWS_PROFILE", "FTNB_SIGNING_PASSPHRASE", "HF_TOKEN",
                "PYTHONHASHSEED"} & inside.keys()
    assert "/evil" not in inside.get("PYTHONPATH", "")
    for name in ("FTNB_STORE", "FTNB_REPORTS", "FTNB_WORKBENCH", "FTNB_DATA_CARDS", "HOME"):
        assert inside[name].startswith(str(room))


def test_the_guard_stands_in_where_there_are_no_namespaces(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "leave_network", lambda: False)
    code = ("import sys; from pathlib import Path; from ftnb.versions import isolation;"
            "isolation.leave_network = lambda: False;"
            "print(isolation.deny_network(Path(sys.argv[1])));"
            "import subprocess; subprocess.run([sys.executable, '-c', sys.argv[2]])")
    tries = ("import socket\nfor a in [('192.0.2.1', 9), ('127.0.0.1', 9), ('::1', 9)]:\n"
             "    try: socket.create_connection(a, timeout=3)\n"
             "    except OSError as e: print(type(e).__name__)\n"
             "try: socket.getaddrinfo('example.org', 80)\n"
             "except OSError as e: print(type(e).__name__)\n"
             "a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))")
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path), tries], capture_output=True,
                          text=True, check=True).stdout.splitlines()
    assert said[0].startswith("denied to Python only") and said[1] == "PermissionError"
    assert "PermissionError" not in said[2:4] and said[4:] == ["PermissionError", "b'x'"]


def test_a_verdict_displays_itself(toy):
    verdict = Verdict("toy@1", "differs", {"a[0].md": "was <changed>"}, room=Path("/srv/room"))
    assert "&lt;changed&gt;" in verdict._repr_html_() and repr(verdict) == verdict.sentence
    console = Console(width=90, record=True, file=open("/dev/null", "w"))
    console.print(verdict)
    assert "a[0].md was <changed>" in console.export_text()


@pytest.mark.slow
def test_the_committed_quickstart_verifies():
    "Minutes: the whole quickstart again, in a clean room."
    verdict = verify(find_version("quickstart", settings()), settings(), quiet=True)
    assert verdict.exit_code == 0, verdict.rows()
    if not verdict.changes: assert verdict.rung == "identical", verdict.rows()
