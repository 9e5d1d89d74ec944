"A training job from folders to folders: the same bits, honest failures, exact continuation."
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ftnb.foundation.errors import BadInput, StudyFailed
from ftnb.foundation.files import read_json, sha256, write_json
from ftnb.places.contract import Job, read_metric_line
from ftnb.places.local import run
from ftnb.train.classifier import tiny_encoder

WORDS = "read write delete a the file table queue now please".split()


def rows(path: Path, n: int, seed: int, labels=WORDS[:3]) -> Path:
    rng = np.random.default_rng(seed)
    made = [
        (str(k := rng.choice(labels)), " ".join(rng.permutation([k, *rng.choice(WORDS[3:], 5)])))
        for _ in range(n)
    ]
    path.write_text("".join(json.dumps({"text": t, "label": k}) + "\n" for k, t in made))
    return path


def job(folder: Path, **values) -> Job:
    folder.mkdir(exist_ok=True)
    write_json(folder/"labels.json", sorted(WORDS[:3]))
    channels = {
        "train": rows(folder / "train.jsonl", 120, 1),
        "validation": rows(folder / "validation.jsonl", 40, 2),
        "labels": folder / "labels.json",
        "base": tiny_encoder(folder / "tiny", WORDS),
    }
    wanted = {
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "threads": 1,
        "precision": "float32",
    } | values
    return Job(
        "tiny",
        "ftnb.train.entry",
        wanted,
        channels,
        {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )


def test_same_seed_same_bytes_other_seed_other_bytes_and_no_path_inside(tmp_path):
    made = [
        run(job(tmp_path / f"in{i}", seed=seed), tmp_path / f"job{i}").checked()
        for i, seed in enumerate([3, 3, 4])
    ]
    first, again, other = (sha256(m.model) for m in made)
    assert first == again != other
    for file in made[0].model.glob("*.json"):
        assert str(tmp_path) not in file.read_text(), file.name
    assert not (made[0].folders.checkpoints).exists()
    record = read_json(made[0].model/"training.json")
    assert record["used"]["precision"] == "float32" and record["used"]["threads"] == 1


def test_model_loads_with_transformers_alone(tmp_path):
    model = run(job(tmp_path/"in"), tmp_path/"job").checked().model
    code = (
        f"from transformers import pipeline\nc = pipeline('text-classification', {str(model)!r})\n"
        "print(c('please read the file now')[0]['label'])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert said.strip() in WORDS[:3]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the job's process in /proc")
def test_killed_by_sigterm_then_continued_gives_the_same_bits(tmp_path):
    whole = run(job(tmp_path/"in", epochs=3), tmp_path/"whole").checked()
    said: list[str] = []

    def interrupt(line: str) -> None:
        said.append(line)
        if (
            (step := read_metric_line(line))
            and step[0] == "step"
            and step[1] == 11
            and not interrupted
        ):
            interrupted.append(1)
            os.kill(child(), signal.SIGTERM)

    def child() -> int:
        mine = " ".join(p.read_text() for p in Path("/proc/self/task").glob("*/children")).split()
        return next(
            int(pid)
            for pid in mine
            if b"ftnb.train.entry" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )

    interrupted: list[int] = []
    stopped = run(job(tmp_path/"in", epochs=3), tmp_path/"parts", follow=interrupt)
    assert stopped.status == "Stopped" and "step" in stopped.reason
    resumed = run(job(tmp_path/"in", epochs=3), tmp_path/"parts", follow=said.append).checked()
    assert any("going on from checkpoint-" in line for line in said)
    assert sha256(resumed.model/"model.safetensors") == sha256(whole.model/"model.safetensors")
    assert (
        read_json(resumed.output / "history.json")["epochs"]
        == read_json(whole.output / "history.json")["epochs"]
    )


def test_checkpoints_of_another_training_are_not_taken_up(tmp_path):
    folder = tmp_path/"job"
    (folder/"checkpoints"/"checkpoint-5").mkdir(parents=True)
    write_json(folder/"checkpoints"/"identity.json", "somebody else's")
    said: list[str] = []
    run(job(tmp_path/"in", epochs=1), folder, follow=said.append).checked()
    assert not any("going on" in line for line in said)


def without_validation(j, folder): j.channels.pop("validation")
def one_class(j, folder): rows(folder/"train.jsonl", 20, 1, WORDS[:1])
def no_rows(j, folder): (folder/"train.jsonl").write_text("")
def unknown_label(j, folder): (folder/"train.jsonl").write_text('{"text": "x", "label": "paint"}\n')
def not_json(j, folder): (folder/"train.jsonl").write_text("text,label\n")
def unsorted_labels(j, folder): (folder/"labels.json").write_text('["write", "read", "delete"]')
def cut_weights(j, folder):
    file = folder/"tiny"/"model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])
def no_tokenizer(j, folder):
    for file in (folder/"tiny").glob("*tokenizer*"): file.unlink()
    for file in (folder/"tiny").glob("vocab*"): file.unlink()


@pytest.mark.parametrize(
    "spoil, says",
    [
        (one_class, "one label"),
        (no_rows, "no examples"),
        (unknown_label, "'paint' is not among"),
        (not_json, "line 1"),
        (unsorted_labels, "sorted"),
        (cut_weights, "damaged"),
        (no_tokenizer, "tokenizer"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, spoil, says):
    j = job(tmp_path/"in")
    spoil(j, tmp_path/"in")
    result = run(j, tmp_path/"job")
    assert result.exit_code == 2 and says in result.reason and "\n" not in result.reason
    assert "Traceback" not in result.log.read_text()
    with pytest.raises(BadInput, match="job tiny"): result.checked()


def test_without_validation_rows_the_last_epoch_is_kept(tmp_path):
    j = job(tmp_path/"in")
    without_validation(j, tmp_path)
    history = read_json(run(j, tmp_path/"job").checked().output/"history.json")
    assert history["epochs"] == [] and history["best_epoch"] == 2 and history["steps"]


def test_a_loss_that_is_no_number_ends_the_training_with_a_reason(tmp_path):
    j = job(tmp_path/"in")
    from safetensors.numpy import load_file, save_file
    file = tmp_path/"in"/"tiny"/"model.safetensors"
    tensors = load_file(file)
    tensors["embeddings.LayerNorm.weight"][:] = np.nan
    save_file(tensors, file, metadata={"format": "pt"})
    result = run(j, tmp_path/"job")
    assert result.exit_code == 1 and "the loss became nan" in result.reason
    with pytest.raises(StudyFailed): result.checked()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ties processes on Linux only")
def test_a_job_dies_with_its_parent(tmp_path):
    (tmp_path / "sleeper.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    code = (
        "from pathlib import Path\nfrom ftnb.places.contract import Job\n"
        "from ftnb.places.local import run\n"
        f"job = Job('s', 'sleeper', environment={{'PYTHONPATH': {str(tmp_path)!r}}})\n"
        f"run(job, Path({str(tmp_path / 'job')!r}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    pid = waited(lambda: (tmp_path/"job"/"pid").exists() and (tmp_path/"job"/"pid").read_text())
    parent.kill()
    parent.wait()
    waited(lambda: not alive(int(pid)))


def waited(condition, seconds: float = 20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition(): return found
        time.sleep(.05)
    raise AssertionError("waited in vain")


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_an_error_while_following_ends_the_job(tmp_path):
    (tmp_path / "talker.py").write_text(
        "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n"
    )
    seen: list[int] = []

    def follow(line: str) -> None:
        seen.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            Job("t", "talker", environment={"PYTHONPATH": str(tmp_path)}),
            tmp_path / "job",
            follow=follow,
        )
    assert not alive(seen[0])


def test_jobs_in_threads_do_not_disturb_each_other(tmp_path):
    (tmp_path/"echo.py").write_text("import os\nprint(os.environ['SM_HP_N'])\n")
    results: dict[int, str] = {}

    def one(n: int) -> None:
        j = Job(f"e{n}", "echo", {"n": n}, environment={"PYTHONPATH": str(tmp_path)})
        results[n] = run(j, tmp_path/f"job{n}").log.read_text().strip()

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert results == {n: str(n) for n in range(4)}
    shutil.rmtree(tmp_path/"job0")
