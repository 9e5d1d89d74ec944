# ruff: noqa: E501 - programs are quoted as they are
"Several processes train what one would: the same losses, one artifact, honest ends, exact continuation."
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train_job import WORDS, alive, job, rows, waited

from ftnb.foundation.errors import BadInput
from ftnb.foundation.files import read_json, sha256
from ftnb.places.contract import LOST, Job, JobFolders, cause, command, lay_out, read_metric_line
from ftnb.places.local import run
from ftnb.places.ranks import machines, torchrun_options
from ftnb.train.batches import EpochBatches, SharedBatches, share
from ftnb.train.checkpoints import is_whole, write_note
from ftnb.train.distribution import Distribution, World, check_distribution, check_machine

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
has_deepspeed = find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not has_deepspeed, reason="DeepSpeed isn't installed")
TOLERANCE = 2e-5  # of losses, float32, no dropout; measured: below 1e-6


def spread(folder: Path, way: str, instances: int = 1, processes: int = 2, dropout: float = 0.0,
           **values) -> Job:
    "A training of a tiny model on several processes."
    made = job(folder, **values, **({} if way == "none" else {"distribution": way}))
    config = folder/"tiny"/"config.json"
    off = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config.write_text(json.dumps(read_json(config) | off))
    return replace(made, instances=instances, processes=processes)


def losses(result) -> np.ndarray:
    "All losses of a training, of steps and of epochs."
    history = read_json(result.output/"history.json")
    return np.array([s["train_loss"] for s in history["steps"]]
                    + [e["log_loss"] for e in history["epochs"]])


def weights(result) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file
    return load_file(result.model/"model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "The training of one process, 120 rows in batches of 16: the last one is short."
    t = tmp_path_factory.mktemp("alone")
    return run(spread(t/"in", "none", 1, 1, epochs=4), t/"job").checked()


def equal_to_one_process(result, alone) -> None:
    "The same curve, the same epoch kept, and weights that differ in the last bits only."
    assert np.allclose(losses(result), losses(alone), rtol=0, atol=TOLERANCE)
    kept = [read_json(r.output/"history.json")["best_epoch"] for r in (result, alone)]
    assert kept[0] == kept[1]
    ours, theirs = weights(result), weights(alone)
    assert ours.keys() == theirs.keys()
    assert all(ours[n].dtype == np.float32 for n in ours)
    assert max(np.abs(ours[n] - theirs[n]).max() for n in ours) < 2e-3


def test_two_processes_compute_what_one_does_and_the_artifact_loads(tmp_path, alone):
    made = run(spread(tmp_path/"in", "ddp", epochs=4), tmp_path/"job").checked()
    equal_to_one_process(made, alone)
    ranks = read_json(made.output/"ranks.json")
    assert [r["rank"] for r in ranks] == [0, 1]
    assert sum(r["rows"] for r in ranks) == 4 * 120
    assert all(0 <= r["waiting_seconds"] <= r["seconds"] for r in ranks)
    used = read_json(made.model/"training.json")["used"]
    assert used["distribution"] == "ddp" and used["processes"] == 2
    code = (f"from transformers import pipeline\nc = pipeline('text-classification', {str(made.model)!r})"
            "\nprint(c('please read the file now')[0]['label'])")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip().splitlines()[-1] in WORDS[:3]
    assert not made.folders.checkpoints.exists()


def as_before(recipe, base, train, validation, labels, folder):
    "The training of one process as it was before there were several: the oracle."
    import torch
    from transformers import Trainer

    from ftnb.train import classifier as c
    from ftnb.train.batches import Encoded, collate
    c.fix_everything(recipe)
    model, tokenizer = c.load_base(base, labels, recipe)
    encoded, checks = (Encoded(x, y, tokenizer, 64) for x, y in (train, validation))
    c.fix_seeds(recipe.seed)

    class Ordered(Trainer):
        def get_train_dataloader(self):
            batches = EpochBatches(encoded.lengths, recipe.batch_size, recipe.seed)
            loader: Any = torch.utils.data.DataLoader(
                encoded,  # type: ignore[arg-type]
                batch_sampler=batches, collate_fn=self.data_collator)
            return self.accelerator.prepare(loader)

        def _get_eval_sampler(self, rows):
            return np.argsort(rows.lengths, kind="stable").tolist()

    def loss(outputs, labels, num_items_in_batch=None):
        each = torch.nn.functional.cross_entropy(
            outputs.logits.float(), labels, reduction="none", label_smoothing=recipe.label_smoothing)
        return (each * torch.ones(3)[labels]).sum() / (num_items_in_batch or len(labels))

    steps = len(EpochBatches(encoded.lengths, recipe.batch_size, recipe.seed))
    trainer = Ordered(
        model=model, args=c.trainer_arguments(recipe, folder, steps, "float32", True, "lowest"),
        data_collator=collate(tokenizer), train_dataset=encoded, eval_dataset=checks,
        compute_loss_func=loss, compute_metrics=c.validation_metrics)
    trainer.train()
    assert trainer.model is not None
    return {k: v.numpy().tobytes() for k, v in trainer.model.state_dict().items()}


def test_one_process_gives_the_bits_that_it_gave_before(tmp_path):
    from ftnb.train.batches import read_examples
    from ftnb.train.classifier import Recipe, fine_tune
    made = job(tmp_path/"in")
    train, validation = (read_examples(made.channels[c], sorted(WORDS[:3]))
                         for c in ("train", "validation"))
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=5e-3, precision="float32", threads=1,
                    label_smoothing=.1, seed=7)
    base, labels = made.channels["base"], sorted(WORDS[:3])
    now = fine_tune(base, train, validation, labels, recipe, tmp_path/"now", say=lambda line: None)
    then = as_before(recipe, base, train, validation, labels, tmp_path/"then")
    assert {k: v.numpy().tobytes() for k, v in now.model.state_dict().items()} == then


FAILS = """
import os, sys, time
import torch, torch.distributed as dist
from ftnb.places.contract import LOST, JobFolders
rank = int(os.environ["RANK"])
open(f"pid-{rank}", "w").write(str(os.getpid()))
dist.init_process_group("gloo")
dist.barrier()
if rank == 1 and HOW == "says": JobFolders.here().failure.write_text("row 7 has no text"); sys.exit(3)
if rank == 1 and HOW == "dies": os.kill(os.getpid(), 9)
if HOW == "sleeps": time.sleep(60)
try: dist.all_reduce(torch.ones(1))
except RuntimeError: sys.exit(LOST)
"""


def script(folder: Path, how: str) -> dict[str, str]:
    "A module in which one of the processes ends badly."
    (folder/"ends.py").write_text(FAILS.replace("HOW", repr(how)))
    return {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "FTNB_PATIENCE": "5"}


@pytest.mark.parametrize("how, code, says", [
    ("says", 3, "row 7 has no text"), ("dies", 137, "process 2 of 2 ended: SIGKILL")])
def test_the_process_that_failed_first_is_the_reason(tmp_path, how, code, says):
    made = run(Job("e", "ends", environment=script(tmp_path, how), processes=2), tmp_path/"job")
    assert (made.status, made.exit_code, made.reason) == ("Failed", code, says)
    assert not (tmp_path/"job"/"torchrun").exists()


ABORTS = """
import atexit, ctypes, os, sys
c = ctypes.CDLL(None)
c.__cxa_atexit(ctypes.cast(c.abort, ctypes.c_void_p), None, None)   # as a library's threads might
atexit.register(lambda: open(f"ended-{os.environ['RANK']}", "w").close())
print("done", end="")                                   # not flushed
if os.environ["RANK"] == "1": sys.exit(CODE)
"""


@pytest.mark.parametrize("code, exit_code", [("0", 0), ("None", 0), ("4", 4), ("'no rows'", 1)])
def test_an_interpreter_that_would_abort_isnt_taken_apart(tmp_path, code, exit_code):
    (tmp_path/"ends.py").write_text(ABORTS.replace("CODE", code))
    environment = {"PYTHONPATH": str(tmp_path), "FTNB_PATIENCE": "5"}
    made = run(Job("e", "ends", environment=environment, processes=2), tmp_path/"job")
    assert made.exit_code == exit_code, made.reason
    said = (tmp_path/"job"/"job.log").read_text()
    assert "done" in said and ("no rows" in said) == ("no rows" in code)
    assert (tmp_path/"job"/"ended-1").exists()


@linux
def test_processes_end_with_torchrun_and_torchrun_with_its_parent(tmp_path):
    environment = script(tmp_path, "sleeps")
    code = ("from pathlib import Path\nfrom ftnb.places.contract import Job\n"
            "from ftnb.places.local import run\n"
            f"run(Job('e', 'ends', environment={environment!r}, processes=2), "
            f"Path({str(tmp_path/'job')!r}))")
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    files = [tmp_path/"job"/f"pid-{rank}" for rank in (0, 1)]
    pids = [int(waited(lambda f=f: f.exists() and f.read_text(), 60)) for f in files]
    agent = int(Path(f"/proc/{pids[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
    parent.kill()
    parent.wait()
    waited(lambda: not any(alive(pid) for pid in [agent, *pids]))


def test_a_missing_deepspeed_and_a_useless_offload_are_named_before_work_starts(monkeypatch):
    monkeypatch.setattr("ftnb.train.distribution.find_spec", lambda name: None)
    with pytest.raises(BadInput, match="isn't installed") as e:
        check_machine(Distribution("zero2"), gpus=1)
    assert "pip install" in str(e.value)
    with pytest.raises(BadInput, match="no GPU"): check_machine(Distribution("ddp", "optimizer"), 0)


def test_a_distribution_that_makes_no_sense_is_bad_input(tmp_path):
    result = run(spread(tmp_path/"in", "none", 1, 2), tmp_path/"job")
    assert result.exit_code == 2 and "choose ddp" in result.reason
    with pytest.raises(BadInput, match="must be one of"): Distribution("zero4")  # type: ignore


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=70, unique=True), st.integers(1, 9))
def test_shares_are_the_batch_and_equally_long(batch, ranks):
    parts = [share(batch, rank, ranks) for rank in range(ranks)]
    assert sorted(i for p in parts for i in p if i >= 0) == sorted(batch)
    assert len({len(p) for p in parts}) == 1 and all(~i in batch for p in parts for i in p if i < 0)


def test_shared_batches_follow_the_epoch():
    batches = SharedBatches(EpochBatches(range(1, 50), 8, 3), 1, 2)
    first = list(batches)
    batches.set_epoch(1)
    assert list(batches) != first and len(batches) == len(first) == 7


@settings(deadline=None)
@given(st.integers(1, 12), st.data())
def test_machines_agree_on_who_comes_first(count, data):
    hosts = [f"algo-{i}" for i in range(1, count + 1)]
    address = data.draw(st.sampled_from(hosts))
    seen = [machines(JobFolders(Path("nowhere")), {
        "SM_HOSTS": json.dumps(data.draw(st.permutations(hosts))), "SM_CURRENT_HOST": host,
        "SM_MASTER_ADDR": address, "SM_MASTER_PORT": "1234"}) for host in hosts]
    assert len({m.hosts for m in seen}) == 1 and seen[0].hosts[0] == address
    assert sorted(m.here for m in seen) == list(range(count))


def test_one_command_for_every_machine(tmp_path):
    one, two = Job("j", "m"), Job("j", "m", instances=2, processes=3)
    assert command(one) == ["python", "-m", "m"]
    assert command(two) == ["python", "-m", "ftnb.places.ranks", "m", "3"]
    assert command(Job("j", "m", {"distribution": "zero2"}))[2] == "ftnb.places.ranks"
    lay_out(two, JobFolders(tmp_path), "algo-2")
    options = torchrun_options("m", 3, machines(JobFolders(tmp_path), {}), tmp_path)
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=algo-1", "--nproc-per-node=3"} <= set(options)
    with pytest.raises(BadInput, match="instances"): Job("j", "m", instances=0)


@given(st.dictionaries(st.integers(0, 9), st.sampled_from([1, 2, LOST, 143, -15, -9]), min_size=1))
def test_who_only_followed_is_not_to_blame(codes):
    followed = {LOST, 143, -15}
    assert codes[cause(codes)] not in followed or set(codes.values()) <= followed


@pytest.mark.parametrize("harm", ["note", "missing", "cut", "state", "best"])
def test_a_harmed_checkpoint_is_not_taken(tmp_path, harm):
    here, made = World(), [tmp_path/f"checkpoint-{n}" for n in (10, 20)]
    for folder in made:
        (folder/"global_step1").mkdir(parents=True)
        (folder/"global_step1"/"shard.pt").write_bytes(b"x" * 100)
        (folder/"trainer_state.json").write_text('{"best_model_checkpoint": "/x/checkpoint-10"}')
        write_note(folder, here)
    assert is_whole(made[1], here)
    shard = (made[0] if harm == "best" else made[1])/"global_step1"/"shard.pt"
    if harm == "note": (made[1]/"whole-0.json").unlink()
    if harm == "state": (made[1]/"trainer_state.json").write_text("{")
    if harm in ("missing", "best"): shard.unlink()
    if harm == "cut": shard.write_bytes(b"x" * 99)
    assert not is_whole(made[1], here)


def test_what_contradicts_itself():
    for wanted, processes in [(Distribution(), 2), (Distribution("ddp", "optimizer"), 2),
                              (Distribution("zero1", "parameters"), 2)]:
        with pytest.raises(BadInput): check_distribution(wanted, processes)
    check_distribution(Distribution("zero3", "parameters"), 1)


@needs_deepspeed
@pytest.mark.parametrize("stage, offload", [(1, "optimizer"), (2, "optimizer"), (3, "parameters")])
def test_deepspeed_reads_the_configuration_for_gpus_as_it_is_meant(stage, offload):
    from deepspeed.runtime.config import DeepSpeedConfig

    from ftnb.train.distribution import deepspeed_config
    way: Any = f"zero{stage}"
    wanted = Distribution(way, offload)  # type: ignore[arg-type]
    read = DeepSpeedConfig(deepspeed_config(wanted, 32, 1, 1.0, True, 384, gpu=True))
    zero = read.zero_config
    assert (int(zero.stage), zero.overlap_comm, read.gradient_clipping) == (stage, True, 1.0)
    assert zero.offload_optimizer.device == "cpu" and zero.offload_optimizer.pin_memory
    assert (zero.offload_param is not None) == (offload == "parameters")


WAYS = [("ddp", 2, 2), ("zero1", 1, 2), ("zero2", 2, 2), ("zero3", 2, 2), ("zero2", 1, 1),
        ("ddp", 1, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("way, instances, processes", WAYS)
def test_the_loss_curve_is_that_of_one_process(tmp_path, alone, way, instances, processes):
    if way != "ddp" and not has_deepspeed: pytest.skip("DeepSpeed isn't installed")
    made = spread(tmp_path/"in", way, instances, processes, epochs=4)
    equal_to_one_process(run(made, tmp_path/"job").checked(), alone)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", pytest.param("zero2", marks=needs_deepspeed)])
def test_the_same_processes_give_the_same_bits_with_dropout_too(tmp_path, way):
    first, again = (run(spread(tmp_path/"in", way, dropout=.1), tmp_path/f"job{i}").checked()
                    for i in (1, 2))
    assert sha256(first.model) == sha256(again.model)
    assert np.array_equal(losses(first), losses(again))


GATHERED = """
import json, os, sys
import numpy as np, torch
from pathlib import Path
from ftnb.train import classifier as c
from ftnb.train.batches import Encoded, collate, read_examples
from ftnb.train.distribution import Company, Distribution, whole_model, world
from ftnb.places.contract import JobFolders
folders, way, precision = JobFolders.here(), os.environ["SM_HP_WAY"], os.environ["SM_HP_PRECISION"]
labels = json.loads((folders.channel("labels")/"labels.json").read_text())
recipe = c.Recipe(epochs=2, batch_size=16, learning_rate=5e-3, precision=precision, threads=1)
c.fix_everything(recipe)
model, tokenizer = c.load_base(folders.channel("base"), labels, recipe)
parts = [Encoded(*read_examples(folders.channel(n), labels), tokenizer, 64) for n in ("train", "validation")]
company = Company(world())
trainer = c.make_trainer(recipe, model, tokenizer, *parts, folders.checkpoints, [], Distribution(way), company)
trainer.train()
rows = collate(tokenizer)([{k: v for k, v in parts[1][i].items() if k != "labels"} for i in range(8)])
trainer.model_wrapped.eval()
with torch.no_grad(): sharded = trainer.model_wrapped(**rows).logits
whole = whole_model(trainer, company.world)
sizes = [p.ds_tensor.numel() if way == "zero3" else 0 for p in trainer.model.parameters()]
if company.world.first:
    assert all(p.dtype == torch.float32 for p in whole.parameters())
    with torch.no_grad(): logits = whole.eval().to(sharded.dtype)(**rows).logits
    assert torch.equal(logits, sharded), (logits - sharded).abs().max()
    if way == "zero3": assert sum(sizes) < .6 * sum(p.numel() for p in whole.parameters()), sizes
    print("equal", sharded.dtype)
company.part()
"""


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("way, precision", [
    ("zero1", "bfloat16"), ("zero2", "float32"), ("zero3", "float32"), ("zero3", "bfloat16")])
def test_the_gathered_model_answers_as_the_sharded_one(tmp_path, way, precision):
    made = spread(tmp_path/"in", way)
    (tmp_path/"gathered.py").write_text(GATHERED)
    environment = {**made.environment, "PYTHONPATH": str(tmp_path)}
    made = replace(made, module="gathered", environment=environment,
                   hyperparameters={"way": way, "precision": precision})
    said: list[str] = []
    run(made, tmp_path/"job", follow=said.append).checked()
    assert any(line.startswith("equal") for line in said)


def processes_of(folder: Path) -> dict[int, bool]:
    "Processes of jobs in a folder: pid → whether it is one of torchrun's."
    found = {}
    for place in Path("/proc").iterdir():
        if not place.name.isdigit(): continue
        try: line, own = (place/"cmdline").read_bytes(), (place/"environ").read_bytes()
        except OSError: continue
        if str(folder).encode() in own and b"ftnb.places" in line:
            found[int(place.name)] = b"--rank" in line
    return found


def interrupted(made: Job, folder: Path, step: int, how: str, rng: random.Random):
    "Run a job and end it at a step: all processes, one of them, or by a request to one machine."
    done: list[int] = []

    def follow(line: str) -> None:
        said = read_metric_line(line)
        if done or not said or said[0] != "step" or said[1] < step: return
        time.sleep(rng.random() * .2)
        done.append(1)
        ranks = processes_of(folder)
        ours = [p for p in ranks if ranks[p]] if how == "one rank" else [
            p for p in ranks if not ranks[p]]
        for pid in ours if how == "all" else ours[:1]:
            os.kill(pid, signal.SIGTERM if how == "ask" else signal.SIGKILL)
    return run(made, folder, follow=follow)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("way, instances, how", [
    ("ddp", 1, "all"), ("ddp", 2, "ask"), ("zero2", 1, "all"), ("zero2", 2, "ask"),
    ("zero3", 1, "one rank")])
def test_interrupted_five_times_gives_the_same_bits(tmp_path, way, instances, how):
    if way != "ddp" and not has_deepspeed: pytest.skip("DeepSpeed isn't installed")
    rng = random.Random(f"{way}{instances}{how}")
    made = spread(tmp_path/"in", way, instances, dropout=.1, epochs=5)
    whole = run(made, tmp_path/"whole").checked()
    for _ in range(5):
        ended = interrupted(made, tmp_path/"parts", rng.randrange(3, 34), how, rng)
        waited(lambda: not processes_of(tmp_path/"parts"))
        if ended.status == "Completed": break
        assert ended.exit_code in ((143,) if how == "ask" else (-9, 137)), ended.reason
        if how == "ask": assert "stopped after step" in ended.reason
        if how == "one rank": assert "SIGKILL" in ended.reason
    resumed = run(made, tmp_path/"parts").checked()
    assert sha256(resumed.model/"model.safetensors") == sha256(whole.model/"model.safetensors")
    curves = [read_json(r.output/"history.json")["epochs"] for r in (resumed, whole)]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_one_machine_that_fails_ends_the_other(tmp_path):
    made = spread(tmp_path/"in", "ddp", 2)
    rows(tmp_path/"in"/"train.jsonl", 20, 1, WORDS[:1])  # one label only: bad input everywhere
    began = time.monotonic()
    result = run(made, tmp_path/"job")
    assert result.exit_code == 2 and "one label" in result.reason
    assert time.monotonic() - began < 120
    assert (tmp_path/"job"/"machines"/"algo-2"/"job.log").exists()


@linux
@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", pytest.param("zero2", marks=needs_deepspeed)])
def test_two_machines_of_the_rehearsal_interrupted_give_the_bits_of_this_place(tmp_path, way):
    pytest.importorskip("sagemaker")
    from urllib.request import Request, urlopen

    from ftnb.foundation.settings import Settings, Stated
    from ftnb.places.chosen import place
    from ftnb.places.rehearsing import ready
    made = replace(spread(tmp_path/"in", way, 2, dropout=.1, epochs=12), name=f"spread-{way}")
    here = run(made, tmp_path/"here").checked()
    site = Settings(tmp_path/"site", Stated(place="rehearsal", spot="yes"))
    with ready(site) as ours:
        rule = json.dumps({"job": "*", "after": [15, 20]}).encode()
        head = {"content-type": "application/json"}
        urlopen(Request(f"{ours.stated.endpoint}/_rehearsal/interruptions", rule, head)).read()
        there = place(ours)(made, tmp_path/"there").checked()
    assert there.where["interruptions"] == 2
    assert sha256(there.model/"model.safetensors") == sha256(here.model/"model.safetensors")
    assert {r["machine"] for r in read_json(there.output/"ranks.json")} == {"algo-1", "algo-2"}


@linux
@pytest.mark.slow
def test_twenty_spot_kills_at_random_moments_end_with_the_same_bits(tmp_path):
    pytest.importorskip("sagemaker")
    from ftnb.foundation.settings import Settings, Stated
    from ftnb.places.chosen import place
    from ftnb.rehearsal.faults import read_interruption
    from ftnb.rehearsal.server import rehearsal
    made, chance = spread(tmp_path/"in", "none", 1, 1, dropout=.1, epochs=12), random.Random(5)
    with rehearsal(tmp_path/"aws", spot_notice=.2) as aws:
        site = Settings(tmp_path/"site", Stated(place="rehearsal", spot="yes",
                                                endpoint=aws.endpoint))
        calm = place(site)(replace(made, name="calm"), tmp_path/"calm").checked()
        bits, seconds = sha256(calm.model/"model.safetensors"), calm.where["training_seconds"]
        tried = killed = 0
        while killed < 20:      # some moments come when all is done
            tried += 1
            moment = {"job": "*", "after": [chance.uniform(.1, seconds)]}
            aws.context.interruptions.add(read_interruption(moment))
            one = place(site)(replace(made, name=f"killed-{tried}"), tmp_path/f"{tried}").checked()
            assert sha256(one.model/"model.safetensors") == bits, moment
            assert tried < 60, f"only {killed} of them were interrupted"
            killed += one.where["interruptions"]
