"""Six stage notebooks that import torch, transformers and datasets: warm kernels, and papermill's.

Each contender is a whole process that executes the same six notebooks one after the other: ours
(`ftnb.study.execution`, one zygote for all), ours with cold kernels, papermill's API as its
documentation has it, papermill with `shutdown_kernel="immediate"`, nbclient. The limit is one
Python process that runs the notebooks' code without any kernel: it imports once. Rounds are
interleaved, since the machine is shared: the ratio within a round is what counts. Takes about a
minute a round on two quiet cores. python kernels.py [ROUNDS]
"""
import os
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


def seconds(code: str, folder: Path) -> float:
    "Wall clock of a process that executes the notebooks."
    head = (f"from pathlib import Path\nnotebooks = sorted(Path({str(folder)!r}).glob('*.ipynb'))\n"
            f"cells = {CELLS!r}\nout = Path({tempfile.mkdtemp(dir=folder)!r})\n")
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", head + code], check=True,
                   stdout=subprocess.DEVNULL, stderr=None, cwd=folder,
                   env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    return time.perf_counter() - begun


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_notebooks(Path(folder))
        took: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for n in range(rounds):
            for name, code in CONTENDERS.items(): took[name].append(seconds(code, Path(folder)))
            print(f"round {n + 1}: load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    print(f"{'':<31} {'seconds, median (lowest)':>26}   of papermill's, in the same round")
    for name, all_ in took.items():
        ratios = sorted(t / p for t, p in zip(all_, took["papermill"], strict=True))
        print(f"{name:<31} {statistics.median(all_):>17.1f} ({min(all_):.1f})   "
              f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__": main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
