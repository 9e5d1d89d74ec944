"What is saved of a notebook is true, however its execution ends; and nothing outlives the runner."
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest

from ftnb.study.execution import StageFailed, Stopped, execute
from ftnb.study.guard import processes
from ftnb.study.kernels import Kernels

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, prctl and fork")


def notebook(folder: Path, *cells: str) -> Path:
    "A notebook of code cells; the first one has the parameters."
    folder.mkdir(parents=True, exist_ok=True)
    made = [nbformat.v4.new_code_cell(c, id=f"c{i}") for i, c in enumerate(("n: int = 1", *cells))]
    made[0].metadata["tags"] = ["parameters"]
    nb = nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": KERNEL})
    nbformat.write(nb, folder/"stage.ipynb")
    return folder/"stage.ipynb"


def statuses(file: Path) -> list[str]:
    "What the saved notebook says of its cells, and that it agrees with itself."
    nb = nbformat.read(file, 4)
    about = nb.metadata.papermill
    found = [c.metadata.papermill.status for c in nb.cells]
    cut = [s for s in found if s in ("failed", "interrupted")]
    assert bool(about.exception) == bool(cut or "pending" in found)
    assert about.end_time and about.duration >= 0
    for cell in nb.cells:
        ran = cell.metadata.papermill.status != "pending"
        assert bool(cell.metadata.papermill.end_time) == ran
        assert ran or (cell.execution_count is None and not cell.outputs)
    return found


@pytest.fixture(scope="module", params=["cold", "warm"])
def kernels(request):
    "One guard for all tests, and for half of them a zygote."
    if request.param == "warm" and sys.platform != "linux": pytest.skip("warm on Linux only")
    with Kernels(["json"] if request.param == "warm" else ()) as kernels: yield kernels


def run(kernels, folder, *cells, **how):
    return execute(notebook(folder, *cells), folder/"out.ipynb", {}, kernels=kernels, **how)


ENDS = {  # the failing cell, the error's status and name, what is saved of it
    "an error": ("1/0", "failed", "ZeroDivisionError", "failed"),
    "killed, as for its memory": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "died", "DeadKernelError",
        "failed"),
    "a crash": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "died",
                "DeadKernelError", "failed"),
    "its own end": ("import os\nos._exit(3)", "died", "DeadKernelError", "failed"),
    "sys.exit": ("import sys\nsys.exit()", "failed", "SystemExit", "failed"),
    "a question": ("input('name? ')", "failed", "StdinNotImplementedError", "failed"),
    "a syntax error": ("def", "failed", "SyntaxError", "failed"),
    "a keyboard interrupt of its own": ("raise KeyboardInterrupt", "failed", "KeyboardInterrupt",
                                        "failed")}


@pytest.mark.parametrize("kind", ENDS)
def test_ends(kernels, tmp_path, kind):
    cell, status, ename, saved = ENDS[kind]
    with pytest.raises(StageFailed) as e:
        run(kernels, tmp_path, "print('before')", cell, "print('after')")
    assert (e.value.status, e.value.cell, e.value.ename) == (status, 2, ename)
    assert statuses(tmp_path/"out.ipynb") == ["completed", "completed", saved, "pending"]
    assert not isinstance(e.value, Stopped)


def test_what_a_cell_said_before_its_kernel_died_is_kept(kernels, tmp_path):
    with pytest.raises(StageFailed, match="ended itself with exit code 7"):
        run(kernels, tmp_path, "import os\nprint('the last words', flush=True)\n"
            "import time; time.sleep(.3); os._exit(7)")
    nb = nbformat.read(tmp_path/"out.ipynb", 4)
    assert nb.cells[1].outputs[0].text == "the last words\n"


def test_a_time_out(kernels, tmp_path):
    begun = time.monotonic()
    with pytest.raises(StageFailed) as e:
        run(kernels, tmp_path, "print('long', flush=True)\nimport time\ntime.sleep(60)", "1",
            timeout=2)
    assert (e.value.status, e.value.cell, e.value.ename) == ("timed out", 1, "KeyboardInterrupt")
    assert statuses(tmp_path/"out.ipynb") == ["completed", "interrupted", "pending"]
    outputs = nbformat.read(tmp_path/"out.ipynb", 4).cells[1].outputs
    assert outputs[0].text == "long\n" and outputs[-1].ename == "KeyboardInterrupt"
    assert time.monotonic() - begun < 30


def test_a_cell_that_ignores_its_interruption_is_ended(kernels, tmp_path, monkeypatch):
    from ftnb.study.engine import Client
    monkeypatch.setattr(Client, "grace", .5)
    stubborn = ("import time\nwhile True:\n    try: time.sleep(60)\n"
                "    except KeyboardInterrupt: print('no', flush=True)")
    with pytest.raises(StageFailed) as e: run(kernels, tmp_path, stubborn, "1", timeout=2)
    assert (e.value.status, e.value.cell) == ("timed out", 1)
    assert statuses(tmp_path/"out.ipynb") == ["completed", "interrupted", "pending"]


def test_a_stop_lets_the_cell_clean_up(kernels, tmp_path):
    stop = threading.Event()
    cell = ("import time, pathlib\npathlib.Path('began').touch()\n"
            "try: time.sleep(60)\nfinally: pathlib.Path('cleaned').touch()")
    def later():
        while not (tmp_path/"began").exists(): time.sleep(.01)
        stop.set()
    threading.Thread(target=later).start()
    with pytest.raises(Stopped) as e: run(kernels, tmp_path, cell, "1", stop=stop)
    assert (e.value.status, e.value.cell) == ("interrupted", 1)
    assert statuses(tmp_path/"out.ipynb") == ["completed", "interrupted", "pending"]
    assert (tmp_path/"cleaned").exists()


def test_a_stop_before_the_first_cell(kernels, tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped): run(kernels, tmp_path, "1", stop=stop)
    assert statuses(tmp_path/"out.ipynb") == ["pending", "pending"]


def test_a_run_to_the_end(kernels, tmp_path):
    seen = []
    made = notebook(tmp_path, "print(n)", "import numpy as np\nx = np.ones(30_000_000)\nx[0]")
    done = execute(made, tmp_path/"out.ipynb", {"n": 5}, kernels=kernels,
                   on_cell=lambda *at: seen.append(at))
    assert statuses(tmp_path/"out.ipynb") == ["completed"]*4 and seen == [(i, 4) for i in range(4)]
    nb = nbformat.read(tmp_path/"out.ipynb", 4)
    assert nb.cells[2].outputs[0].text == "5\n"
    assert nb.metadata.papermill.parameters == {"n": 5} and nb.metadata.language_info.name
    assert done.peak_bytes > 240_000_000 and 0 < done.cpu_seconds and 0 < done.seconds
    assert done.engine == ("warm" if kernels.preload else "cold")


def test_an_error_that_the_cell_allows_is_none(kernels, tmp_path):
    made = notebook(tmp_path, "1/0", "print('after')")
    nb = nbformat.read(made, 4)
    nb.cells[1].metadata["tags"] = ["raises-exception"]
    nbformat.write(nb, made)
    execute(made, tmp_path/"out.ipynb", {}, kernels=kernels)
    assert statuses(tmp_path/"out.ipynb") == ["completed"]*3


def test_resources_count_children(kernels, tmp_path):
    burn = "sum(i*i for i in range(4_000_000)); x = bytearray(150_000_000)"
    done = run(kernels, tmp_path, f"import subprocess, sys\n"
               f"subprocess.run([sys.executable, '-c', '{burn}; import time; time.sleep(1)'])")
    assert done.peak_bytes > 180_000_000 and done.cpu_seconds > .2


def test_the_notebook_can_be_read_while_it_runs(kernels, tmp_path):
    "Every reading is whole JSON; what came in shows within two seconds; nothing torn at 8 MB."
    made = notebook(tmp_path, "print('x' * 5_000_000)",
                    "import time, pathlib\nprint('here', flush=True)\nend = time.time() + 20\n"
                    "while time.time() < end and not pathlib.Path('enough').exists(): "
                    "time.sleep(.05)", *["print('y' * 600_000)"]*5)
    readings: list[str] = []
    over = threading.Event()
    def read():
        while not over.is_set():
            if (tmp_path/"out.ipynb").exists():
                nb = json.loads((tmp_path/"out.ipynb").read_text())
                cells = [c["metadata"]["papermill"]["status"] for c in nb["cells"]]
                readings.append("".join(s[0] for s in cells))
                text = json.dumps(nb["cells"][2].get("outputs"))
                if "here" in text: (tmp_path/"enough").touch()
            time.sleep(.05)
    reader = threading.Thread(target=read)
    reader.start()
    try: execute(made, tmp_path/"out.ipynb", {}, kernels=kernels)
    finally:
        over.set()
        reader.join()
    assert (tmp_path/"enough").exists() and "ccrppppp" in readings
    assert statuses(tmp_path/"out.ipynb") == ["completed"]*8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["enough", "out.ipynb", "stage.ipynb"]


def test_a_full_disk_is_said_and_the_saved_notebook_stands(kernels, tmp_path, monkeypatch):
    from ftnb.foundation.errors import BadInput
    from ftnb.study import engine
    real, calls = engine.write_text, []
    def full(path, text):
        calls.append(path)
        if len(calls) > 1: raise BadInput("can't write out.ipynb: No space left on device", "", "")
        return real(path, text)
    monkeypatch.setattr(engine, "write_text", full)
    with pytest.raises(BadInput, match="No space left"): run(kernels, tmp_path, "1")
    nb = nbformat.read(tmp_path/"out.ipynb", 4)
    assert {c.metadata.papermill.status for c in nb.cells} == {"pending"}
    assert not kernels.processes


def test_files_read_are_told(kernels, tmp_path):
    (tmp_path/"helper.py").write_text("import inner\nanswer = inner.answer\n")
    (tmp_path/"inner.py").write_text("answer = 42\n")
    (tmp_path/"rows.csv").write_text("1\n")
    (tmp_path/"settings.ini").write_text("")
    (tmp_path/"store").mkdir()
    (tmp_path/"store"/"handed_on.txt").write_text("")
    done = run(
        kernels, tmp_path, "import helper", "open('rows.csv').read()\nimport os\n"
        "os.close(os.open('rows.csv', os.O_RDONLY))\nopen('settings.ini').read()",
        "open('made.txt', 'w').write('x')\nopen('made.txt').read()",
        "open('gone.txt', 'w').write('x')\nos.unlink('gone.txt')\nopen('store/handed_on.txt')",
        "try: open('missing.txt')\nexcept OSError: pass", "import json, numpy, tempfile\n"
        "tempfile.TemporaryFile().write(b'x')\nopen('/etc/hosts').read() and None",
        environment={"FTNB_ROOT": str(tmp_path)}, ignore=[tmp_path/"store"])
    assert [p.relative_to(tmp_path).as_posix() for p in done.reads] == [
        "helper.py", "inner.py", "rows.csv"]


def test_a_module_loaded_from_its_bytecode_is_told_by_its_source(kernels, tmp_path):
    (tmp_path/"helper.py").write_text("answer = 42\n")
    for _ in range(2):
        done = run(kernels, tmp_path, "import helper", environment={"FTNB_ROOT": str(tmp_path)})
        assert done.reads == [tmp_path/"helper.py"]


def test_two_at_once(kernels, tmp_path):
    "Side by side: each in its own folder, namespace and output; both overlap."
    meet = ("import time, pathlib, os\nhere = pathlib.Path.cwd()\n(here/'began').touch()\n"
            "other = here.parent/('a' if here.name == 'b' else 'b')\nend = time.time() + 30\n"
            "while not (other/'began').exists() and time.time() < end: time.sleep(.01)\n"
            "print(here.name, (other/'began').exists(), n)")
    results: dict[str, str] = {}
    def one(name, n):
        execute(notebook(tmp_path/name, meet), tmp_path/name/"out.ipynb", {"n": n},
                kernels=kernels)
        results[name] = nbformat.read(tmp_path/name/"out.ipynb", 4).cells[2].outputs[0].text
    threads = [threading.Thread(target=one, args=(name, n)) for name, n in (("a", 1), ("b", 2))]
    for t in threads: t.start()
    for t in threads: t.join()
    assert results == {"a": "a True 1\n", "b": "b True 2\n"}


RUNNER = """
import sys, pathlib
from ftnb.study.kernels import Kernels
from ftnb.study.execution import Stopped, StageFailed, execute
folder, preload = pathlib.Path(sys.argv[1]), sys.argv[2:]
try:
    with Kernels(preload) as kernels:
        execute(folder/"stage.ipynb", folder/"out.ipynb", {}, kernels=kernels)
except StageFailed as e:
    print(type(e).__name__, e.status, e.cell)
"""
JOB = """
import os, pathlib, subprocess, sys, threading, time
from ftnb.places.contract import Job
from ftnb.places.local import run
pathlib.Path('job.py').write_text('import os, pathlib, time; '
    'pathlib.Path(os.environ["HERE"], "job").write_text(str(os.getpid())); time.sleep(120)')
shell = subprocess.Popen(['/bin/sh', '-c', 'sleep 120 & setsid sleep 121 & sleep 122'])
pathlib.Path('kernel').write_text(f'{os.getpid()} {os.getppid()} {shell.pid}')
run(Job('demo', 'job', environment={'PYTHONPATH': os.environ['PYTHONPATH'] + ':' + os.getcwd(),
    'HERE': os.getcwd()}), pathlib.Path('work'))
"""


def tree(root: int) -> set[int]:
    "A process's descendants, by parents alone."
    known, found, fresh = processes(), {root}, {root}
    while fresh:
        fresh = {p for p, (parent, _) in known.items() if parent in fresh} - found
        found |= fresh
    return found


def begin(tmp_path: Path, preload: list[str], cell: str) -> tuple[subprocess.Popen, set[int]]:
    "A runner in a process of its own, with a kernel, a training job and a shell's children."
    notebook(tmp_path, cell, "print('after')")
    root = str(Path(__file__).resolve().parent.parent)
    heeds = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)   # a job of `&` ignores Ctrl-C
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path), *preload],
                              stdout=subprocess.PIPE, text=True, start_new_session=True,
                              env={**os.environ, "PYTHONPATH": root}, preexec_fn=heeds)
    until = time.monotonic() + 60
    def began() -> bool:
        there = (tmp_path/"job").exists() and (tmp_path/"job").read_text()
        if not there: return False
        nb = nbformat.read(tmp_path/"out.ipynb", 4)
        return nb.cells[1].metadata.papermill.status == "running"
    while not began():
        assert runner.poll() is None and time.monotonic() < until
        time.sleep(.02)
    return runner, tree(runner.pid) - {runner.pid}


def gone(them: set[int], within: float) -> float:
    "Seconds until the last one has ended."
    begun = time.monotonic()
    while left := them & processes().keys():
        assert time.monotonic() - begun < within, left
        time.sleep(.01)
    return time.monotonic() - begun


@linux
@pytest.mark.parametrize("preload", [[], ["json"]], ids=["cold", "warm"])
def test_nothing_outlives_a_killed_runner(tmp_path, preload):
    runner, them = begin(tmp_path, preload, JOB)
    job = int((tmp_path/"job").read_text())
    assert job in them and len(them) >= 6         # guard, kernel, shell, its three, the job
    runner.kill()
    runner.wait()
    gone(them, within=2)
    found = nbformat.read(tmp_path/"out.ipynb", 4)
    assert [c.metadata.papermill.status for c in found.cells] == ["completed", "running", "pending"]


@linux
@pytest.mark.slow
def test_nothing_outlives_a_killed_guard(tmp_path):
    runner, them = begin(tmp_path, [], JOB)
    kernel, guard, _ = map(int, (tmp_path/"kernel").read_text().split())
    os.kill(guard, signal.SIGKILL)
    job = int((tmp_path/"job").read_text())
    gone({kernel, guard, job}, within=2)
    assert runner.communicate(timeout=30)[0].split() == ["StageFailed", "died", "1"]
    assert statuses(tmp_path/"out.ipynb") == ["completed", "failed", "pending"]
    for pid in them & processes().keys(): os.kill(pid, signal.SIGKILL)


@linux
@pytest.mark.parametrize("sign", [
    signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_once(tmp_path, sign):
    "Ctrl-C ends cell, job and kernel, and the notebook is saved; SIGTERM ends all at once."
    runner, them = begin(tmp_path, [], JOB)
    runner.send_signal(sign)
    said = runner.communicate(timeout=40)[0].split()
    gone(them, within=2)
    if sign == signal.SIGTERM: return
    assert said == ["Stopped", "interrupted", "1"]
    assert statuses(tmp_path/"out.ipynb") == ["completed", "interrupted", "pending"]


@linux
def test_what_a_stage_started_ends_with_it(kernels, tmp_path):
    run(kernels, tmp_path, "import subprocess\np = subprocess.Popen(['/bin/sh', '-c', "
        "'sleep 120 & setsid sleep 121'])\nprint(p.pid)")
    shell = int(nbformat.read(tmp_path/"out.ipynb", 4).cells[1].outputs[0].text)
    gone({shell}, within=2)
    from ftnb.study.guard import below
    alive = below({kernels.guard.pid}, processes())
    assert len(alive) == bool(kernels.preload)           # the zygote
