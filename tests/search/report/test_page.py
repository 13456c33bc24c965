"""The page, as a browser shows it."""

import base64
import gzip
import json
import re
import shutil
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
from hostile_names import HOSTILE, has_controls
from made_up_runs import made_up_run, scored

from fitness.similarity import Similarity
from grouper import LayerLayout
from search.methods.candidate import Candidate
from search.report import write_report
from search.report.bounds import BoundsRow
from search.report.facts import facts_of
from search.report.page import packed
from search.runs.samples import note_sample

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def page(measured_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(facts_of(measured_run), path)
    return path


@pytest.fixture(scope="module")
def browser():
    browsers = [b for b in map(shutil.which, BROWSERS) if b]
    driver = shutil.which("chromedriver")
    if not browsers or not driver:
        pytest.skip("no Chromium with its driver here: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browsers[0]
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1400,2400"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture
def opened(browser, page):
    browser.get(f"file://{page}")
    wait(lambda: browser.execute_script("return document.documentElement.dataset.ready") == "yes")
    return browser


def wait(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def text(browser, identity: str) -> str:
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", identity)


def typed(browser, identity: str, value: str) -> None:
    box = browser.find_element("id", identity)
    box.clear()
    box.send_keys(value)


def test_it_says_nothing_on_the_console_and_asks_nobody(opened):
    assert not opened.get_log("browser")
    sent = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    urls = {m["params"]["request"]["url"].split(":")[0] for m in sent if m["method"] == "Network.requestWillBeSent"}
    assert urls <= {"file", "data", "blob"}
    plots = "return [...document.querySelectorAll('.plot')].filter((p) => p.offsetParent)"
    drawn = f"{plots}.map((p) => Boolean(p.querySelector('.main-svg')))"
    wait(lambda: len(found := opened.execute_script(drawn)) >= 3 and all(found))


def test_hovering_shows_a_layout_and_a_click_selects_it(opened, measured_run):
    from selenium.webdriver import ActionChains

    before = re.search(r"\d+", text(opened, "title-of"))[0]
    points = opened.find_elements("css selector", "#front .scatterlayer .point")
    actions = ActionChains(opened)
    for point in points[1:]:
        actions.move_to_element(point).pause(0.2).perform()
        shown = opened.find_elements("css selector", "#front .hoverlayer .hovertext")
        if shown and f"layout {before}," not in shown[0].text:
            break
    assert shown, "nothing to hover over"
    number = re.search(r"layout (\d+)", shown[0].text)[1]
    actions.click().perform()
    wait(lambda: text(opened, "title-of") == f"Layout {number}")
    table = measured_run.front().table.set_index("layout")
    row = table.loc[[int(number)]].iloc[0]
    assert f"{row['kv_bytes_per_token']:,} bytes" in text(opened, "facts")
    selected = opened.find_element("css selector", "tr.selected td").text
    assert selected == number


def test_arrow_keys_go_along_the_front(opened):
    from selenium.webdriver.common.keys import Keys

    def size() -> float:
        return float(re.search(r"([\d.]+)%", text(opened, "facts"))[1])

    body, before = opened.find_element("tag name", "body"), size()
    body.send_keys(Keys.ARROW_LEFT)
    wait(lambda: size() < before)
    body.send_keys(Keys.ARROW_RIGHT)
    wait(lambda: size() >= before)


def test_of_what_should_rise_the_best_are_joined(opened, measured_run):
    """Agreement with the original: the line goes through the highest of each size."""
    opened.execute_script(
        "const m = document.getElementById('measure'); m.value = 'agreement';m.dispatchEvent(new Event('change'))"
    )
    lines = opened.execute_script(
        "return document.getElementById('front').data.filter((t) => t.mode === 'lines').map((t) => [t.x, t.y])"
    )
    table = measured_run.front().table.dropna(subset="agreement")
    best = table[table["method"] == "qcqa-ac"].groupby("kv_ratio")["agreement"].max()
    drawn = [dict(zip(x, y)) for x, y in lines]
    wanted = {float(f"{ratio:.5g}"): float(f"{value:.5g}") for ratio, value in best.items()}
    assert wanted in drawn


def test_the_table_filters_and_sorts(opened, measured_run):
    table = measured_run.front().table
    typed(opened, "filter", "qcqa-ac kv_ratio<0.5")
    found = (table["method"] == "qcqa-ac") | table["also_found_by"].str.contains("qcqa-ac")
    wanted = found & (table["kv_ratio"] < 0.5)
    wait(lambda: text(opened, "count") == f"{wanted.sum()} of {len(table)} rows")
    heads = opened.find_elements("css selector", "#table th button")
    next(h for h in heads if h.text.startswith("error")).click()
    cells = opened.execute_script(
        "const at = [...document.querySelectorAll('#table th')].findIndex((t) => t.textContent.startsWith('error'));"
        "return [...document.querySelectorAll('#table tbody tr')].map((tr) => Number(tr.cells[at].textContent))"
    )
    assert len(cells) == wanted.sum() and cells == sorted(cells)


def test_the_command_is_copied(opened):
    opened.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    opened.find_element("id", "copy").click()
    wait(lambda: text(opened, "copy") == "Copied")
    copied = opened.execute_async_script("navigator.clipboard.readText().then(arguments[0], arguments[0])")
    assert copied == text(opened, "command") and copied.startswith("grouper export ") and "--layout" in copied


def test_the_cache_is_bytes_times_tokens_times_sequences(opened, measured_run):
    typed(opened, "batch", "3")
    typed(opened, "context", "64")
    row = measured_run.front().table.iloc[0]
    wait(lambda: f"original{3 * 64 * row['kv_bytes_per_token'] / 2**10:.3g} KiB" in text(opened, "cache"))


def test_dark_and_light(opened):
    back = "return getComputedStyle(document.body).backgroundColor"
    before = opened.execute_script(back)
    opened.find_element("id", "theme").click()
    assert opened.execute_script(back) != before and not opened.get_log("browser")


def test_names_are_text_and_not_markup(measured_run, tmp_path, browser):
    facts = facts_of(measured_run, similar=False)
    front = type(facts.front)(facts.front.table.assign(merge="<img src=x onerror=alert(1)>"))
    write_report(replace(facts, front=front), tmp_path / "report.html")
    browser.get(f"file://{tmp_path / 'report.html'}")
    wait(lambda: browser.execute_script("return document.documentElement.dataset.ready") == "yes")
    assert not browser.execute_script("return document.querySelectorAll('img').length")


@pytest.mark.parametrize("name", HOSTILE)
def test_the_title_of_a_page_is_text(measured_run, monkeypatch, name, tmp_path):
    settings = replace(measured_run.settings, model=f"models/{name.replace('/', '-')}")
    monkeypatch.setattr(type(measured_run), "settings", settings)
    write_report(facts_of(measured_run, similar=False), tmp_path / "report.html")
    head = (tmp_path / "report.html").read_text()[:2000]
    title = re.search(r"<title>(.*?)</title>", head, re.DOTALL)[1]
    assert "<" not in title and title.endswith("fewer KV heads") and not has_controls(title)


def test_models_with_an_encoder_have_attentions_with_names(measured_run, tmp_path, browser):
    facts = replace(facts_of(measured_run), names=["encoder 0", "decoder 0", "decoder 0 to its source"])
    write_report(facts, tmp_path / "report.html")
    browser.get(f"file://{tmp_path / 'report.html'}")
    wait(lambda: browser.execute_script("return document.documentElement.dataset.ready") == "yes")
    assert text(browser, "about").startswith("3 attentions, ") and text(browser, "layer-number") == "decoder 0"
    headings = [heading.text for heading in browser.find_elements("tag name", "h2")]
    assert "What each attention costs" in headings
    titles = "return [...document.querySelectorAll('.xtitle, .ytitle')].map((t) => t.textContent)"
    wait(lambda: "attention" in browser.execute_script(titles))
    assert "layer" not in browser.execute_script(titles)
    assert not browser.get_log("browser")


def test_a_large_run_stays_below_five_megabytes(measured_run, tmp_path):
    """2,000 rows, as a 7B has; its 32 layers' groups by chance, which pack worst."""
    facts = facts_of(measured_run)
    table = pd.concat([facts.front.table] * (2000 // len(facts.front.table) + 1)).head(2000)
    table = table.assign(error=[i / 7 for i in range(2000)], kv_heads=";".join(["16"] * 32))
    write_report(replace(facts, front=type(facts.front)(table)), tmp_path / "report.html")
    import random

    chance = random.Random(0)
    groups = {i: ["".join(chr(48 + chance.randrange(32)) for _ in range(32)) for _ in range(32)] for i in range(2000)}
    assert (tmp_path / "report.html").stat().st_size + len(packed(json.dumps(groups))) < 5e6


def test_what_is_packed_is_whole():
    text = "Ä<script>" * 1000
    assert gzip.decompress(base64.b64decode(packed(text))).decode() == text and packed(text) == packed(text)


OUTSIDE = """
const at = (one) => one.getBoundingClientRect();
const said = (one) => `${one.tagName}#${one.id}.${one.className} ${one.textContent.slice(0, 20)}`;
const inside = '.plot, .scroll, option', all = [...document.querySelectorAll('header *, section *')];
const beyond = (one) => at(one).right > innerWidth + 0.5 || at(one).left < -0.5;
const cut = all.filter((one) => !one.closest(inside) && beyond(one)).map(said);
const hit = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
for (const plot of document.querySelectorAll('.plot')) {
  const texts = [...plot.querySelectorAll('text')].filter((one) => one.textContent && at(one).width);
  const outer = at(plot);
  texts.forEach((a, i) => {
    const box = at(a);
    if (box.right > outer.right + 1 || box.left < outer.left - 1 || box.bottom > outer.bottom + 1) cut.push(said(a));
    for (const b of texts.slice(0, i)) {
      if (hit(box, at(b))) cut.push(`${plot.id}: ${a.textContent} over ${b.textContent}`);
    }
  });
}
return [cut, document.documentElement.scrollWidth];
"""


@pytest.fixture(scope="module")
def deep_page(tmp_path_factory):
    """30 layers of 32 heads, measured by position, refined, with samples."""
    folder = tmp_path_factory.mktemp("deep")
    half, eighth = [i // 2 for i in range(32)], [i % 4 for i in range(32)]
    rows = scored(
        ("original", 0.0, range(32)), ("qcqa-ac", 12345678.9, half), ("ward", 45678912.3, eighth),
        ("neighbour", 87654321.0, eighth), layers=30, query_heads=32,
    )  # fmt: skip
    bands = {f"nll@{band}": [3.0, 3.01, 3.1, 3.4] for band in ("0-256", "256-512", "512-1024", "1024-2048")}
    sizes = [Candidate(LayerLayout.from_labels(half), 5e5, 1e5), Candidate(LayerLayout.from_labels(eighth), 4e6, 2e6)]
    measured = {"nll": [3.0, 3.0123, 3.1, 3.4], "nll_se": [0, 0.001, 0.01, 0.02], **bands}
    run = made_up_run(folder / "run", rows, found=30 * [{"qcqa-ac": sizes}], **measured)
    for layer in range(30):
        run.write_progress(layer, [("qcqa-ac", 100, 2.0), ("qcqa-ac", 2000, 1.0 + layer / 60)])
    for number in (0, 1, 2):
        note_sample(run.path, number, "mean", "Once upon a time", f" there were {number} heads")
        run.note_refined(number, "mean+refine", [(0.5, 0.25)] * 30)
    alike = [{kind: Similarity(torch.eye(32), torch.ones(32, 32)) for kind in "kv"}] * 30
    bounds = [BoundsRow(number, layer, 0.5, 0.3, 0.1, 0.4, 0.2) for number in (1, 2) for layer in range(30)]
    more = {"similarity": alike, "bounds": pd.DataFrame(map(vars, bounds)), "missing": None}
    write_report(replace(facts_of(run), **more), folder / "report.html")
    return folder / "report.html"


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("compared", [False, True], ids=["one layout", "two"])
def test_nothing_is_cut_and_nothing_overlaps(browser, deep_page, width, compared):
    size = {"width": width, "height": 12000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.get("about:blank")
        browser.get(f"file://{deep_page}#layout=1")
        wait(lambda: browser.execute_script("return document.documentElement.dataset.ready") == "yes")
        if compared:
            browser.find_element("id", "keep").click()
            browser.execute_script("select(state.rows[2])")
        drawn = "return [...document.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg'))"
        wait(lambda: browser.execute_script(drawn))
        assert browser.execute_script(OUTSIDE) == [[], width]
        hidden = "return [...document.querySelectorAll('section')].filter((s) => s.hidden).length"
        assert not browser.execute_script(hidden), "all of them have something to show"
        lines = browser.execute_script("return document.querySelectorAll('#heads .groups').length")
        assert lines == (60 if compared else 30)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
