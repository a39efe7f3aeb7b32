"""The embedded model, its weights and the report on them."""

import hashlib
import importlib.util
import json
import sysconfig
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from ess_kernels.demo.model import MIXERS, ByteLM, Config

pytest.importorskip("safetensors")

from ess_kernels.demo import Report, default_text, load_model, measure
from ess_kernels.demo.measure import MAX_BYTES, TOLERANCES

LIBRARY = Path(sysconfig.get_path("stdlib"))


def tokens(text: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()[None]


@pytest.fixture(scope="module")
def model() -> ByteLM:
    return load_model()[0]


@pytest.fixture(scope="module")
def report() -> Report:
    return measure(default_text()[600:700])


@pytest.fixture(scope="module")
def training():
    path = Path(__file__).parents[1] / "bench" / "train_demo.py"
    if not path.exists():
        pytest.skip("bench/ is not part of an installation")
    spec = importlib.util.spec_from_file_location("train_demo", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_package_holds_a_model_and_a_text_of_the_promised_sizes(model):
    assert len(resources.files("ess_kernels.demo").joinpath("weights.safetensors").read_bytes()) <= 1_000_000
    assert 1024 <= len(default_text()) <= MAX_BYTES
    default_text().decode("ascii")
    assert {block.mixer.title for block in model.blocks} == {kind.title for kind in MIXERS.values()}
    assert len(MIXERS) == 4 and model.config.heads >= 2 and model.config.state >= 16


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 100])
def test_the_operator_is_what_the_layer_mixes_with(model, index, length):
    x = torch.randn(2, length, model.config.width, generator=torch.Generator().manual_seed(length))
    mixer = model.blocks[index].mixer
    op = mixer.operator(x)
    T = op.dense()
    assert op.batch_shape == (2, model.config.heads)
    mixed = mixer.mix(x).double()
    assert (T @ mixer.values(x).double() - mixed).abs().max() <= 1e-5 * mixed.abs().max()
    assert (T - mixer.matrix(x)).abs().max() <= 1e-5 * T.abs().max()
    assert not mixer.matrix(x).triu(1).any()


def test_the_model_is_causal_and_its_layers_see_one_text_each(model):
    text = tokens(default_text()[:80])
    changed = text.clone()
    changed[:, 50:] = 0
    assert torch.allclose(model(text)[:, :50], model(changed)[:, :50], atol=1e-4)
    both = model(torch.cat([text, changed]))
    assert torch.allclose(both[:1], model(text), atol=1e-4)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    model = ByteLM(Config(width=32, heads=2, state=16, hidden=32))
    model.loss(torch.randint(256, (2, 40))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_recorded_figures_beat_the_order_2_model(model):
    about = load_model()[1]
    assert about["held_out_bits_per_byte"] < 0.85 * about["order2_bits_per_byte"]
    assert len(about["text_sha256"]) == 64 and about["seed"] == "0"
    # any Python's copy of a held-out file will do for a look at the order of magnitude
    text = (LIBRARY / "textwrap.py").read_bytes()[:2000]
    assert float(model.loss(tokens(text))) < about["order2_bits_per_byte"]


@pytest.mark.slow
def test_the_recorded_figures_are_reproduced(model, training):
    about = load_model()[1]
    held_out = training.read(about["held_out"])
    if hashlib.sha256(b"".join(held_out)).hexdigest() != about["held_out_sha256"]:
        pytest.skip("this Python's library is not the one that was held out")
    assert training.model_bits(model, held_out) == pytest.approx(about["held_out_bits_per_byte"], abs=2e-3)
    baseline = training.order_two_baseline(training.read(training.TRAINING_FILES), held_out)
    assert baseline == pytest.approx(about["order2_bits_per_byte"], abs=1e-3)


def test_the_order_2_model_is_a_distribution_and_learns(training):
    text = [b"abcabcabcabd" * 20]
    counts = [training.counted(text, order) for order in range(3)]
    every = [bytes([97, 98, last]) for last in range(256)]
    strength = (1.0, 2.0, 3.0)
    assert sum(2 ** -training.order_two_bits(counts, strength, [part]) for part in every) == pytest.approx(1)
    assert training.order_two_bits(counts, strength, text) < 1
    # by hand: after "ab" comes "c" 60 times in 80
    order0 = (60 + 1 / 256) / (240 + 1)
    order1 = (60 + 2 * order0) / (80 + 2)
    assert 2 ** -training.order_two_bits(counts, strength, [b"abc"]) == pytest.approx((60 + 3 * order1) / (80 + 3))


def test_training_depends_on_the_seed_alone_and_learns(training):
    def trained(seed):
        torch.manual_seed(seed)
        model = ByteLM(Config(width=32, heads=2, state=16, hidden=32))
        before = model.loss(tokens(text[:40])).item()
        training.train(model, text, ((40, 2, 32),), seed)
        assert model.loss(tokens(text[:40])).item() < before - 0.5
        return model

    text = b"the quick brown fox " * 50

    first, again, other = trained(1), trained(1), trained(2)
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_report_agrees_with_the_definition(report, model):
    text = tokens(report.text)
    with torch.no_grad():
        found = model.operators(text)
    for layer, (mixer, op) in zip(report.layers, found):
        assert layer.title == mixer.title
        T = op.dense()[0]
        for i in (1, 17, 50, 99):
            s = torch.linalg.svdvals(T[:, i:, :i])
            for counts, tolerance in zip(layer.tolerance_ess, TOLERANCES):
                assert counts[:, i - 1].tolist() == (s > tolerance).sum(-1).tolist()
            p = s / s.sum(-1, keepdim=True)
            assert torch.allclose(layer.entropy_ess[:, i - 1], torch.exp(-torch.special.xlogy(p, p).sum(-1)), rtol=1e-4)
        assert bool((layer.tolerance_ess <= layer.cap).all())
        assert layer.utilisation == pytest.approx(float((layer.entropy_ess / layer.cap).mean()))
        assert layer.state_size == (None if mixer.title == "softmax attention" else model.config.state)


@pytest.mark.parametrize("length", [0, 1, MAX_BYTES + 1])
def test_the_text_must_fit(length):
    with pytest.raises(ValueError, match=f"2 to {MAX_BYTES} bytes, got {length}"):
        measure(b"x" * length)


def check(value, schema, path="$"):
    """The part of JSON Schema that `schema.json` uses."""
    kinds = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)
    }  # fmt: skip
    if "const" in schema:
        assert value == schema["const"], path
    if "enum" in schema:
        assert value in schema["enum"], path
    if "type" in schema:
        allowed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(isinstance(value, kinds[kind]) for kind in allowed) and not isinstance(value, bool), path
    if "minimum" in schema:
        assert value >= schema["minimum"], path
    if isinstance(value, dict):
        assert not set(schema.get("required", [])) - set(value), path
        for name, item in value.items():
            extra = schema.get("additionalProperties", {})
            check(item, schema.get("properties", {}).get(name, extra), f"{path}.{name}")
    if isinstance(value, list):
        for number, item in enumerate(value):
            check(item, schema.get("items", {}), f"{path}[{number}]")


def test_the_json_report_follows_its_schema(report):
    schema = json.loads(resources.files("ess_kernels.demo").joinpath("schema.json").read_text())
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    check(written, schema)
    assert set(written) == set(schema["properties"])
    P = written["text"]["bytes"] - 1
    assert written["positions"] == list(range(1, P + 1))
    for layer in written["layers"]:
        assert set(layer) == set(schema["properties"]["layers"]["items"]["properties"])
        assert np.shape(layer["cap"]) == (P,)
        assert np.shape(layer["entropy_ess"]) == (layer["heads"], P)
        assert np.shape(layer["tolerance_ess"]) == (len(TOLERANCES), layer["heads"], P)
    for spoiled in ({**written, "layers": [{}]}, {**written, "device": "tpu"}, {"schema": written["schema"]}):
        with pytest.raises(AssertionError):
            check(spoiled, schema)


@pytest.mark.slow
def test_the_default_text_is_measured_in_time():
    assert measure(default_text()).seconds < 30


def test_the_report_is_an_analysis_as_well(report):
    analysis = report.analysis()
    assert list(analysis.layers) == [f"blocks.{number}.mixer" for number in range(4)]
    assert dict(ByteLM().named_modules()).keys() >= analysis.layers.keys()
    for layer, found in zip(report.layers, analysis.layers.values()):
        assert torch.equal(found.entropy[0], layer.entropy_ess) and torch.equal(found.cap[0], layer.cap)
        assert list(found.tolerance) == list(TOLERANCES)
        assert torch.equal(torch.stack(list(found.tolerance.values()))[:, 0], layer.tolerance_ess)
        assert found.unresolved == 0 and found.check == "not captured" and found.length == report.length
    assert "".join(analysis.tokens[0]).encode() == report.text


def test_analyze_sees_all_of_its_mixers(model, report):
    import ess_kernels as ek

    text = tokens(report.text)
    found, wanted = ek.analyze(model, text), report.analysis()
    assert found.skipped == {} and list(found.layers) == list(wanted.layers)
    for name, layer in found.layers.items():
        same = wanted.layers[name]
        assert (layer.mixer, layer.state_size, layer.route, layer.check) == (
            same.mixer,
            same.state_size,
            "module",
            "independent",
        )
        assert layer.capture_error < 1e-5
        assert torch.equal(layer.entropy, same.entropy)
        assert all(torch.equal(layer.tolerance[tau], same.tolerance[tau]) for tau in TOLERANCES)
    mask = torch.ones_like(text)
    mask[:, :3] = 0
    with pytest.raises(ValueError, match="takes no such input"):
        ek.analyze(model, text, mask)


def test_certificates_are_summed_up_by_head(model):
    import ess_kernels as ek

    layer = ek.analyze(model, tokens(default_text()[:40])).layers["blocks.3.mixer"]
    for tau, counts in layer.tolerance.items():
        assert layer.widths[tau].shape == layer.unresolved_positions[tau].shape == counts.shape[:2]
        assert (layer.widths[tau] >= 0).all() and not layer.unresolved_positions[tau].any()
