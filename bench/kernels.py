"""Six stage notebooks that import torch, transformers and datasets: warm kernels, and papermill's.

Each contender is a whole process that executes the same six notebooks one after the other: ours
(`ftnb.study.execution`, one zygote for all), ours with cold kernels, papermill's API as its
documentation has it, papermill with `shutdown_kernel="immediate"`, nbclient. The limit is one
Python process that runs the notebooks' code without any kernel: it imports once. Rounds are
interleaved, since the machine is shared: the ratio within a round is what counts, and CPU seconds
tell how much of it is work. Takes about two minutes a round on two quiet cores.
python kernels.py [ROUNDS [CONTENDER …]]
"""
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

CELLS = [
    "seed: int = 0  # where chance starts",
    "import torch\nimport transformers\nfrom datasets import Dataset\n"
    "from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer",
    "torch.manual_seed(seed)\nweights = torch.randn(200, 200)\n"
    "loss = float((weights @ weights.T).diagonal().mean())\nloss",
    "rows = Dataset.from_dict({'n': list(range(1000))}).map(lambda r: {'twice': 2 * r['n']})\n"
    "print(sum(rows['twice']))",
    "names = [c.__name__ for c in (AutoModelForSequenceClassification, AutoTokenizer, Trainer)]\n"
    "names"]
STAGES = 6
OURS = """
from ftnb.study.kernels import Kernels, imported
with Kernels(imported(cells) if {warm} else ()) as kernels:
    from ftnb.study.execution import execute
    for i, notebook in enumerate(notebooks):
        done = execute(notebook, out/notebook.name, {{'seed': i}}, kernels=kernels)
        assert done.engine == {engine!r}, done
"""
CONTENDERS = {
    "ours, warm": OURS.format(warm=True, engine="warm"),
    "ours, cold": OURS.format(warm=False, engine="cold"),
    "papermill": """
import papermill
for i, notebook in enumerate(notebooks):
    papermill.execute_notebook(notebook, out/notebook.name, {'seed': i}, progress_bar=False)
""",
    "papermill, immediate shutdown": """
import papermill
for i, notebook in enumerate(notebooks):
    papermill.execute_notebook(notebook, out/notebook.name, {'seed': i}, progress_bar=False,
                               shutdown_kernel='immediate')
""",
    "nbclient": """
import nbformat
from nbclient import NotebookClient
for notebook in notebooks:
    nb = nbformat.read(notebook, 4)
    NotebookClient(nb, kernel_name='python3').execute()
    nbformat.write(nb, out/notebook.name)
""",
    "limit: one process, no kernel": """
for notebook in notebooks:
    space = {}
    for cell in cells: exec(cell, space)
"""}


def write_notebooks(folder: Path) -> None:
    "The six stages."
    made = [nbformat.v4.new_code_cell(c) for c in CELLS]
    made[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb = nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel})
    for i in range(STAGES): nbformat.write(nb, folder/f"stage{i}.ipynb")


def seconds(code: str, folder: Path) -> tuple[float, float]:
    "Wall clock and CPU of a process that executes the notebooks, with all it started."
    head = (f"from pathlib import Path\nnotebooks = sorted(Path({str(folder)!r}).glob('*.ipynb'))\n"
            f"cells = {CELLS!r}\nout = Path({tempfile.mkdtemp(dir=folder)!r})\n")
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-W", "ignore", "-c", head + code], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
                   env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    wall, used = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime


def main(rounds: int, chosen: list[str]) -> None:
    names = [n for n in CONTENDERS if not chosen or n in chosen or n == "papermill"]
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        write_notebooks(Path(folder))
        for n in range(rounds):
            for name in names: took[name].append(seconds(CONTENDERS[name], Path(folder)))
            print(f"round {n + 1}: load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    print(f"{'':<31} wall clock: seconds, of papermill's      CPU: seconds, of papermill's")
    for name in names:
        columns = []
        for kind in (0, 1):
            all_ = [t[kind] for t in took[name]]
            ratios = sorted(a / b[kind] for a, b in zip(all_, took["papermill"], strict=True))
            columns.append(f"{statistics.median(all_):>7.1f}   {statistics.median(ratios):.3f} "
                           f"({ratios[0]:.3f} to {ratios[-1]:.3f})")
        print(f"{name:<31} {columns[0]:<38} {columns[1]}")


if __name__ == "__main__": main(int((sys.argv + ["3"])[1]), sys.argv[2:])
