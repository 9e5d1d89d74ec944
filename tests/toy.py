# ruff: noqa: E501 - cells are quoted as they are
"""A repository of its own with six stages that take no time, for tests of everything around a stage.

The shape is the real one: prepare and train hand on to the others, bias and explain don't need each
other, release needs all. What each computes follows from parameters, a data file and a helper
module beside the notebooks.
"""
from pathlib import Path

import nbformat

from ftnb.foundation.settings import Settings, Stated

CELLS: dict[str, list[str]] = {
    "prepare": [
        'path: str = "data.csv"   # the numbers, one a line\nshare: float = 0.5  # of rows to train on, in [0, 1]',
        "from ftnb.foundation.files import write_text\n"
        "from ftnb.foundation.records import Workbench\n"
        "from ftnb.foundation.settings import settings\n"
        "import helper",
        "bench = Workbench.open('prepare')\n"
        "rows = [float(x) for x in (settings().root/path).read_text().split()]\n"
        "cut = int(len(rows) * share)\n"
        "write_text(bench.folder/'train.txt', helper.lines(rows[:cut]))\n"
        "write_text(bench.folder/'test.txt', helper.lines(rows[cut:]))\ncut",
        "bench.hand_on('train', 'train.txt', 'toy/rows/1', cut)\n"
        "bench.hand_on('test', 'test.txt', 'toy/rows/1', len(rows) - cut)\n"
        "bench.facts(rows=len(rows))\n"
        "bench.front('The data', f'{len(rows)} rows.')"],
    "train": [
        "factor: float = 2.0  # what rows are multiplied by, in [0, 100]\n"
        "steps: int = 3       # how often, in [1, 1000000]\nseed: int = 1        # in [0, 100]\n"
        "pause: float = 0.0   # seconds a step, in [0, 60]",
        "import random\nimport time\n\n"
        "from ftnb.foundation.files import write_json\nfrom ftnb.foundation.records import Workbench",
        "bench = Workbench.open('train')\nrandom.seed(seed)\n"
        "rows = [float(x) for x in bench.receive('prepare', 'train').read_text().split()]\n"
        "weight = 0.0\n"
        "for step in range(steps):\n"
        "    time.sleep(pause)\n"
        "    weight += factor * sum(rows) / len(rows) + random.random() / 1000",
        "(bench.folder/'model').mkdir(exist_ok=True)\n"
        "write_json(bench.folder/'model'/'weight.json', {'weight': weight})\n"
        "bench.hand_on('model', 'model', 'toy/model/1')\nbench.facts(weight=weight)\nweight"],
    "evaluate": [
        "level: float = 0.95  # coverage, in (0, 1)",
        "from ftnb.foundation.files import read_json, write_json\n"
        "from ftnb.foundation.intervals import Interval\nfrom ftnb.foundation.records import Workbench",
        "bench = Workbench.open('evaluate')\n"
        "weight = read_json(bench.receive('train', 'model')/'weight.json')['weight']\n"
        "rows = [float(x) for x in bench.receive('prepare', 'test').read_text().split()]\n"
        "said = [round(weight * x, 6) for x in rows]\nmean = sum(said) / len(said)",
        "file = write_json(bench.folder/'said.json', said)\n"
        "bench.hand_on('said', 'said.json', 'toy/said/1', len(said))\n"
        "bench.facts(mean=Interval(mean, mean - 1, mean + 1, level))\n"
        "bench.front('The mean', 'Of what the model says.', [('mean', Interval(mean, mean - 1, mean + 1, level))])\n"
        "print('mean', mean)"],
    "bias": [
        "pause: float = 0.0   # seconds, in [0, 60]",
        "import time\n\nfrom ftnb.foundation.files import read_json\nfrom ftnb.foundation.records import Workbench",
        "bench = Workbench.open('bias')\ntime.sleep(pause)\n"
        "said = read_json(bench.receive('evaluate', 'said'))\nbench.facts(largest=max(said))"],
    "explain": [
        "pause: float = 0.0   # seconds, in [0, 60]",
        "import time\n\nfrom ftnb.foundation.files import read_json\nfrom ftnb.foundation.records import Workbench",
        "bench = Workbench.open('explain')\ntime.sleep(pause)\n"
        "weight = read_json(bench.receive('train', 'model')/'weight.json')['weight']\n"
        "bench.facts(sign='positive' if weight > 0 else 'negative')"],
    "release": [
        "bar: float = 1.0     # the mean must be above it, in [-1000, 1000]",
        "from ftnb.foundation.files import read_json, write_json\nfrom ftnb.foundation.records import Workbench",
        "bench = Workbench.open('release')\nsaid = read_json(bench.receive('evaluate', 'said'))\n"
        "verdict = 'ship' if sum(said) / len(said) > bar else \"don't ship\"\n"
        "write_json(bench.folder/'decision.json', {'verdict': verdict})\n"
        "bench.hand_on('decision', 'decision.json', 'toy/decision/1')\n"
        "bench.facts(decision={'verdict': verdict, 'sentence': verdict, 'criteria': []}, inputs=bench.inputs)"],
}
STUDY = """study: toy
question: Does it run?
prepare:
  path: data.csv
"""
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def write_stage(site: Settings, name: str, cells: list[str]) -> Path:
    "A stage notebook: its parameters cell, then the others."
    made = [nbformat.v4.new_code_cell(c, id=f"c{i:02d}") for i, c in enumerate(cells)]
    made[0].metadata["tags"] = ["parameters"]
    title = nbformat.v4.new_markdown_cell(f"# {name.capitalize()}\n\n> Does {name} run?", id="title")
    nb = nbformat.v4.new_notebook(cells=[title, *made], metadata={"kernelspec": KERNEL})
    site.stages.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, site.stages/f"{name}.ipynb")
    return site.stages/f"{name}.ipynb"


def toy_site(root: Path) -> Settings:
    "The toy repository in a folder; its study is params/toy.yaml."
    site = Settings(root.resolve(), Stated(tracking_uri=""))
    (root/"params").mkdir(parents=True, exist_ok=True)
    (root/"settings.ini").write_text("[ftnb]\ntracking_uri =\n")
    (root/"params"/"toy.yaml").write_text(STUDY)
    (root/"data.csv").write_text("\n".join(str(n) for n in range(1, 21)) + "\n")
    for name, cells in CELLS.items(): write_stage(site, name, cells)
    (site.stages/"helper.py").write_text(
        "def lines(rows):\n    return ''.join(f'{x}\\n' for x in rows)\n")
    return site
