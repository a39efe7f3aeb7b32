"""The HTML report: what it holds, what it escapes, and that a browser shows it."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from browser import needs_browser, outcome

from ess_kernels.analysis.html import report_html, write_report
from ess_kernels.analysis.html.payload import payload_of, rounded
from ess_kernels.cli import main
from ess_kernels.testing.analyses import an_analysis

LENGTH = 24
HOSTILE = [
    "<script>window.owned = true</script>",
    "</script><script>window.owned = true</script>",
    '"><img src=x onerror="window.owned = true">',
    "'><svg onload='window.owned = true'>",
    "<!--<script>",
    "{{script}} ${window.owned = true} \u2028\u2029 </title><b>",
]


@pytest.fixture(scope="module")
def analysis():
    return an_analysis(layers=3, batch=2, heads=2, length=LENGTH, padding=6)


def hostile(analysis):
    """The analysis with text that would run, if it could, wherever a report shows text."""
    everything = " ".join(HOSTILE)
    layers = {}
    for number, layer in enumerate(analysis.layers.values()):
        name = f"layers.{number}.{HOSTILE[number]}"
        layers[name] = dataclasses.replace(
            layer, name=name, mixer=HOSTILE[3 + number], route=everything, check=everything, dtype=everything
        )
    return dataclasses.replace(
        analysis,
        layers=layers,
        skipped={everything: everything},
        model=everything,
        tokens=[[HOSTILE[token % len(HOSTILE)] for token in range(LENGTH)] for _ in range(2)],
        notes=(everything,),
        versions={everything: everything},
    )


def without_policy(page):
    """The page without its Content-Security-Policy, so that escaping alone protects it."""
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


class Elements(HTMLParser):
    """The tags of a page with their attributes, and the text between them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_the_tables_say_what_was_measured(analysis):
    page = report_html(analysis, delimiter="w9")
    text = " ".join(Elements(page).text)
    for wanted in (
        "Effective state-size of MadeUpForCausalLM",
        "H_i = T[i:, :i]",
        "1e-1, 1e-3, 1e-5",
        f"torch {torch.__version__}",
        "3 measured, 1 skipped",
        "model.encoder",
        "cross-attention: its keys have another length",
        "dropout was switched off",
        "attribution only",
        "3e-07",
        "'w9'",
    ):
        assert wanted in text, wanted
    layer = analysis.layers["model.layers.0.mixer"]
    valid = layer.valid[:, None].expand(layer.entropy.shape)
    share = (layer.entropy / layer.cap[:, None])[valid].mean()
    assert f"{layer.entropy[valid].mean():.4g} ({100 * share:.0f} %)" in text


def test_the_data_are_the_numbers_measured(analysis):
    data = data_of(report_html(analysis, delimiter="w9"))
    assert data["metrics"] == ["entropy-ESS", "tolerance-ESS, 1e-1", "tolerance-ESS, 1e-3", "tolerance-ESS, 1e-5"]
    assert data["marks"] == [[10], [10]] and data["tokens"] == analysis.tokens
    for found, layer in zip(data["layers"], analysis.layers.values()):
        assert data["positions"][found["positions"]] == layer.positions.tolist()
        assert [data["caps"][number] for number in found["caps"]] == layer.cap.tolist()
        for values, measured in zip(found["values"], [layer.entropy, *layer.tolerance.values()]):
            expected = np.where(layer.valid[:, None], measured.double(), np.nan)
            np.testing.assert_allclose(np.array(values["heads"], float), expected, rtol=5e-4)
            np.testing.assert_allclose(np.array(values["mean"], float), expected.mean(1), rtol=5e-4)
            np.testing.assert_allclose(np.array(values["low"], float), expected.min(1), rtol=5e-4)
            np.testing.assert_allclose(np.array(values["high"], float), expected.max(1), rtol=5e-4)


def test_bad_data_are_gaps_and_are_flagged(analysis):
    layer = analysis.layers["model.layers.0.mixer"]
    entropy = layer.entropy.clone()
    entropy[0, 0] = torch.nan
    bad = dataclasses.replace(layer, entropy=entropy, tolerance={0.1: torch.full_like(layer.tolerance[0.1], -1)})
    page = report_html(dataclasses.replace(analysis, layers={**analysis.layers, layer.name: bad}))
    values = data_of(page)["layers"][0]["values"]
    assert set(values[0]["heads"][0][0]) == {None} and None not in values[0]["mean"][0]
    assert set(values[1]["mean"][0]) == {None}
    assert "<td>bad data</td>" in page


def test_numbers_have_four_digits():
    assert [rounded(x) for x in (3.14159, 12345.6, 7.0, 0.000123456, np.nan, np.inf)] == [
        3.142,
        12350,
        7,
        0.0001235,
        None,
        None,
    ]


def test_large_results_are_thinned_and_the_report_says_so():
    large = an_analysis(layers=2, batch=3, heads=4, length=301)
    whole = payload_of(large)
    assert not whole.thinned and "heads" in whole.data["layers"][0]["values"][0]
    few = payload_of(large, most_numbers=25_000)  # 2 layers, 4 metrics, 3 rows, 300 positions; 3 numbers or 7
    assert few.thinned == ["Heads are reduced to their mean, smallest and largest value."]
    assert "heads" not in few.data["layers"][0]["values"][0] and len(few.data["positions"][0]) == 300
    fewer = payload_of(large, most_numbers=8_000)
    assert fewer.thinned[1:] == ["Of the positions, one in 3 is shown."]
    assert fewer.data["positions"] == [list(range(1, 301, 3))]
    least = payload_of(large, most_numbers=2_000)
    assert least.thinned[1:] == [
        "Of the positions, one in 4 is shown.",
        "Of the 3 rows of the batch, the first 1 are shown.",
    ]
    assert least.data["samples"] == 1 and len(least.data["tokens"]) == 1
    assert "<li>Of the positions, one in 4 is shown.</li>" in report_html(large, most_numbers=2_000)


def test_an_analysis_without_layers_has_a_report(analysis):
    page = report_html(dataclasses.replace(analysis, layers={}, tokens=None))
    assert "0 measured, 1 skipped" in page and data_of(page)["layers"] == []


def test_nothing_is_loaded_from_anywhere(analysis, tmp_path):
    write_report(analysis, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"\w+://[^\s\"'<]*", page)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    for tag, attributes in Elements(page).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "a")
        assert not {"src", "href", "style"} & set(attributes) and not any(name.startswith("on") for name in attributes)
    assert "url(" not in page and "@import" not in page


def test_the_policy_allows_the_page_s_own_script_and_style_alone(analysis):
    page = report_html(analysis)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
    for element in ("style", "script"):
        text = re.search(f"<{element}>(.*?)</{element}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy


def test_text_is_escaped(analysis):
    calm, wild = report_html(analysis, delimiter="w9"), report_html(hostile(analysis), delimiter=HOSTILE[0])

    def tags(page):
        return [(tag, sorted(attributes)) for tag, attributes in Elements(page).tags]

    extra = tags(wild)
    for tag in tags(calm):
        extra.remove(tag)
    assert extra == []  # no element and no attribute more
    data = data_of(wild)
    assert data["tokens"][0][: len(HOSTILE)] == [text if len(text) <= 60 else text[:59] + "…" for text in HOSTILE]
    block = re.search(r'id="data">(.*?)</script>', wild, re.DOTALL)[1]
    assert not set("<>&\u2028\u2029") & set(block)


@needs_browser
@pytest.mark.parametrize("policy", ["with its policy", "without"])
def test_a_browser_runs_nothing_that_is_shown(analysis, tmp_path, policy):
    page = report_html(hostile(analysis), delimiter=HOSTILE[0])
    script = """
    document.querySelectorAll("button[data-layer]").forEach((button) => button.click());
    const map = document.getElementById("map");
    for (let n = 0; n < 20; n++) {
      map.dispatchEvent(new KeyboardEvent("keydown", { key: n % 5 ? "ArrowRight" : "ArrowDown" }));
    }
    setTimeout(() => report({
      owned: "owned" in window,
      images: document.images.length,
      readout: document.getElementById("readout").textContent,
      title: document.title,
      curve: document.getElementById("curve-title").textContent,
    }), 500);
    """
    found = outcome(page if policy == "with its policy" else without_policy(page), script, tmp_path)
    assert not found["owned"] and found["images"] == 0
    assert HOSTILE[0] in found["readout"] or "onerror" in found["readout"] or "svg" in found["readout"]
    assert "<script>window.owned = true</script>" in found["title"]
    assert HOSTILE[2] in found["curve"]


# dispatches pointer events at the middle of a cell of the map; `cell(row, column)` of `rows` by `columns`
POINTER = """
const at = (id) => document.getElementById(id);
const gap = () => at("map").querySelector(".gap").getBoundingClientRect();
const send = (kind, row, column, rows, columns) => at("map").dispatchEvent(new PointerEvent(kind, {
  bubbles: true,
  clientX: gap().left + gap().width * (column + 0.5) / columns,
  clientY: gap().top + gap().height * (row + 0.5) / rows,
}));
const choose = (id, value) => { at(id).value = value; at(id).dispatchEvent(new Event("change")); };
const tick = (id) => at(id).click();
const readout = () => at("readout").textContent;
const colours = () => [...at("map").querySelectorAll("path[fill]")].map((path) => path.getAttribute("fill")).join();
const points = () => at("curve").querySelector("path.wanted").getAttribute("d").match(/[ML]/g).length;
"""


@needs_browser
def test_pointing_shows_the_numbers_of_a_cell(analysis, tmp_path):
    script = """
    const found = {};
    send("pointermove", 1, 11, 3, 23);
    found.cell = readout();
    found.explorer = at("explorer").hidden;
    choose("sample", "1");
    send("pointermove", 0, 2, 3, 23);
    found.padding = readout();
    at("map").dispatchEvent(new KeyboardEvent("keydown", { key: "End" }));
    found.end = readout();
    at("map").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
    found.below = readout();
    report(found);
    """
    found = outcome(report_html(analysis), POINTER + script, tmp_path)
    layer = analysis.layers["model.layers.1.mixer"]
    heads = layer.entropy[0, :, 11]
    assert found["explorer"] is False
    assert 'model.layers.1.mixer (attention), position 12: after " w11", before " w12"' in found["cell"]
    assert "cap 12 " in found["cell"]
    assert f"entropy-ESS: {heads.mean():.4g} (heads {heads.min():.4g} to {heads.max():.4g}" in found["cell"]
    assert f"tolerance-ESS, 1e-3: {layer.tolerance[1e-3][0, :, 11].double().mean():.4g} " in found["cell"]
    assert "position 3" in found["padding"] and "padding, or the start of a sequence" in found["padding"]
    assert "model.layers.0.mixer" in found["end"] and "position 23" in found["end"] and "cap 1 " in found["end"]
    assert "model.layers.1.mixer" in found["below"] and "position 23" in found["below"]


@needs_browser
def test_choosing_redraws(analysis, tmp_path):
    script = """
    const found = { first: at("curve-title").textContent, colours: colours(), points: points() };
    found.legend = at("legend").textContent;
    send("click", 1, 5, 3, 23);
    found.clicked = at("curve-title").textContent;
    found.layer = at("layer").value;
    document.querySelectorAll("button[data-layer]")[2].click();
    found.button = at("curve-title").textContent;
    choose("metric", "2");
    found.metric = colours();
    found.scale = at("scale").textContent;
    tick("share");
    found.share = at("scale").textContent;
    found.edges = at("map").querySelectorAll(".edge").length;
    tick("heads");
    found.heads = at("curve").querySelectorAll(".one-head").length;
    choose("sample", "1");
    found.shorter = points();
    found.caps = at("curve").querySelectorAll(".cap").length;
    found.marks = at("curve").querySelectorAll(".mark").length;
    report(found);
    """
    found = outcome(report_html(analysis, delimiter="w9"), POINTER + script, tmp_path)
    assert found["first"] == "model.layers.0.mixer: gated_linear_attention, a state of 8"
    assert "cap min(8, i, L-i)" in found["legend"] and "delimiter has been read" in found["legend"]
    assert found["clicked"] == "model.layers.1.mixer: attention, the state grows with i" and found["layer"] == "1"
    assert found["button"].startswith("model.layers.2.mixer")
    assert found["metric"] != found["colours"]
    assert "tolerance-ESS, 1e-3, mean over heads" in found["scale"]
    assert found["share"].startswith("01tolerance-ESS, 1e-3, share of cap")
    assert found["edges"] == 1  # the delimiter's mark; the cap's are gone
    assert found["heads"] == 2
    assert (found["points"], found["shorter"]) == (23, 17)  # six tokens of padding
    assert found["caps"] == 1 and found["marks"] == 1


@needs_browser
def test_the_page_may_not_connect(analysis, tmp_path):
    script = """
    const refused = [];
    document.addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
    fetch("data:text/plain,x").catch(() => {});
    new Image().src = "data:image/gif;base64,R0lGODlhAQABAAAAACw=";
    const inline = document.createElement("script");
    inline.textContent = "window.owned = true";
    document.body.appendChild(inline);
    setTimeout(() => report({ refused, owned: "owned" in window }), 500);
    """
    found = outcome(report_html(analysis), script, tmp_path)
    assert {"connect-src", "img-src", "script-src-elem"} <= set(found["refused"]) and not found["owned"]


def test_the_demo_writes_its_report(tmp_path, capsys):
    path = tmp_path / "demo.html"
    text = "A demo. It has 33 bytes of text."
    assert main(["demo", "--text", text, "--no-plot", "--html", str(path)]) == 0
    assert f"report: {path}" in capsys.readouterr().out
    page = path.read_text(encoding="utf-8")
    data = data_of(page)
    assert [layer["mixer"] for layer in data["layers"]] == ["mamba2", "gla", "linear_attention", "attention"]
    assert "".join(data["tokens"][0]) == text
    assert "not captured" in page and "bits per byte" in page
    assert main(["demo", "--text", text, "--no-plot", "--html", str(path), "--json", str(path)]) == 2
    assert "than that of --json" in capsys.readouterr().err
