"""Nothing to do: what does it cost to find that out, as a whole process?

The same six stages three times: ours as notebooks (tests/toy.py), DVC's and Snakemake's as scripts
that take no time, which spares them what notebooks would add. All have run once. Then the command
that has nothing to do is timed, ours and theirs in turn, and with them Python's own start, which is
the limit. Each round checks that nothing was in fact run.

DVC and Snakemake get a virtual environment of their own in the temporary folder; it's kept there,
so a second measurement begins at once.
"""
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT/"tests")]
ROUNDS, NEEDS = 15, {"prepare": [], "train": ["prepare"], "evaluate": ["prepare", "train"],
                     "bias": ["evaluate"], "explain": ["train"],
                     "release": ["evaluate", "bias", "explain"]}
STEP = """import sys
from pathlib import Path
name, *needs = sys.argv[1:]
with open("ran.log", "a") as log: log.write(name + chr(10))
Path(name + ".out").write_text(name + "".join(Path(n + ".out").read_text() for n in needs))
"""


def peers() -> Path:
    "The bin folder of an environment with DVC and Snakemake."
    home = Path(tempfile.gettempdir())/"ftnb-bench-peers"
    if not (home/"bin"/"snakemake").exists():
        print("installing DVC and Snakemake (a few minutes, once)", file=sys.stderr)
        venv.create(home, with_pip=True)
        subprocess.run([home/"bin"/"pip", "install", "-qq", "--disable-pip-version-check",
                        "dvc", "snakemake"], check=True)
    return home/"bin"


def ours(folder: Path) -> list[str]:
    "The toy study, run, and asked again until its answer is proven."
    from toy import toy_site
    site = toy_site(folder)
    command = [sys.executable, "-c", "from ftnb.door import main; main()", "run", "params/toy.yaml"]
    for _ in range(5):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        if any((site.store/"proofs").glob("*.json")): return command
        time.sleep(2.5)          # what was just written is too new to be proven
    sys.exit("no proof was kept: the answer to a run with nothing to do isn't recorded")


def with_dvc(folder: Path, bin: Path) -> list[str]:
    "The same stages for DVC."
    (folder/"step.py").write_text(STEP)
    stages = ["stages:"]
    for name, needs in NEEDS.items():
        deps = "".join(f"\n      - {n}.out" for n in needs)
        stages.append(f"  {name}:\n    cmd: {sys.executable} step.py {' '.join([name, *needs])}\n"
                      f"    deps:\n      - step.py{deps}\n    outs:\n      - {name}.out")
    (folder/"dvc.yaml").write_text("\n".join(stages) + "\n")
    for words in (["init", "--no-scm", "-q"], ["config", "core.analytics", "false"],
                  ["config", "core.check_update", "false"], ["repro", "-q"]):
        subprocess.run([bin/"dvc", *words], cwd=folder, check=True, capture_output=True)
    return [str(bin/"dvc"), "repro"]


def with_snakemake(folder: Path, bin: Path) -> list[str]:
    "The same stages for Snakemake."
    (folder/"step.py").write_text(STEP)
    rules = ["rule all:\n    input: 'release.out'\n"]
    for name, needs in NEEDS.items():
        files = ", ".join(repr(f"{n}.out") for n in needs)
        rules.append(f"rule {name}:\n    input: 'step.py', {files}\n    output: '{name}.out'\n"
                     f"    shell: '{sys.executable} step.py {' '.join([name, *needs])}'\n")
    (folder/"Snakefile").write_text("\n".join(rules))
    command = [str(bin/"snakemake"), "--cores", "1"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return command


def measured(command: list[str], folder: Path) -> tuple[float, float]:
    "Wall clock and CPU seconds of one process and its children."
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["DVC_NO_ANALYTICS"] = "true"
    for name in [n for n in os.environ if n.startswith("FTNB_")]: del os.environ[name]
    bin = peers()
    with tempfile.TemporaryDirectory(prefix="ftnb-noop-") as home:
        report(compare(Path(home).resolve(), bin))


def compare(home: Path, bin: Path) -> dict[str, list[tuple[float, float]]]:
    "Wall clock and CPU seconds of every round, by command."
    places = {name: home/name for name in ("ftnb", "DVC", "Snakemake")}
    for place in places.values(): place.mkdir()
    commands = {"ftnb": ours(places["ftnb"]), "DVC": with_dvc(places["DVC"], bin),
                "Snakemake": with_snakemake(places["Snakemake"], bin),
                "python -c pass": [sys.executable, "-c", "pass"],
                "python -I -S -c pass": [sys.executable, "-I", "-S", "-c", "pass"]}
    logs = [places[n]/"ran.log" for n in ("DVC", "Snakemake")]
    def kept(): return {p: p.stat().st_mtime_ns for p in places["ftnb"].glob(".ftnb/**/*.json")}
    ours_before = kept()
    before = [log.read_text() for log in logs]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            times[name].append(measured(command, places.get(name, home)))
    assert [log.read_text() for log in logs] == before and all(len(b.split()) == 6 for b in before)
    assert kept() == ours_before, "ours was found out again: was this checkout edited meanwhile?"
    return times


def report(times: dict[str, list[tuple[float, float]]]) -> None:
    "The table; a ratio is to ours, in the same run."
    median = {n: [statistics.median(column) for column in zip(*t, strict=True)]
              for n, t in times.items()}
    print(f"six stages, nothing to do, whole process, {ROUNDS} rounds in turn, "
          f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'':22}{'wall, median':>14}{'wall, least':>13}{'CPU, median':>13}{'wall / ours':>13}")
    for name, (wall, cpu) in median.items():
        least = min(w for w, _ in times[name])
        print(f"{name:22}{wall:12.3f} s{least:11.3f} s{cpu:11.3f} s"
              f"{wall / median['ftnb'][0]:13.2f}")
    mine = median["ftnb"][0]
    third = 3 * mine <= min(median["DVC"][0], median["Snakemake"][0])
    print(f"at most 0.15 s: {'yes' if mine <= .15 else 'no'} · "
          f"at most a third of DVC's and of Snakemake's: {'yes' if third else 'no'}")


if __name__ == "__main__": main()
