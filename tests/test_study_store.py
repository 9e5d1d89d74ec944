"What the store promises, under faults, tampering, full disks and eight processes at once."
import errno
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import faults
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from typer.testing import CliRunner

from ftnb.cli import app
from ftnb.foundation.errors import BadInput, StudyFailed
from ftnb.foundation.files import (
    effects,
    need_space,
    read_json,
    remove,
    sha256,
    write_json,
    write_text,
)
from ftnb.foundation.records import Workbench
from ftnb.study.hashing import Hashes
from ftnb.study.store import Damaged, Receipt, Store, changed, digest, held, holder

MADE = {"stage": "train", "parameters": {"epochs": 3}}
KEY = digest(MADE)
INPUTS = {"prepare.rows": "ab" * 32}


@pytest.fixture(autouse=True)
def fast_disk():
    with faults.without_waiting(): yield


def open_store(home: Path, told=None) -> Store:
    return Store(home/".ftnb", Hashes(), told or (lambda message: None))


def stage(home: Path, content: str = "weights", name: str = "train") -> Path:
    "A stage's folder and notebook, as the kernel leaves them."
    remove(home/"bench"/name)
    bench = Workbench.open(name, home/"bench")
    write_text(bench.folder/"job"/"model"/"a.txt", content)
    write_text(bench.folder/"job"/"model"/"b"/"c.txt", content * 2)
    write_text(bench.folder/"job"/"input"/"rows.txt", "somebody else's")
    write_text(bench.folder/"job"/"checkpoints"/"1.txt", "half way")
    bench.hand_on("model", "job/model", "toy/model/1")
    bench.facts(loss=0.5)
    write_text(home/f"{name}.ipynb", f"executed {content}")
    return bench.folder


def keep(home: Path, store: Store | None = None, key: str = KEY, name: str = "train") -> Receipt:
    return (store or open_store(home)).keep_stage(
        home/"bench"/name, name, MADE, key, INPUTS, {}, home/f"{name}.ipynb", {"seconds": 1.0}, {})


def find(home: Path, store: Store | None = None, key: str = KEY) -> Receipt | None:
    return (store or open_store(home)).find("train", key, INPUTS, sha256)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in sorted(folder.rglob("*")) if p.is_file()}


def believed(home: Path, ended: faults.Ended | None = None) -> None:
    "What must hold whatever happened: a receipt that can be found leads to whole objects."
    store = open_store(home)
    for file in store.root.glob("receipts/*/*/*.json"):
        receipt = Receipt.from_dict(json.loads(file.read_text()))         # none is half written
        for sha in receipt.objects: assert sha256(store.place(sha)) == sha, (ended, sha)
    if ended and ended.error: assert "No space" in ended.error or "Input/output" in ended.error \
        or "disk" in ended.error, ended.error


def test_gc_checks_and_mends(tmp_path, monkeypatch):
    "A changed byte: named with exit code 3, mended with --remove, whole afterwards."
    monkeypatch.setenv("FTNB_STORE", str(tmp_path/".ftnb"))
    monkeypatch.setenv("FTNB_REPORTS", str(tmp_path/"reports"))
    stage(tmp_path)
    receipt = keep(tmp_path)
    place = open_store(tmp_path).place(min(receipt.objects))
    def gc(*options: str):
        done = CliRunner().invoke(app, ["gc", *options], catch_exceptions=False)
        return done.exit_code, done.output
    assert gc("--check")[0] == 0
    place.chmod(0o644)
    place.write_bytes(b"x" + place.read_bytes()[1:])
    place.chmod(0o444)
    code, said = gc("--check")
    assert code == 3 and "isn't what its name says" in said
    assert json.loads(gc("--check", "--json")[1])["flaws"][0]["path"].endswith(place.name)
    assert gc("--check", "--remove")[0] == 0 == gc("--check")[0]
    assert find(tmp_path) is None         # computed again, when a study asks for it

# -- faults at every durable operation: all of them in the slow tests, a sample otherwise

SAMPLES = [pytest.param(None, marks=pytest.mark.slow), 5]
DIE_OR_FAIL = (faults.KILL, faults.EIO, faults.FULL)

def earlier(home: Path) -> Receipt:
    "Before the fault: one stage is kept, another is ready to be."
    stage(home, "old weights")
    receipt = keep(home, key="0" * 64)
    stage(home)
    return receipt


@pytest.mark.parametrize("sample", SAMPLES)
def test_keeping_survives_every_fault(tmp_path, sample):
    def believe(home, ended):
        believed(home, ended)
        assert find(home, key="0" * 64), "an earlier receipt was lost"
        if ended.at == faults.END: assert find(home), "what was kept didn't outlive a power cut"
    def result(home):
        store = open_store(home)
        names = {p.name for p in store.root.glob("objects/*/*") if p.suffix != ".part"}
        return find(home), names, store.check(deep=True).receipts
    done = faults.every_fault(tmp_path, earlier, keep, believe, result, ".ftnb", sample=sample)
    assert set(done) == set(faults.KINDS) and min(done.values()) >= (sample or 30), done


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("instead", ["something else", "weights"])
def test_restoring_survives_every_fault(tmp_path, sample, instead):
    def before(home):
        stage(home)
        keep(home)
        stage(home, instead)
        write_text(home/"bench"/"train"/"left over"/"x.txt", "x")
        write_text(home/"bench"/"train"/"job"/"model"/"a.txt", "tampered with")
    def restore(home):
        store = open_store(home)
        receipt = find(home, store)
        assert receipt
        store.restore(receipt, home/"bench"/"train")
    def believe(home, ended):
        believed(home, ended)
        if ended.at == "unlink record.json": return    # as it was: nothing is done yet
        record = home/"bench"/"train"/"record.json"
        if not record.exists(): return       # half restored: it says that the stage hasn't run
        said = read_json(record)["outputs"]["model"]
        assert sha256(home/"bench"/"train"/"job"/"model") == said["sha256"], ended
    def result(home): return tree(home/"bench"/"train")
    done = faults.every_fault(tmp_path, before, restore, believe, result,
                              kinds=DIE_OR_FAIL, sample=sample)
    assert min(done.values()) >= (sample or 10), done


@pytest.mark.parametrize("sample", SAMPLES)
def test_running_and_collecting_survive_every_fault(tmp_path, sample):
    def before(home):
        earlier(home)
        for n in range(1):
            stage(home, f"unneeded {n}")
            keep(home, key=f"{n + 1}" * 64)
        write_version(home, open_store(home).receipts("train", "0" * 64)[0])
    def work(home):
        store = open_store(home)
        with store.run("toy"): find(home, store, "0" * 64)
        store.collect(store.garbage(home/"reports", days=0))
    def believe(home, ended):
        believed(home, ended)
        assert find(home, key="0" * 64), "what a version needs was collected"
    def result(home):
        store = open_store(home)
        return sorted(p.name for p in store.root.glob("objects/*/*")), len(store._receipts())
    done = faults.every_fault(tmp_path, before, work, believe, result,
                              kinds=DIE_OR_FAIL, sample=sample)
    assert min(done.values()) >= (sample or 10), done


def test_everything_the_store_changes_is_announced(tmp_path):
    def work():
        store = open_store(tmp_path)
        with store.run("toy"), store.lock("train"):
            receipt = keep(tmp_path, store)
            store.restore(receipt, tmp_path/"other")
            damage(store.place(receipt.notebook))
            find(tmp_path, store)
        remove(tmp_path/"bench")
        store.repair()
        store.collect(store.garbage(tmp_path/"reports", days=0))
    stage(tmp_path)
    found = faults.unannounced(tmp_path, work)
    assert len(found) == 1 and found[0].startswith("open .ftnb/objects/"), found   # the damage


def test_a_file_that_changes_while_it_is_taken_in_is_refused(tmp_path):
    folder = stage(tmp_path)
    def still_writing(operation, path):
        if operation == "link" and path.parent.parent.name == "objects":
            (folder/"job"/"model"/"a.txt").write_text(f"more {time.monotonic_ns()}")
    with effects.watch(still_writing), pytest.raises(StudyFailed, match="changed while"):
        keep(tmp_path)
    assert find(tmp_path) is None
    stage(tmp_path)
    assert keep(tmp_path) and open_store(tmp_path).check(deep=True)


def write_version(home: Path, receipt: Receipt) -> None:
    write_json(home/"reports"/"toy"/"1"/"version.json", {"stages": {receipt.stage: {
        "key": receipt.key, "receipt": receipt.id, "outputs": receipt.outputs}}})


@pytest.mark.parametrize("sample", SAMPLES)
def test_repairing_survives_every_fault(tmp_path, sample):
    def before(home):
        earlier(home)
        store = open_store(home)
        damage(store.place(keep(home).files["job/model/a.txt"]["sha256"]))
        file = next((store.root/"receipts"/"train"/("0" * 64)).glob("*.json"))
        file.write_text(file.read_text()[:-20])
    def mend(home): open_store(home).repair()
    def believe(home, ended): find(home)
    def result(home): return open_store(home).check(deep=True).flaws
    done = faults.every_fault(tmp_path, before, mend, believe, result,
                              kinds=DIE_OR_FAIL, sample=sample)
    assert min(done.values()) >= min(sample or 6, 6), done


# -- tampering

def damage(path: Path, at: int = 0) -> None:
    "Flip a bit, at the same size, with the old times."
    before, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("how", ["flip", "truncate", "empty", "delete", "grow"])
def test_a_damaged_object_is_named_and_never_handed_out(tmp_path, how):
    told: list[str] = []
    stage(tmp_path)
    store = open_store(tmp_path, told.append)
    receipt = keep(tmp_path, store)
    time.sleep(.01)
    sha = receipt.files["job/model/a.txt"]["sha256"]
    path = store.object(sha)
    if how == "flip": damage(path, 3)
    elif how == "delete": path.unlink()
    else:
        path.chmod(0o644)
        path.write_bytes({"truncate": b"we", "empty": b"", "grow": b"weights!"}[how])
    assert find(tmp_path, store) is None
    with pytest.raises(Damaged, match="not in the store"): store.object(sha)   # set aside by now
    assert bool(told) == (how != "delete") and all(sha in message for message in told)
    with pytest.raises(Damaged): store.restore(receipt, tmp_path/"elsewhere")
    assert not (tmp_path/"elsewhere").exists()
    stage(tmp_path)                                                # computed again, it mends itself
    assert keep(tmp_path, store) == receipt and find(tmp_path, store) == receipt
    assert store.check(deep=True)


@pytest.mark.parametrize("how", ["cut", "flip", "empty", "list", "elsewhere"])
def test_a_damaged_receipt_counts_as_none(tmp_path, how):
    told: list[str] = []
    stage(tmp_path)
    store = open_store(tmp_path, told.append)
    receipt = keep(tmp_path, store)
    file = store.root/"receipts"/"train"/KEY/f"{receipt.id}.json"
    text = file.read_text()
    if how == "elsewhere":
        other = store.root/"receipts"/"train"/("f" * 64)/file.name
        write_text(other, text)                                     # under a key that isn't its own
        assert find(tmp_path, store, "f" * 64) is None and told and find(tmp_path, store)
        return
    file.write_text({"cut": text[:-30], "flip": text.replace('"seconds": 1.0', '"seconds": 1.1'),
                     "empty": "", "list": "[]"}[how])
    assert not store.check() and find(tmp_path, store) is None
    assert "receipt" in told[0] and "set aside" in told[0] and not file.exists()
    stage(tmp_path)
    assert keep(tmp_path, store) == receipt == find(tmp_path, store)


def test_every_flipped_bit_of_a_receipt_is_noticed(tmp_path):
    stage(tmp_path)
    store = open_store(tmp_path)
    receipt = keep(tmp_path, store)
    file = store.root/"receipts"/"train"/KEY/f"{receipt.id}.json"
    content = file.read_bytes()
    rng = random.Random(1)
    for at in rng.sample(range(len(content)), 200):
        changed_bytes = bytearray(content)
        changed_bytes[at] ^= 1 << rng.randrange(8)
        try: found = Receipt.from_dict(json.loads(changed_bytes))
        except (Damaged, BadInput, ValueError): continue
        assert found == receipt, at          # whitespace, or the same character written otherwise


def test_a_receipt_of_another_ftnb_is_left_alone(tmp_path):
    stage(tmp_path)
    store = open_store(tmp_path)
    receipt = keep(tmp_path, store)
    file = store.root/"receipts"/"train"/KEY/f"{receipt.id}.json"
    newer = read_json(file) | {"schema": "ftnb/receipt/9"}
    newer.pop("sha256")
    write_json(file, newer | {"sha256": digest(newer)})
    assert find(tmp_path, store) is None and file.exists() and store.check(deep=True)
    with pytest.raises(BadInput, match="another version"): store.garbage(tmp_path/"reports", 0)


# -- what is kept

def test_what_counts_is_kept(tmp_path):
    folder = stage(tmp_path)
    (tmp_path/"mine.txt").write_text("the user's own")
    (folder/"mine.txt").symlink_to(tmp_path/"mine.txt")
    os.link(tmp_path/"mine.txt", folder/"linked.txt")
    write_text(folder/"half.part", "half")
    (folder/"large.bin").write_bytes(bytes(17_000_000))
    receipt = keep(tmp_path)
    assert sorted(receipt.files) == [
        "facts.json", "job/model/a.txt", "job/model/b/c.txt", "linked.txt", "record.json"]
    mine = tmp_path/"mine.txt"                                      # untouched
    assert mine.stat().st_mode & 0o200 and mine.stat().st_nlink == 1
    for name, file in receipt.files.items():
        assert (folder/name).samefile(open_store(tmp_path).object(file["sha256"]))
        assert stat.S_IMODE((folder/name).stat().st_mode) == 0o444


def test_links_in_what_is_handed_on_are_kept_by_content(tmp_path):
    (tmp_path/"hub"/"deep").mkdir(parents=True)
    (tmp_path/"hub"/"blob").write_text("weights")
    (tmp_path/"hub"/"deep"/"c").write_text("configuration")
    bench = Workbench.open("train", tmp_path/"bench")
    (bench.folder/"model").mkdir()
    (bench.folder/"model"/"weights.txt").symlink_to(tmp_path/"hub"/"blob")
    (bench.folder/"model"/"deep").symlink_to(tmp_path/"hub"/"deep", target_is_directory=True)
    bench.hand_on("model", "model", "toy/model/1")
    write_text(tmp_path/"train.ipynb", "executed")
    receipt, store = keep(tmp_path), open_store(tmp_path)
    assert (tmp_path/"hub"/"blob").stat().st_mode & 0o200            # the hub's files are the hub's
    assert (tmp_path/"hub"/"deep"/"c").stat().st_nlink == 1
    store.restore(receipt, tmp_path/"other"/"train")
    assert sha256(tmp_path/"other"/"train"/"model") == receipt.outputs["model"]["sha256"]
    store.restore(receipt, bench.folder)                             # over the links
    assert not (bench.folder/"model"/"deep").is_symlink()
    assert sha256(bench.folder/"model") == receipt.outputs["model"]["sha256"]
    assert (tmp_path/"hub"/"deep"/"c").read_text() == "configuration"


def test_an_output_outside_or_changed_is_refused(tmp_path):
    folder = stage(tmp_path)
    (folder/"job"/"model"/"a.txt").write_text("changed afterwards")
    with pytest.raises(StudyFailed, match="changed after it was handed on"): keep(tmp_path)
    record = read_json(folder/"record.json")
    record["outputs"]["model"]["path"] = "../../elsewhere"
    write_json(folder/"record.json", record)
    with pytest.raises(BadInput, match="outside"): keep(tmp_path)
    assert find(tmp_path) is None


def test_an_empty_output_comes_back(tmp_path):
    bench = Workbench.open("train", tmp_path/"bench")
    (bench.folder/"nothing").mkdir()
    bench.hand_on("nothing", "nothing", "toy/nothing/1")
    write_text(tmp_path/"train.ipynb", "executed")
    open_store(tmp_path).restore(keep(tmp_path), tmp_path/"other"/"train")
    assert Workbench("next", tmp_path/"other").receive("train", "nothing").is_dir()


def test_a_forced_run_that_differs_keeps_both(tmp_path):
    stage(tmp_path, "first")
    first, store = keep(tmp_path), open_store(tmp_path)
    write_version(tmp_path, first)
    stage(tmp_path, "second")
    second = keep(tmp_path)
    assert first.id == second.id and find(tmp_path) == second
    remove(tmp_path/"bench")
    store.collect(store.garbage(tmp_path/"reports", days=0))         # the version's first one stays
    assert store.receipts("train", KEY) == [first] and store.check(deep=True)


def test_inputs_and_reads_decide(tmp_path):
    stage(tmp_path)
    (tmp_path/"config.txt").write_text("a")
    store, reads = open_store(tmp_path), {"config.txt": sha256(tmp_path/"config.txt")}
    store.keep_stage(tmp_path/"bench"/"train", "train", MADE, KEY, INPUTS, reads,
                     tmp_path/"train.ipynb", {}, {})
    def now(path): return sha256(tmp_path/path)
    more = INPUTS | {"prepare.labels": "cd" * 32}                    # there is more to receive now
    assert store.find("train", KEY, more, now)
    assert not store.find("train", KEY, {}, now)
    assert not store.find("train", KEY, {"prepare.rows": "ba" * 32}, now)
    (tmp_path/"config.txt").write_text("b")
    assert not store.find("train", KEY, INPUTS, now)
    (tmp_path/"config.txt").unlink()
    assert not store.find("train", KEY, INPUTS, now)


def test_restoring_what_is_right_writes_nothing(tmp_path):
    folder, store = stage(tmp_path), open_store(tmp_path)
    receipt = keep(tmp_path)
    store.restore(receipt, folder)
    seen = []
    with effects.watch(lambda operation, path: seen.append(operation)):
        store.restore(receipt, folder)
    assert not seen


def test_without_hard_links_there_are_copies(tmp_path):
    def no_links(operation, path):
        if operation == "link": raise OSError(errno.EPERM, "Operation not permitted")
    folder, store = stage(tmp_path), open_store(tmp_path)
    with effects.watch(no_links):
        receipt = keep(tmp_path, store)
        store.restore(receipt, tmp_path/"other"/"train")
    assert find(tmp_path, store) == receipt
    assert tree(tmp_path/"other"/"train") == {n: (folder/n).read_bytes() for n in receipt.files}
    store.restore(receipt, tmp_path/"other"/"train")


# -- disks that say no

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")


@pytest.fixture
def small_disk(tmp_path):
    "A real file system of 1 MB."
    disk = tmp_path/"disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
                             capture_output=True)
    if mounted.returncode: pytest.skip("this machine doesn't let a disk be mounted")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@needs_root
def test_a_full_disk_is_said_with_what_it_takes(tmp_path, small_disk):
    stage(tmp_path, "x" * 100_000)
    store = Store(small_disk, Hashes(), lambda message: None)
    receipt = keep(tmp_path, store)                                  # on another disk: copies
    before = tree(small_disk/"objects")
    stage(tmp_path, "y" * 400_000)
    with pytest.raises(BadInput, match=r"needs 800 kB, \d+ kB are free") as e:
        keep(tmp_path, store, "1" * 64)
    assert "free some space" in e.value.fix
    assert store.find("train", KEY, INPUTS, sha256) == receipt
    assert not store.receipts("train", "1" * 64)
    assert before.items() <= tree(small_disk/"objects").items()
    assert not list(small_disk.rglob("*.part"))
    store.collect(store.garbage(tmp_path/"reports", days=0))
    stage(tmp_path, "y" * 200_000)
    assert keep(tmp_path, store, "1" * 64)                           # there is room again


@needs_root
def test_a_disk_filled_to_the_last_byte(tmp_path, small_disk):
    stage(tmp_path)
    store = Store(small_disk, Hashes(), lambda message: None)
    receipt = keep(tmp_path, store)
    ballast = os.open(small_disk/"ballast", os.O_WRONLY | os.O_CREAT)
    with suppress(OSError):
        while os.write(ballast, bytes(4096)): pass
    os.close(ballast)
    stage(tmp_path, "new weights")
    with pytest.raises(BadInput, match="free"): keep(tmp_path, store, "1" * 64)
    assert store.find("train", KEY, INPUTS, sha256) == receipt       # looking still works
    (small_disk/"ballast").unlink()
    assert keep(tmp_path, store, "1" * 64) and store.check(deep=True)


def as_nobody(act) -> faults.Ended:
    "Do something in a child without root's rights."
    def do():
        if os.geteuid() == 0: os.setuid(65534)
        act()
    return faults.in_child(do, faults.EIO, 10**9)


def test_a_read_only_store_says_so(tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:2]): folder.chmod(0o755)
    folder = stage(tmp_path)
    for path in [folder, *folder.rglob("*")]: path.chmod(0o755)
    (tmp_path/".ftnb").mkdir(mode=0o555)
    def act():
        with pytest.raises(BadInput, match="Permission denied") as e: keep(tmp_path)
        assert "writable" in e.value.fix
    as_nobody(act)


def test_a_file_size_limit_says_so(tmp_path):
    import resource
    stage(tmp_path, "z" * 50_000)
    def no_links(operation, path):
        if operation == "link": raise OSError(errno.EXDEV, "Invalid cross-device link")
    def act():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with effects.watch(no_links), pytest.raises(BadInput, match="File too large") as e:
            keep(tmp_path)
        assert "ulimit" in e.value.fix
    faults.in_child(act)
    believed(tmp_path)
    assert keep(tmp_path)


@pytest.mark.parametrize("name,fix", [
    ("ENOSPC", "free some space"), ("EDQUOT", "your share of the disk"), ("EFBIG", "ulimit"),
    ("EROFS", "another folder"), ("EIO", "check it"), ("EACCES", "writable")])
@pytest.mark.parametrize("at", ["mkdir", "create", "write", "fsync", "rename", "link"])
def test_a_disk_that_says_no_is_named_with_what_to_do(tmp_path, name, fix, at):
    "Whatever a disk answers, wherever: an error to act on, and everything as it was."
    stage(tmp_path)
    keep(tmp_path, key="1" * 64)
    stage(tmp_path, "other weights")
    number = getattr(errno, name)
    def says_no(operation, path):
        if operation == at and ".ftnb" in path.parts: raise OSError(number, os.strerror(number))
    before = tree(tmp_path/"bench")
    with effects.watch(says_no), pytest.raises(BadInput) as e: keep(tmp_path)
    assert fix in e.value.fix and e.value.where and tree(tmp_path/"bench") == before
    assert find(tmp_path) is None and find(tmp_path, key="1" * 64)
    assert not list(tmp_path.rglob("*.part")) and keep(tmp_path) == find(tmp_path)


def test_room_is_looked_at_before_copies_are_made(tmp_path):
    with pytest.raises(BadInput, match="needs 1000000 TB"): need_space(tmp_path, 10**18)


# -- locks

def child(act) -> int:
    "Start a process that does something and dies without a word."
    pid = os.fork()
    if pid == 0:
        try: act()
        finally: os._exit(0)
    return pid


def test_a_lock_ends_with_its_holder(tmp_path):
    def hold():
        with open_store(tmp_path).lock("train", what="training"):
            (tmp_path/"ready").touch()
            time.sleep(60)
    pid = child(hold)
    while not (tmp_path/"ready").exists(): time.sleep(.01)
    assert held(tmp_path/".ftnb"/"locks"/"train.lock")
    waited: list[str] = []
    def told(message):
        waited.append(message)
        os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    with open_store(tmp_path).lock("train", told): pass
    os.waitpid(pid, 0)
    assert str(pid) in waited[0] and "training" in waited[0] and time.monotonic() - started < 5


def test_a_forked_child_does_not_keep_a_lock(tmp_path):
    store = open_store(tmp_path)
    with store.working():
        pid = child(lambda: time.sleep(30))
    started = time.monotonic()
    with store.working(alone=True): pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert time.monotonic() - started < 5


def test_a_collection_waits_for_who_takes_in_and_says_so(tmp_path):
    def hold():
        with open_store(tmp_path).working():
            (tmp_path/"ready").touch()
            time.sleep(60)
    pid = child(hold)
    while not (tmp_path/"ready").exists(): time.sleep(.01)
    def told(message):
        waited.append(message)
        os.kill(pid, signal.SIGKILL)
    waited: list[str] = []
    open_store(tmp_path, told).garbage(tmp_path/"reports")
    os.waitpid(pid, 0)
    assert waited == ["waiting for the store: others take in or hand out"]


def test_a_holder_on_another_machine_is_named(tmp_path):
    lock = tmp_path/".ftnb"/"locks"/"train.lock"
    waited: list[str] = []
    write_json(lock, {"pid": 1, "host": "far away", "since": "2026-01-01 00:00:00", "what": "run"})
    with open_store(tmp_path).lock("train", waited.append): pass
    assert "far away" in waited[0] and "between machines" in waited[0] and holder(lock) == {}


@pytest.mark.parametrize("use", [find, keep])
def test_garbage_leaves_running_studies_alone(tmp_path, use):
    stage(tmp_path)
    keep(tmp_path)
    def run():
        store = open_store(tmp_path)
        with store.run("toy"):
            use(tmp_path, store)
            (tmp_path/"ready").touch()
            time.sleep(60)
    pid = child(run)
    while not (tmp_path/"ready").exists(): time.sleep(.01)
    shutil.rmtree(tmp_path/"bench")
    store = open_store(tmp_path)
    store.collect(store.garbage(tmp_path/"reports", days=0))
    assert find(tmp_path) and len(list(store.root.glob("runs/*"))) == 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    shown = store.garbage(tmp_path/"reports", days=0)
    assert "a run that ended without a version" in {w.reason for w in shown.wastes}
    assert store.collect(shown).bytes == shown.bytes > 0
    assert find(tmp_path) is None and not list(store.root.glob("runs/*"))


def test_garbage_keeps_a_week(tmp_path):
    stage(tmp_path)
    receipt, store = keep(tmp_path), open_store(tmp_path)
    write_text(store.root/"checkpoints"/KEY/"1.txt", "done")         # its stage has a receipt
    write_text(store.root/"checkpoints"/("e" * 64)/"1.txt", "not done")
    shown = store.garbage(tmp_path/"reports")
    assert [w.path for w in shown.wastes] == [f"checkpoints/{KEY}"]
    assert find(tmp_path) == receipt and changed(store.root/"receipts") > time.time() - 60


def test_garbage_frees_what_it_says(tmp_path):
    "Bytes are counted once, and not at all while another name keeps them."
    for n in range(3):
        stage(tmp_path, f"{n}" * 10_000)
        keep(tmp_path, key=f"{n}" * 64)
    store = open_store(tmp_path)
    kept = store.root/"versions"/"toy"/"1"/"workbench"/"train"
    store.restore(store.receipts("train", "0" * 64)[0], kept)
    write_version(tmp_path, store.receipts("train", "1" * 64)[0])
    (tmp_path/"reports"/"toy"/"1"/"version.json").rename(tmp_path/"version.json")
    write_text(tmp_path/"reports"/"toy"/"1"/"version.json", "{}")
    remove(tmp_path/"bench")
    remove(tmp_path/"train.ipynb")
    def blocks(): return sum({p.lstat().st_ino: p.lstat().st_size for p in store.root.rglob("*")
                              if p.is_file()}.values())
    before = blocks()
    removed = store.collect(store.garbage(tmp_path/"reports", days=0))
    assert before - blocks() == removed.bytes > 40_000


def test_a_version_that_cannot_be_read_stops_the_collection(tmp_path):
    stage(tmp_path)
    keep(tmp_path)
    write_text(tmp_path/"reports"/"toy"/"1"/"version.json", "{")
    with pytest.raises(BadInput, match="JSON"): open_store(tmp_path).garbage(tmp_path/"reports", 0)
    assert find(tmp_path)


# -- many at once

def busy(home: Path, n: int, rounds: int) -> None:
    "One of many processes that keep and find the same stages and their own."
    rng = random.Random(n)
    mine = home/f"process{n}"
    for _ in range(rounds):
        which = rng.randrange(6)
        key = f"{which}" * 64 if which < 4 else digest([n, which])
        store = Store(home/".ftnb", Hashes(), lambda message: None)
        with store.run("toy"):
            stage(mine, f"weights {key}")
            receipt = keep(mine, store, key)
            found = store.find("train", key, INPUTS, sha256)
            assert found and found.outputs == receipt.outputs
            store.restore(found, mine/"restored"/"train")
            assert (mine/"restored"/"train"/"job"/"model"/"a.txt").read_text() == f"weights {key}"
        if rng.random() < .2: store.collect(store.garbage(home/"reports", days=0))


@pytest.mark.parametrize("rounds,kills", [(6, 12), pytest.param(40, 200, marks=pytest.mark.slow)])
def test_eight_processes_at_once_and_some_are_killed(tmp_path, rounds, kills):
    def start(n):
        log = tmp_path/f"log{n}"
        def work():
            import traceback
            try: busy(tmp_path, n, rounds)
            except BaseException:
                log.write_text(traceback.format_exc())
                os._exit(1)
        return child(work)
    rng, n, killed = random.Random(7), 0, 0
    running: dict[int, int] = {}
    deadline = time.monotonic() + 300
    while (killed < kills or running) and time.monotonic() < deadline:
        while len(running) < 8 and killed < kills:
            running[start(n)] = n
            n += 1
        time.sleep(rng.random() * .08)
        if killed < kills:
            pid = rng.choice(list(running))
            os.kill(pid, signal.SIGKILL)
            killed += 1
        for pid in list(running):
            if os.waitpid(pid, os.WNOHANG)[0]: del running[pid]
    assert not list(tmp_path.glob("log*")), next(tmp_path.glob("log*")).read_text()
    assert not running and killed == kills
    believed(tmp_path)
    store = open_store(tmp_path)
    assert store.check(deep=True), store.check(deep=True)
    assert not list(store.root.glob("damaged/*"))
    busy(tmp_path, 10**6, 6)                                         # and no lock is left


# -- a store against a dictionary

CONTENTS = st.text("abc", min_size=1, max_size=4)
KEYS = st.sampled_from(["0" * 64, "1" * 64, "2" * 64])


class StoreMachine(RuleBasedStateMachine):
    "Whatever is done to it, a store finds what it kept, whole, or nothing."

    @initialize()
    def begin(self):
        import tempfile
        self.home = Path(tempfile.mkdtemp(prefix="store-"))
        self.kept: dict[str, str] = {}          # key → content
        self.needed: set[str] = set()

    def teardown(self):
        if hasattr(self, "home"): shutil.rmtree(self.home, ignore_errors=True)

    @rule(key=KEYS, content=CONTENTS)
    def keep(self, key, content):
        stage(self.home, content)
        keep(self.home, key=key)
        if self.kept.get(key) != content: self.needed.discard(key)
        self.kept[key] = content

    @rule(key=KEYS)
    def publish(self, key):
        receipt = find(self.home, key=key)
        if receipt is None: return
        remove(self.home/"reports")
        write_version(self.home, receipt)
        self.needed = {key}

    @rule(key=KEYS, how=st.sampled_from(["flip", "cut", "delete"]), which=st.integers(0, 9))
    def tamper(self, key, how, which):
        receipt = find(self.home, key=key)
        if receipt is None: return
        store = open_store(self.home)
        sha = sorted(receipt.objects)[which % len(receipt.objects)]
        if how == "flip": damage(store.place(sha))
        elif how == "delete": store.place(sha).unlink()
        else: os.truncate(store.place(sha), 0)
        hit = {k for k in self.kept if (r := self.last(k)) and sha in r.objects}
        self.kept = {k: c for k, c in self.kept.items() if k not in hit}

    def last(self, key):
        found = open_store(self.home).receipts("train", key)
        return found[0] if found else None

    @rule(key=KEYS)
    def tear_receipt(self, key):
        receipt = self.last(key)
        if receipt is None: return
        for file in (self.home/".ftnb"/"receipts"/"train"/key).glob("*.json"): file.write_text("{")
        self.kept.pop(key, None)

    @rule()
    def collect(self):
        store = open_store(self.home)
        remove(self.home/"bench")
        store.collect(store.garbage(self.home/"reports", days=0))
        self.kept = {k: c for k, c in self.kept.items() if k in self.needed}

    @rule()
    def repair(self): assert open_store(self.home).repair()

    @rule(key=KEYS)
    def restore(self, key):
        store = open_store(self.home)
        receipt = find(self.home, store, key)
        if receipt is None: return
        store.restore(receipt, self.home/"bench"/"train")
        if key in self.kept:
            assert (self.home/"bench"/"train"/"job"/"model"/"a.txt").read_text() == self.kept[key]

    @invariant()
    def finds_what_it_kept(self):
        if not hasattr(self, "home"): return
        store = open_store(self.home)
        for key in ("0" * 64, "1" * 64, "2" * 64):
            receipt = find(self.home, store, key)
            if key in self.kept: assert receipt, key
            if receipt:
                for sha in receipt.objects: assert sha256(store.place(sha)) == sha


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = hypothesis_settings(
    max_examples=25, stateful_step_count=12, deadline=None, derandomize=True)
