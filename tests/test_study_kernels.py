"A kernel that is a copy is a kernel like another; and where a copy isn't safe there is none."
import gc
import json
import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

from ftnb.study.execution import execute
from ftnb.study.kernels import Kernels, imported

if sys.platform != "linux": pytest.skip("warm kernels are Linux's", allow_module_level=True)

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
PRELOAD = ["numpy", "pandas", "matplotlib.pyplot", "sklearn.linear_model", "torch",
           "torch.utils.data"]
HEAVY = {
    "numpy's bits": "import hashlib\nimport numpy as np\nr = np.random.default_rng(1)\n"
    "a = r.normal(size=(300, 300))\nnp.random.seed(4)\n"
    "hashlib.sha256((a @ a.T).tobytes() + np.random.rand(9).tobytes()).hexdigest()",
    "a model's bits": "import torch\nfrom torch import nn\ntorch.manual_seed(0)\n"
    "m = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(.1), nn.Linear(256, 3))\n"
    "o = torch.optim.AdamW(m.parameters(), 1e-2)\nx, y = torch.randn(512, 64), "
    "torch.randint(3, (512,))\nfor _ in range(20):\n    o.zero_grad()\n    "
    "loss = nn.functional.cross_entropy(m(x), y)\n    loss.backward()\n    o.step()\n"
    "print(loss.item(), hashlib.sha256(b''.join(p.detach().numpy().tobytes() "
    "for p in m.parameters())).hexdigest())",
    "loader workers": "from torch.utils.data import DataLoader\n"
    "[b.sum().item() for b in DataLoader(torch.arange(64.).reshape(16, 4), 4, num_workers=2)]",
    "scikit-learn's bits": "from sklearn.linear_model import LogisticRegression\n"
    "fit = LogisticRegression(C=.5).fit(a, a[:, 0] > 0)\n"
    "hashlib.sha256(fit.coef_.tobytes()).hexdigest()",
    "a table": "import pandas as pd\npd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})",
    "a picture": "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.title('one')",
    "two pictures": "fig, ax = plt.subplots()\nax.bar(['a'], [1])\nplt.show()\nprint('between')\n"
    "plt.figure(); plt.plot([1, 2]); None",
    "SVG": "import io\nplt.rcParams['svg.hashsalt'] = 'x'\nout = io.StringIO()\n"
    "fig.savefig(out, format='svg', metadata={'Date': None})\n"
    "hashlib.sha256(out.getvalue().encode()).hexdigest()",
    "the inline back end": "%matplotlib inline\nimport matplotlib\nmatplotlib.get_backend()",
    "its environment": "import hashlib\n"
    "hashlib.sha256(repr(sorted((k, v) for k, v in os.environ.items() "
    "if k not in ('FTNB_READS', "
    "'FTNB_UNREAD'))).encode()).hexdigest()"}
LIGHT = {
    "order of streams": "import sys\nfor i in range(3):\n    print('out', i, flush=True)\n"
    "    print('err', i, file=sys.stderr, flush=True)",
    "the system's output": "import os\nos.system('echo below; echo wrong >&2')\nprint('above')",
    "the original streams": "print('original', file=sys.__stdout__, flush=True)",
    "display": "from IPython.display import HTML, JSON, Latex, display, clear_output\n"
    "h = display(1, display_id='d')\nh.update(2)\ndisplay(HTML('<b>x</b>'), JSON({'a': 1}))\n"
    "Latex('$x$')",
    "cleared": "print('old')\nclear_output()\nprint('new')",
    "rich": "class R:\n    def _repr_html_(self): return '<i>r</i>'\n"
    "    def _repr_markdown_(self): return '*r*'\nR()",
    "an exception": "def deep(n): return deep(n - 1) if n else 1/0\ndeep(3)",
    "an exception's group": "raise ExceptionGroup('two', [ValueError(1), KeyError('k')])",
    "await": "import asyncio\nasync def twice(x):\n    await asyncio.sleep(.01)\n    return 2*x\n"
    "await asyncio.gather(twice(1), twice(2))",
    "magics": "%who_ls\n%xmode\n!echo shell\n%env HASH_DEMO=1",
    "captured": "%%capture kept\nprint('hidden')",
    "what was captured": "kept.stdout, In[1], Out.get(1), _",
    "a pool of forks": "import multiprocessing as mp\nwith mp.get_context('fork').Pool(2) as p: "
    "print(p.map(abs, [-1, -2]))",
    "a pool of new processes": "with mp.get_context('spawn').Pool(1) as p: "
    "print(p.map(abs, [-1, -2]))",
    "a process of a function here": "def say(q): q.put(__name__)\n"
    "q = mp.get_context('fork').Queue()\np = mp.get_context('fork').Process(target=say, args=(q,))"
    "\np.start()\nprint(q.get(timeout=20))\np.join()",
    "threads": "import threading\nt = [threading.Thread(target=print, args=(i,)) for i in range(2)]"
    "\nfor x in t:\n    x.start()\n    x.join()",
    "futures": "from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor\n"
    "with ThreadPoolExecutor(2) as e: print(list(e.map(abs, [-1, -2])))",
    "a subprocess": "import subprocess\nprint(subprocess.run([sys.executable, '-c', "
    "'import sys; print(sys.path[0]); print(1, file=sys.stderr)'], capture_output=True))",
    "a question": "input('?')",
    "a password": "import getpass\ngetpass.getpass()",
    "many outputs": "for i in range(3000): display(i)",
    "a large output": "print('x' * 3_000_000)",
    "leaving": "sys.exit(3)",
    "a warning": "import warnings\nwarnings.warn('careful')\nwarnings.warn('old', "
    "DeprecationWarning)",
    "logging": "import logging\nlogging.warning('root')\nlogging.getLogger('a').error('other')",
    "pickling": "import pickle, copy\nclass P:\n    def __init__(self, x): self.x = x\n"
    "(pickle.loads(pickle.dumps(P(3))).x, copy.deepcopy(P(4)).x, P.__module__)",
    "who it is": "import __main__\nprint(__name__, __main__.__dict__ is globals(), "
    "sys.argv[0][-30:], len(sys.argv), os.getcwd() == os.path.abspath(''), repr(sys.path[0]), "
    "len(sys.path), '__file__' in globals(), __spec__)",
    "hashes": "hash('text'), hash((1, 'a')), sys.flags.hash_randomization, "
    "sys.getrecursionlimit()",
    "signals": "import signal\n[str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM, "
    "signal.SIGCHLD, signal.SIGPIPE, signal.SIGHUP)], signal.set_wakeup_fd(-1) == -1",
    "standard streams": "sys.stdin.read(), os.read(0, 10), os.isatty(1), "
    "sorted(os.readlink(f'/proc/self/fd/{n}')[:6] for n in os.listdir('/proc/self/fd') "
    "if int(n) < 3)",
    "its process": "os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid(), os.nice(0), "
    "os.umask(0o22), threading.current_thread() is threading.main_thread(), "
    "sorted(t.name for t in threading.enumerate())",
    "a fork": "pid = os.fork()\nif pid == 0: os._exit(5)\nos.waitstatus_to_exitcode("
    "os.waitpid(pid, 0)[1])",
    "its tools": "type(get_ipython()).__name__, get_ipython().config.get('IPKernelApp', {}).get("
    "'connection_file', '')[-5:], 'IPKernelApp' in get_ipython().config",
    "a handler at the end": "import atexit\natexit.register(lambda: open('left', 'w').close())"}


def notebook(folder: Path, cells: list[str]) -> Path:
    "A notebook in which every cell may fail."
    folder.mkdir(parents=True, exist_ok=True)
    made = [nbformat.v4.new_code_cell(c, metadata={"tags": ["raises-exception"]}) for c in cells]
    nb = nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": KERNEL})
    nbformat.write(nb, folder/"stage.ipynb")
    return folder/"stage.ipynb"


def outputs(cell) -> list[dict]:
    "A cell's outputs without addresses, process ids and how a stream was cut into pieces."
    joined: list[dict] = []
    for output in json.loads(json.dumps(cell.outputs)):
        last = joined[-1] if joined else {}
        if output["output_type"] == "stream" == last.get("output_type") \
                and output["name"] == last["name"]: last["text"] += output["text"]
        else: joined.append(output)
    text = re.sub(r"0x[0-9a-f]{6,}", "0x", json.dumps(joined))
    return json.loads(re.sub(r"ipykernel_\d+", "ipykernel", text))


def both(folder: Path) -> dict[str, dict]:
    "The same cells on a cold kernel and on a copy."
    cells = {**LIGHT, **HEAVY}
    found: dict[str, dict] = {}
    with Kernels(PRELOAD, {"PYTHONHASHSEED": "0"}) as kernels:
        for engine in ("cold", "warm"):
            place = folder/engine/"stage"
            made = notebook(place, list(cells.values()))
            why, kernels.refuses = kernels.refuses, "to compare" if engine == "cold" else ""
            done = execute(made, place/"out.ipynb", {}, kernels=kernels)
            kernels.refuses = why
            assert done.engine == engine, done.why
            nb = nbformat.read(place/"out.ipynb", 4)
            assert (place/"left").exists()
            found[engine] = dict(zip(cells, nb.cells, strict=True))
    return found


def test_a_copy_is_like_a_new_one(tmp_path):
    "44 kinds of cells say the same; one test, since both kernels' imports are what it costs."
    found = both(tmp_path)
    silent = {"captured", "a handler at the end", "the original streams"}
    for kind, cold in found["cold"].items():
        warm = found["warm"][kind]
        assert outputs(warm) == outputs(cold), kind
        assert warm.execution_count == cold.execution_count, kind
        assert outputs(cold) or kind in silent, kind
    for cells in found.values():        # every message of a fast cell is there
        shown = [o["data"]["text/plain"] for o in cells["many outputs"].outputs]
        assert shown == [str(i) for i in range(3000)]
    assert len(found["cold"]) == 44


def text(file: Path, cell: int) -> str:
    "What a cell printed."
    return "".join(o.get("text", "") for o in nbformat.read(file, 4).cells[cell].outputs)


def one(kernels, folder: Path, *cells: str, **how):
    return execute(notebook(folder, list(cells)), folder/"out.ipynb", {}, kernels=kernels, **how)


def test_copies_share_nothing(tmp_path):
    "Neither names nor modules' state nor unseeded chance pass from one stage to the next."
    draw = ("import numpy as np, random, torch, secrets, uuid\nprint('left' in globals(), "
            "hasattr(np, 'left'), 'inherited' in __import__('os').environ)\n"
            "print(np.random.rand(), "
            "random.random(), torch.rand(1).item(), secrets.token_hex(4), uuid.uuid4())\n"
            "left = np.left = 1\n__import__('os').environ['inherited'] = 'x'")
    said = []
    with Kernels(["numpy", "torch"]) as kernels:
        for n in range(2):
            assert one(kernels, tmp_path/str(n), draw).engine == "warm"
            said.append(text(tmp_path/str(n)/"out.ipynb", 0).splitlines())
    assert said[0][0] == said[1][0] == "False False False"
    assert not set(said[0][1].split()) & set(said[1][1].split())


def package(folder: Path, name: str, code: str) -> dict[str, str]:
    "A module that can be imported, and the environment that finds it."
    folder.mkdir(exist_ok=True)
    (folder/f"{name}.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_a_zygote_with_threads_isnt_copied(tmp_path):
    env = package(tmp_path/"lib", "threaded", "import threading, time\n"
                  "threading.Thread(target=time.sleep, args=(90,), daemon=True).start()\n")
    with Kernels(["threaded"], env) as kernels:
        done = one(kernels, tmp_path/"s", "print(1)", environment=env)
    assert (done.engine, done.why) == ("cold", "imports left 1 threads running")


def test_modules_of_the_repository_are_never_copied(tmp_path):
    env = package(tmp_path/"lib", "ours", "x = 1\n")
    with Kernels(["json", "ours"], env, never=[tmp_path/"lib"]) as kernels:
        done = one(kernels, tmp_path/"s", "print(1)", environment=env)
    assert (done.engine, done.why) == ("cold", "ours is the repository's own")


def test_a_module_that_cant_be_imported_beforehand_is_the_stages_own_affair(tmp_path):
    env = package(tmp_path/"lib", "broken", "raise RuntimeError('not today')\n")
    with Kernels(["no_such_module", "broken", "json"], env) as kernels:
        done = one(kernels, tmp_path/"s", "import broken", environment=env)
    assert done.engine == "warm"
    error = nbformat.read(tmp_path/"s"/"out.ipynb", 4).cells[0].outputs[0]
    assert error.ename == "RuntimeError"


def test_what_makes_a_copy_unlike_makes_it_cold(tmp_path):
    with Kernels(["numpy"], {"OMP_NUM_THREADS": "1"}) as kernels:
        same = one(kernels, tmp_path/"a", "print(1)", environment={"FTNB_X": "1"})
        assert same.engine == "warm" and same.why == ""
        other = one(kernels, tmp_path/"b", "import os\nprint(os.environ['OMP_NUM_THREADS'])",
                    environment={"OMP_NUM_THREADS": "2"})
        assert (other.engine, other.why) == (
            "cold", "OMP_NUM_THREADS differs from what the others have")
        assert text(tmp_path/"b"/"out.ipynb", 0) == "2\n"
        (tmp_path/"c").mkdir()
        (tmp_path/"c"/"numpy.py").write_text("mine = True\n")
        beside = one(kernels, tmp_path/"c", "import numpy\nprint(numpy.mine)")
        assert (beside.engine, beside.why) == ("cold", "numpy.py lies beside the notebook")
        assert text(tmp_path/"c"/"out.ipynb", 0) == "True\n"


def test_after_the_zygote_died_kernels_are_cold(tmp_path):
    with Kernels(["json"]) as kernels:
        assert one(kernels, tmp_path/"a", "print(1)").engine == "warm"
        from ftnb.study.guard import below, processes
        zygote, = below({kernels.guard.pid}, processes())
        os.kill(zygote, signal.SIGKILL)
        kernels.ready.clear()
        assert kernels.ready.wait(10)
        done = one(kernels, tmp_path/"b", "print(1)")
    assert (done.engine, done.why) == ("cold", "the process to copy is gone")


def test_a_zygote_that_dies_under_a_stage_doesnt_take_it_along(tmp_path):
    with Kernels(["json"]) as kernels:
        done = one(kernels, tmp_path, "import os, signal, time\nfrom pathlib import Path\n"
                   "guard = os.getppid()\nothers = [int(p) for p in Path(f'/proc/{guard}/task/"
                   "{guard}/children').read_text().split() if int(p) != os.getpid()]\n"
                   "os.kill(others[0], signal.SIGKILL)\ntime.sleep(.5)\nprint(len(others))")
    assert done.engine == "warm" and text(tmp_path/"out.ipynb", 0) == "1\n"


HANGS = "import os, time\nos.register_at_fork(after_in_child=lambda: time.sleep(90))\n"
SILENT = ("import ipykernel.kernelapp, time\n"
          "ipykernel.kernelapp.IPKernelApp.initialize = lambda *a: time.sleep(90)\n")


@pytest.mark.slow
@pytest.mark.parametrize("code", [HANGS, SILENT], ids=["the copy hangs", "its kernel is silent"])
def test_a_copy_that_doesnt_answer_is_replaced(tmp_path, monkeypatch, code):
    from ftnb.study import kernels as module
    from ftnb.study.engine import Talk
    monkeypatch.setattr(module, "PATIENCE", 3)
    monkeypatch.setattr(Talk, "warm", 3.0)
    env = package(tmp_path/"lib", "hangs", code)
    with Kernels(["hangs"], env) as kernels:
        assert kernels.ready.wait(60)
        begun = time.monotonic()
        done = one(kernels, tmp_path/"s", "print(1)", environment=env)
        assert time.monotonic() - begun < 40
    assert done.engine == "cold" and re.search("no copy in 3 s|didn't answer", done.why)
    assert text(tmp_path/"s"/"out.ipynb", 0) == "1\n"


@pytest.mark.slow
def test_a_stage_waits_for_what_it_needs_only(tmp_path):
    slow = package(tmp_path/"lib", "slow", "import time\ntime.sleep(6)\n")
    with Kernels(["json", "numpy", "slow"], slow) as kernels:
        early = one(kernels, tmp_path/"a", "import sys\nprint('slow' in sys.modules)",
                    environment=slow, needs=["numpy"])
        late = one(kernels, tmp_path/"b", "import sys\nprint('slow' in sys.modules)",
                   environment=slow)
    assert (early.engine, late.engine) == ("warm", "warm")
    assert text(tmp_path/"b"/"out.ipynb", 0) == "True\n"


def test_nothing_of_a_run_is_left_behind(tmp_path):
    with Kernels(["json"]) as kernels:
        one(kernels, tmp_path, "print(1)")
        folder, guard = kernels.folder, kernels.guard
        assert len(str(folder)) < 60 and folder.stat().st_mode & 0o77 == 0
    assert not folder.exists() and guard.poll() is not None


def test_what_stages_import():
    code = ["import torch.nn as nn, os.path\ntry: import yaml\nexcept ImportError: pass",
            "def f():\n    from datasets import load_dataset, Dataset\nfrom . import x",
            "from ftnb.train import batches\nfrom numpy import *\nimport torch.nn"]
    assert imported(code) == ["torch.nn", "yaml", "datasets.load_dataset", "datasets.Dataset",
                              "numpy"]
    assert imported(["import mine, theirs"], ours=["mine"]) == ["theirs"]


def test_threads_may_ask_at_once_what_is_imported():
    "CPython 3.11 counts the depth of its syntax trees for all threads together (gh-106905)."
    code = ["import numpy\n" + ("x = " + "(" * 40 + "1" + ",)" * 40 + "\n") * 5]
    switch = lambda *_: time.sleep(0)
    before = gc.get_threshold()
    gc.set_threshold(20)
    gc.callbacks.append(switch)             # as any finaliser may, in the middle of a tree
    try:
        with ThreadPoolExecutor(4) as pool: found = list(pool.map(imported, [code] * 40))
    finally:
        gc.callbacks.remove(switch)
        gc.set_threshold(*before)
    assert found == [["numpy"]] * 40
