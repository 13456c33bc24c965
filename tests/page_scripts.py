"""The report's scripts by themselves, in Node, with a run whose numbers are known."""

import json
import shutil
import subprocess

import pytest
from tiny_models import ROOT

from search.report.page import SCRIPTS

PAGE = ROOT / "search" / "report" / "page"
BROWSER = """
const elements = {}, drawn = {}, asked = {hash: ""};
const element = (tag) => ({
  tag, style: {}, dataset: {}, children: [], value: "", textContent: "", hidden: false, checked: false,
  classList: {toggle() {}}, addEventListener() {}, on() {}, focus() {}, querySelectorAll() { return []; },
  append(...more) { this.children.push(...more); }, replaceChildren(...more) { this.children = more; },
  get rows() { return this.children; },
  get tHead() { return this.head ||= element("thead"); }, get tBodies() { return [this.body ||= element("tbody")]; },
});
globalThis.document = {
  getElementById: (id) => (elements[id] ||= element(id)), createElement: element, documentElement: element("html"),
  head: element("head"), querySelectorAll: () => [], addEventListener() {},
};
globalThis.matchMedia = () => ({addEventListener() {}});
globalThis.Plotly = {react: (at, traces, layout) => { drawn[at.tag] = {traces, layout}; }};
globalThis.getComputedStyle = () => ({getPropertyValue: () => "#000"});
globalThis.IntersectionObserver = class { observe() {} unobserve() {} };
let url = "";
globalThis.history = {replaceState: (data, title, to) => { url = to; }};
globalThis.location = asked;
globalThis.Option = class { constructor(text, value) { this.text = text; this.value = value; } };
globalThis.innerWidth = 1400;
"""
START = """
state.run = RUN;
state.rows = rowsOf(state.run);
for (const [id, value] of Object.entries(CONTROLS)) $(id)[typeof value === "boolean" ? "checked" : "value"] = value;
const cells = (id) => $(id).children.map((tr) => tr.children.map((td) => td.textContent));
"""
COLUMNS = [
    "layout", "method", "merge", "kv_ratio", "kv_bytes_per_token", "kv_heads", "error", "deploy", "nll", "on_front",
    "on_nll_front", "also_found_by", "weights_bytes", "agreement", "over",
]  # fmt: skip
ROWS = [  # 2 layers of 8 query heads over 4 KV heads of 16, a byte a number
    [0, "original", "mean", 1, 256, "4;4", 0, "stock", 2.0, 1, 1, "", 4_000_000, 1, 0],
    [1, "qcqa-ac", "mean", 0.75, 192, "4;2", 0.5, "ragged", 2.5, 0, 1, "ward;exact", 3_000_000, 0.9, 0.5],
    [2, "qcqa-ac", "mean", 0.5, 128, "2;2", 1.5, "stock", 2.75, 1, 0, "", 2_000_000, 0.7, 0.75],
    [2, "qcqa-ac", "spectral+refine", 0.5, 128, "2;2", 1.5, "stock", 2.25, 0, 1, "", 2_000_000, 0.8, 0.25],
    [3, "separate", "mean", 0.5, 128, "3/1;2", 1.0, "none", 2.1, 1, 0, "", 2_500_000, 0.95, 0.1],
    [4, "neighbour", "mean", 0.25, 64, "1;1", 9.0, "stock", 8.0, 0, 0, "", None, 0.1, 6.0],
    [5, "qcqa-ac", "mean", 0.25, 64, "1;1", 4.0, "stock", 3.5, 1, 1, "", None, 0.5, 1.5],
]
RUN = {
    "name": "", "model": "tiny", "run": "runs/it's", "errors": {}, "samples": [],
    "layers": 2, "queryHeads": 8, "kvHeads": 4, "headDim": 16, "bytes": 1,
    "usable": 0.9, "windows": [None, 8], "context": 64, "size": "kv_ratio",
    "original": "original", "baselines": ["neighbour"],
    "merge": "mean", "refining": ["--text", "a b.txt"], "first": 3, "engines": {"stock": ["transformers", "vLLM"]},
    "traded": "KV cache, of the original's", "unit": "layer", "names": [], "columns": COLUMNS, "rows": ROWS,
    "layouts": {"2": {"k": ["00112233", "00110011"], "v": None}, "3": {"k": ["00112222"] * 2, "v": ["00000011"] * 2}},
    "landscape": {
        "layer": [0, 0, 1, 1], "kv_heads": [1, 2, 1, 2], "error": [10.0, 1.0, 100.0, 0.5],
        "k_error": [1.0, 0.1, 99.0, None],
    },
    "progress": [
        {"method": ["a", "b", "a"], "scored": [1, 2, 3], "error": [4.0, 5.0, 1.0]},
        {"method": ["a", "a"], "scored": [1, 5], "error": [8.0, 4.0]},
    ],
    "refined": {
        "layout": [2, 2, 2, 1], "merge": ["spectral+refine", "spectral+refine", "mean+refine", "spectral+refine"],
        "layer": [0, 1, 0, 0], "before": [0.5, 0.6, 0.9, 7.0], "after": [0.1, 0.2, 0.8, 6.0],
    },
    "bounds": {"layout": [2, 2, 1], "layer": [0, 1, 0], "k": [0.5, 0.4, 9.0], "k_group": [0.25, 0.3, 9.0],
               "v": [0.75, 0.8, 9.0]},
    "bounded": {"K": {"k": "merged", "k_group": "any"}, "V": {"v": "merged"}},
    "positions": [[] for _ in ROWS],
    "similarity": [{kind: {when: [100 * base + i for i in range(16)] for base, when in enumerate(("before", "aligned"))}
                    for kind in "kv"}] * 2,
}  # fmt: skip


ONE_TEXT = {"text": "", "bands": ["0-256", "256-512"], "over": [0.5, -0.25], "error": [0.125, None]}


def run(script: str, more: dict | None = None, **controls):
    """What a script returns of the page's functions. more: other facts of the run; controls: what is typed."""
    node = shutil.which("node")
    if not node:
        pytest.skip("no Node here: apt-get install nodejs")
    sources = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    assert sources.rstrip().endswith("\nopen();")
    start = START.replace("RUN", json.dumps({**RUN, **(more or {})})).replace("CONTROLS", json.dumps(controls))
    body = f"{BROWSER}\n{sources.rstrip().removesuffix('open();')}\n{start}\n(async () => {{ {script} }})()"
    code = f"eval({json.dumps(body)}).then((found) => process.stdout.write(JSON.stringify(found)));"
    done = subprocess.run([node, "-"], input=code, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
