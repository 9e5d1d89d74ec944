"""One study, three ways: `ftnb run`, papermill with -p, Run All in a real JupyterLab; one result.

The parameters are those of params/smoke.yaml. JupyterLab is driven by headless Chromium and takes
part in `make test-all`; so does running everything again, forced, on cold kernels.
"""
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

from ftnb.foundation.files import read_json
from ftnb.foundation.settings import Settings, settings
from ftnb.study.plan import ORDER, plain, read_study, read_yaml
from ftnb.study.runner import perform

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT/"params"/"smoke.yaml"
BIN = Path(sys.executable).parent


def facts(workbench: Path) -> dict:
    "What the stages found, as machines read it."
    return {stage: read_json(workbench/stage/"facts.json") for stage in ORDER}


def section(stage: str) -> dict:
    return plain(read_yaml(SMOKE)).get(stage) or {}


@contextmanager
def site_in(folder: Path) -> Iterator[Settings]:
    "Settings of this repository's that keep everything in a folder."
    names = {n: str(folder/n.lower()) for n in ("REPORTS", "DATA_CARDS", "STORE", "WORKBENCH")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items(): patch.setenv(f"FTNB_{name}", value)
        patch.setenv("FTNB_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        yield settings()


@pytest.fixture(scope="module")
def by_runner(tmp_path_factory):
    "The smoke study, run by the runner on a site of its own; its version and the site's folder."
    folder = tmp_path_factory.mktemp("runner")
    with site_in(folder) as site:
        first = perform(read_study(SMOKE, site=site), site=site)
        assert first.new and first.executed == ORDER
        again = perform(read_study(SMOKE, site=site), site=site)
        assert (again.version, again.new, again.executed) == (first.version, False, ())
    return first.version, folder


@pytest.mark.slow
def test_forced_and_on_cold_kernels_it_is_the_same_bytes(by_runner):
    first, folder = by_runner
    with site_in(folder) as site:
        cold = perform(read_study(SMOKE, site=site), force=True, site=site, cold=True)
    assert cold.executed == ORDER
    assert (cold.version, cold.new) == (first, False), cold.note


def test_a_report_says_nothing_of_the_machine(by_runner):
    for file in by_runner[0].folder.rglob("*"):
        if file.suffix not in (".html", ".json", ".md", ".ipynb", ".yaml"): continue
        text = file.read_text()
        for private in (str(ROOT), str(Path.home()) + "/", socket.gethostname()):
            assert len(private) < 4 or private not in text, f"{file.name} names {private}"


def test_papermill_gives_the_same_numbers(by_runner, tmp_path):
    environment = {**os.environ, "FTNB_WORKBENCH": str(tmp_path), "FTNB_TRACKING_URI": "",
                   "FTNB_DATA_CARDS": str(tmp_path/"cards")}
    for stage in ORDER:
        command: list[str | Path] = [
            BIN/"papermill", ROOT/"nbs"/"stages"/f"{stage}.ipynb", tmp_path/f"{stage}.ipynb"]
        for name, value in section(stage).items():
            if isinstance(value, list): command += ["-y", f"{name}: {value!r}"]
            else: command += ["-p", name, str(value)]
        done = subprocess.run(command, env=environment, cwd=tmp_path,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert facts(tmp_path) == read_json(by_runner[0].folder/"metrics.json")["stages"]


def test_quickstart_is_what_run_all_gives():
    "The notebooks' defaults are the quickstart's values, so Run All computes the quickstart."
    plan = read_study(ROOT/"params"/"quickstart.yaml")
    from ftnb.foundation.parameters import read_parameters
    for stage in plan.stages:
        schema = read_parameters(ROOT/"nbs"/"stages"/f"{stage}.ipynb")
        defaults = {n: p.default for n, p in schema.items()}
        assert plan.parameters[stage] == defaults, stage


@pytest.fixture
def jupyterlab(tmp_path):
    "A JupyterLab over copies of the stage notebooks whose defaults are the smoke study's."
    for stage in ORDER:
        nb = nbformat.read(ROOT/"nbs"/"stages"/f"{stage}.ipynb", as_version=4)
        cell = next(c for c in nb.cells if "parameters" in c.metadata.get("tags", []))
        cell.source += "".join(f"\n{n} = {v!r}" for n, v in section(stage).items())
        (tmp_path/"nbs").mkdir(exist_ok=True)
        nbformat.write(nb, tmp_path/"nbs"/f"{stage}.ipynb")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {**os.environ, "FTNB_WORKBENCH": str(tmp_path/"bench"), "FTNB_TRACKING_URI": "",
                   "FTNB_ROOT": str(ROOT), "FTNB_DATA_CARDS": str(tmp_path/"cards"),
                   "JUPYTER_CONFIG_DIR": str(tmp_path/"config")}
    command = [str(BIN/"jupyter"), "lab", "--no-browser", "--allow-root",
               f"--port={port}", "--ServerApp.port_retries=0",
               "--IdentityProvider.token=smoke", f"--ServerApp.root_dir={tmp_path/'nbs'}"]
    with open(tmp_path/"lab.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0: break
            time.sleep(.5)
        yield f"http://127.0.0.1:{port}", tmp_path
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs Chromium and ChromeDriver")
def test_run_all_in_jupyterlab_gives_the_same_numbers(by_runner, jupyterlab):
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait
    address, folder = jupyterlab
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000",
                 "--no-first-run", "--disable-background-networking", "--disable-component-update",
                 "--disable-sync"):
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    idle = ".jp-Notebook-ExecutionIndicator[data-status=idle]"
    run_all = "li[data-command='runmenu:run-all']"
    red = "[data-mime-type='application/vnd.jupyter.stderr'] .ansi-red-fg"

    def found(selector): return browser.find_elements(By.CSS_SELECTOR, selector)
    try:
        for stage in ORDER:
            browser.get(f"{address}/lab/tree/{stage}.ipynb?token=smoke&reset")
            wait = WebDriverWait(browser, 90)
            wait.until(lambda b: found(".jp-Notebook .jp-CodeCell"))
            wait.until(lambda b: found(idle))
            wait.until(lambda b: found("#jp-MainMenu li"))
            menu = [m for m in found("#jp-MainMenu li") if m.text.strip() == "Run"][0]
            menu.click()
            item = wait.until(lambda b: [i for i in found(run_all) if i.is_displayed()])[0]
            item.click()
            deadline = time.monotonic() + 300
            while not (folder/"bench"/stage/"front.json").exists():
                broken = found(red)
                assert not broken, broken[0].text
                assert time.monotonic() < deadline, f"{stage} didn't finish in JupyterLab"
                time.sleep(1)
            time.sleep(3)   # what follows the front-page block
            browser.save_screenshot(str(folder/f"{stage}.png"))
            browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    finally: browser.quit()
    assert facts(folder/"bench") == read_json(by_runner[0].folder/"metrics.json")["stages"]
