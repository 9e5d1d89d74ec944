"The site: every version and sweep on one page, whatever they are called and whatever is broken."
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from toy import toy_site

from ftnb.foundation.errors import BadInput
from ftnb.foundation.files import read_json, write_json, write_text
from ftnb.foundation.intervals import Interval
from ftnb.foundation.settings import Settings, settings
from ftnb.study.versions import open_version
from ftnb.versions.results import Outcome
from ftnb.versions.site import (
    Column,
    changes,
    chart,
    link,
    number_columns,
    read_entry,
    read_studies,
    site_page,
    write_site,
)
from ftnb.versions.sweep import Request, run_sweep

ROOT = Path(__file__).resolve().parent.parent


def fake_version(site: Settings, study: str, n: int, accuracy: float = .84, verdict: str = "ship",
                 question: str = "Does it help?", modules: str = "a", measure: str = "accuracy",
                 **train: Any) -> Path:
    "A version's folder as the runner leaves it, with numbers made up."
    folder = site.reports/study/str(n)
    found = Interval(accuracy, accuracy - .02, accuracy + .02).to_dict()
    criterion = {"criterion": f"{measure} lower >= 0.80", "measure": measure, "end": "lower",
                 "op": ">=", "number": .8, "outcome": "met", "reason": "", "evidence": found}
    decision = {"verdict": verdict, "sentence": f"{verdict.capitalize()}: because.",
                "criteria": [criterion]}
    made = {"stage": "train", "cells": ["c"], "modules": {"ftnb.train": modules}, "files": {},
            "packages": {"torch": "2"}, "python": "3.11.7", "parameters": train, "contents": {}}
    write_json(folder/"metrics.json", {"stages": {
        "evaluate": {"metrics": {"model": {"accuracy": found}}},
        "release": {"decision": decision}}})
    write_json(folder/"front.json", {"study": study, "question": question, "stages": []})
    write_json(folder/"parameters.json", {"all": {"train": {"epochs": 8, **train}}})
    write_text(folder/"cards"/"model_card.md", "# A model\n")
    write_text(folder/"index.html", f"<h1>{n}</h1>")
    write_json(folder/"version.json", {
        "schema": "ftnb/version/2", "study": study, "fingerprint": f"{n:064x}", "order": ["train"],
        "stages": {"train": {"key": "k", "made": made, "outputs": {}}}, "files": {}})
    return folder


@pytest.fixture
def site(tmp_path):
    return toy_site(tmp_path)


def built(site, **options) -> str:
    return write_site(None, site, lambda a, b: f"<h1>{a.name} {b.name}</h1>", lambda v: None,
                      **options).page.read_text()


def test_the_committed_versions_are_on_it():
    "Versions of the older schema, too."
    reports = settings().reports
    html = site_page(read_studies(settings()), reports/"nowhere")
    found = [p.parent for p in reports.glob("*/*/version.json")]
    for folder in found:
        name = f"{folder.parent.name}/{folder.name}/index.html"
        assert f'href="{name}"' in html and (reports/name).is_file()
    assert html.count("<tr data-version") >= len(found) and "can't be read" not in html


def test_every_link_leads_somewhere(site):
    for n in range(1, 4): fake_version(site, "toy", n)
    run_sweep(Request(str(site.root/"params"/"toy.yaml"), ("train.factor=1,2",)), site,
              run=lambda plan, site: Outcome("f", {}), say=lambda text: None)
    html = built(site)
    links = set(re.findall(r'href="([^"#]+)(?:#[^"]*)?"', html)) - {"data:,"}
    assert len(links) == 5       # three versions, a sweep, the comparison of the newest two
    assert all((site.reports/name).is_file() for name in links)
    ids = set(re.findall(r'\bid="([^"]+)"', html))
    assert {name for name in re.findall(r'href="#([^"]+)"', html)} <= ids


def test_the_same_reports_are_the_same_page(site):
    for n in (1, 2, 10): fake_version(site, "toy", n)
    first = built(site)
    assert built(site) == first
    rows = re.findall(r">(toy@\d+)</a></td>", first)
    assert rows == ["toy@10", "toy@2", "toy@1"]


class Tags(HTMLParser):
    "The elements of a page, as a browser reads them."
    def __init__(self):
        super().__init__()
        self.found: list = []

    def handle_starttag(self, tag, attrs): self.found.append((tag, attrs))


@pytest.mark.parametrize("study", ["a b", "<script>alert(1)<script>", 'x" onmouseover="alert(1)',
                                   "ärger", "100%", "a#b?c", "..x"])
def test_names_are_only_names(site, study):
    fake_version(site, study, 1, question="<img src=x onerror=alert(1)>",
                 verdict='<b onclick="x">ship</b>', note="</script><script>alert(1)</script>",
                 measure='"><svg onload=alert(1)>')
    html = built(site)
    tags = Tags()
    tags.feed(html)
    assert [t for t, _ in tags.found].count("script") == 1
    assert not {"img", "b"} & {t for t, _ in tags.found}
    assert not [a for _, given in tags.found for a, _ in given if a.startswith("on")]
    href = next(dict(given)["href"] for t, given in tags.found
                if t == "a" and dict(given)["href"].endswith("/1/index.html"))
    assert (site.reports/unquote(href)).is_file()


def test_links_are_quoted():
    assert link("a b", "1") == "a%20b/1" and link("javascript:x", "1") == "javascript%3Ax/1"


@pytest.mark.parametrize("damage", ["missing", "torn", "other", "list"])
def test_a_damaged_version_is_named(site, damage):
    fake_version(site, "toy", 1)
    folder = fake_version(site, "toy", 2)
    if damage == "missing": (folder/"metrics.json").unlink()
    if damage == "torn": (folder/"metrics.json").write_text('{"stages": {')
    if damage == "other": (folder/"metrics.json").write_text('{}')
    if damage == "list": (folder/"parameters.json").write_text('[1]')
    html = built(site)
    assert "can't be read" in html and "toy@1" in html and "toy@2" in html
    assert str(site.root) not in html


def test_no_reports_at_all(tmp_path):
    html = write_site(None, Settings(tmp_path)).page.read_text()
    assert "There are no reports yet" in html and "0 studies" in html


def test_what_changed_is_said(site):
    given: list[dict[str, Any]] = [{"epochs": 8}, {"epochs": 4, "new": 1},
                                   {"epochs": 4, "modules": "b"}]
    a, b, c = (read_entry(open_version(fake_version(site, "toy", n, **more)))
               for n, more in enumerate(given, 1))
    assert changes(a, b) == ["train.epochs 8 → 4"] and changes(b, c) == ["code"]
    values: list[dict[str, Any]] = [{f"p{i}": n for i in range(9)} for n in (4, 5)]
    d, e = (read_entry(open_version(fake_version(site, "toy", n, **more)))
            for n, more in enumerate(values, 4))
    assert len(changes(d, e)) == 5 and "5 more parameters" in changes(d, e)[-1]


def test_numbers_follow_the_newest_decision(site):
    entries = [read_entry(open_version(fake_version(site, "toy", n, .7 + n / 100)))
               for n in range(1, 6)]
    assert number_columns(entries) == [Column("accuracy", ">=", .8)]
    svg = chart(number_columns(entries)[0], entries)
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', svg)]
    assert heights == sorted(heights, reverse=True) and svg.count("<title>") == 5


def test_without_a_decision_accuracy_is_followed(site):
    folder = fake_version(site, "toy", 1)
    stages = read_json(folder/"metrics.json")["stages"]
    write_json(folder/"metrics.json", {"stages": {"evaluate": stages["evaluate"]}})
    entries = [read_entry(open_version(folder))]
    assert number_columns(entries) == [Column("accuracy")] and "0.840" in built(site)


def test_comparisons_are_made_once(site):
    made = []
    def compare(a, b):
        made.append((a.number, b.number))
        return "<h1>compared</h1>"
    for n in range(1, 5): fake_version(site, "toy", n, .8 + n / 1000)
    write_site(None, site, compare, lambda v: None)
    write_site(None, site, compare, lambda v: None)
    assert made == [(3, 4)]
    write_site(None, site, compare, lambda v: None, compare_all=True)
    assert sorted(made) == [(1, 2), (2, 3), (3, 4)]
    page = (site.reports/"index.html").read_text()
    assert page.count(">comparison</a>") == 3


def test_versions_that_cannot_be_compared_get_no_link(site):
    def compare(a, b): raise BadInput("no rows in common")
    for n in (1, 2): fake_version(site, "toy", n)
    write_site(None, site, compare, lambda v: None)
    html = (site.reports/"index.html").read_text()
    assert ">comparison</a>" not in html and "not compared: no rows in common" in html


def test_what_draws_and_compares_may_fail(site):
    def compare(a, b): raise KeyError("rows")
    def draw(version): raise KeyError("stages")
    for n in (1, 2): fake_version(site, "toy", n)
    page = write_site(None, site, compare, draw).page.read_text()
    assert "toy@2" in page and "not compared" in page and "was made from" not in page


def test_a_folder_of_its_own_holds_what_it_links_to(site, tmp_path):
    for n in (1, 2): fake_version(site, "toy", n)
    out = tmp_path/"public site"
    for _ in range(2): write_site(out, site, lambda a, b: "<h1>compared</h1>", lambda v: None)
    assert (out/"toy"/"2"/"index.html").read_text() == "<h1>2</h1>"
    (out/"toy"/"2"/"index.html").write_text("torn")
    write_site(out, site, lambda a, b: "", lambda v: None)
    assert (out/"toy"/"2"/"index.html").read_text() == "<h1>2</h1>"
    links = set(re.findall(r'href="([^"#]+)(?:#[^"]*)?"', (out/"index.html").read_text()))
    assert all((out/name).is_file() for name in links - {"data:,"})
    assert not list(out.rglob("*.part"))


def test_somebody_elses_page_stays(site, tmp_path):
    write_text(tmp_path/"www"/"index.html", "<h1>Mine</h1>")
    with pytest.raises(BadInput, match="didn't write"): write_site(tmp_path/"www", site)


def test_fifty_versions_and_two_hundred_members_in_ten_seconds(site):
    rng = np.random.default_rng(0)
    for n in range(1, 51):
        verdict = "ship" if n % 3 else "don't ship"
        fake_version(site, "toy", n, .8 + rng.normal(0, .02), verdict, epochs=n)
    found = {"estimate": .8, "low": .7, "high": .9, "level": .95}
    study = str(site.root/"params"/"toy.yaml")
    run_sweep(Request(study, ("train.factor=1..20", "train.steps=1..10")), site,
              run=lambda plan, site: Outcome("f", {"evaluate": {"mean": found}}),
              say=lambda text: None)
    began = time.process_time()
    html = built(site)
    assert time.process_time() - began < 10
    assert html.count("<tr data-version") == 51 and len(html) < 1_000_000


@pytest.fixture(scope="module")
def browser():
    if not shutil.which("chromedriver"): pytest.skip("needs Chromium and ChromeDriver")
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                 "--disable-background-networking", "--window-size=1200,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options)
    yield driver
    driver.quit()


@pytest.mark.slow
def test_in_a_browser(site, browser):
    "The search works, nothing is blocked, a phone needs no scrolling aside, contrast is AA."
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    for n in range(1, 30): fake_version(site, "toy", n, epochs=n)
    fake_version(site, "other", 1, verdict="don't ship", question="Is it worth its price?")
    built(site)
    browser.get(f"file://{site.reports/'index.html'}")
    seen = lambda: [r.text for r in browser.find_elements(By.CSS_SELECTOR, "tr[data-version]")
                    if r.is_displayed()]
    assert len(seen()) == 30
    browser.find_element(By.TAG_NAME, "body").send_keys("/")
    box = browser.switch_to.active_element
    assert box.get_attribute("id") == "find"
    box.send_keys("epochs=7")
    assert len(seen()) == 1 and browser.find_element(By.ID, "found").text == "1 found"
    box.send_keys(Keys.ESCAPE)
    box.send_keys("worth price")
    assert len(seen()) == 1 and not browser.find_element(By.ID, "study-toy").is_displayed()
    box.send_keys(Keys.ESCAPE)
    assert len(seen()) == 30
    refused = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert not refused, refused
    for theme in ("light", "dark"):
        browser.execute_script(f"document.getElementById('theme-{theme}').checked = true")
        assert not browser.execute_script(CONTRAST), theme
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True})
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390


CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgb = c => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1);
                   return [...canvas.getImageData(0, 0, 1, 1).data]; };
const light = c => { const [r, g, b] = c.map(x => { x /= 255;
  return x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4; });
  return .2126*r + .7152*g + .0722*b; };
const behind = e => { for (; e; e = e.parentElement) {
  const c = rgb(getComputedStyle(e).backgroundColor);
  if (c[3] > 250) return c; } return [255, 255, 255]; };
const bad = [];
for (const e of document.querySelectorAll('main *')) {
  const text = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!text || !e.checkVisibility() || e.closest('svg')) continue;
  const a = light(rgb(getComputedStyle(e).color)), b = light(behind(e));
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < 4.5) bad.push([e.tagName, e.className, ratio]);
}
return bad.length ? JSON.stringify(bad.slice(0, 5)) : '';
"""
