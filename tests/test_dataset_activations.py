"""`analyze_dataset` of activations in safetensors files: whose arguments they are, and what is wrong with them."""

import math

import pytest
import torch
from dataset_inputs import parts_of

import ess_kernels as ek
from ess_kernels.analysis.dataset.activations import constructors

parquet = pytest.importorskip("pyarrow.parquet")
safetensors = pytest.importorskip("safetensors.torch")

LENGTH = 10


def tensors(*names, seed=0, heads=2):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(2, LENGTH, heads, 3, generator=generator) for name in names}


def save(path, layers, **notes):
    """`layers` by name: the constructor, or None, and its tensors."""
    flat = {f"{layer}/{name}": x.clone() for layer, (_, given) in layers.items() for name, x in given.items()}
    kinds = {layer: kind for layer, (kind, _) in layers.items() if kind is not None}
    safetensors.save_file(flat, path, metadata={**kinds, **notes})
    return path


def rows_of(path, out, **options):
    found = ek.analyze_dataset(None, path, out, **{"atol": 0.1, **options})
    assert found.failed == {}
    return found, parquet.read_table(out).to_pylist()


def test_rows_have_the_numbers_of_the_operators(tmp_path):
    gla, linear = tensors("q", "k", "g"), tensors("q", "k", seed=1)
    gla["g"] = -gla["g"].abs()
    linear = {name: x.exp() for name, x in linear.items()}
    layers = {"model.layers.0": ("gla", gla), "a/b": ("linear_attention", linear)}
    path = save(tmp_path / "p.safetensors", layers, id="prompt 7", **{"a/b/normalize": "true"})
    found, rows = rows_of(path, tmp_path / "out")
    assert (found.prompts, found.problems) == (1, 0)
    assert [row["layer"] for row in rows] == ["a/b"] * 8 + ["model.layers.0"] * 8
    assert {(row["id"], row["route"], row["check"], row["dtype"]) for row in rows} == {
        ("prompt 7", "file", "not captured", "float32")
    }
    ops = {
        "a/b": ek.operators.linear_attention(**linear, normalize=True),
        "model.layers.0": ek.operators.gla(**gla),
    }
    for row in rows:
        op = ops[row["layer"]]
        ess = ek.entropy_ess(op) if row["metric"] == "entropy" else ek.tolerance_ess(op, atol=0.1).double()
        assert row["value"] == ess[row["row"], row["head"]].tolist()
        assert row["length"] == LENGTH and math.isnan(row["capture_error"])


def test_what_is_wrong_with_a_layer_is_in_its_row(tmp_path):
    q, k = tensors("q"), tensors("k", seed=1)
    bad = {"q": q["q"].index_fill(2, torch.tensor([1]), math.nan), **k}
    layers = {
        "another": ("linear_attention", {**q, **k, "w": q["q"]}),
        "few": ("gla", q),
        "fine": ("linear_attention", {**q, **k}),
        "json": ("linear_attention", {**q, **k}),
        "nan": ("linear_attention", bad),
        "shapes": ("linear_attention", {**q, "k": k["k"][:, 1:]}),
        "short": ("linear_attention", {"q": q["q"][:, :1], "k": k["k"][:, :1]}),
        "twice": ("linear_attention", {**q, **k}),
        "unknown": ("no_constructor", q),
        "unsaid": (None, q),
    }
    notes = {"json/normalize": "yes", "twice/q": "1", "nothing": "gla"}
    found, rows = rows_of(save(tmp_path / "p.safetensors", layers, **notes), tmp_path / "out", metrics=["tolerance"])
    assert (found.prompts, found.problems) == (1, 1)
    problems = {row["layer"]: row["problem"] for row in rows if row["head"] is None}
    assert problems.pop("few").startswith("TypeError: gla() missing 2 required positional arguments")
    assert problems.pop("nothing").startswith("TypeError: gla() missing 3 required")
    assert "k" in problems.pop("shapes")
    assert problems.pop("another").startswith("linear_attention takes no argument 'w'; it takes q, k, scale, ")
    assert problems == {
        "json": "expected JSON in the metadata's 'json/normalize', got 'yes'",
        "short": "expected at least 2 tokens and a head, got 1 and 4",
        "twice": "q is given twice: as a tensor, and in the metadata",
        "unknown": "expected a constructor of ess_kernels.operators, got 'no_constructor'",
        "unsaid": "the file's metadata do not say which constructor takes it: expected 'unsaid' there",
    }
    of_nan = {row["head"]: row for row in rows if row["layer"] == "nan"}
    assert of_nan[0]["problem"] is None and "not finite" in of_nan[1]["problem"]
    assert all(math.isnan(x) for x in of_nan[1]["value"]) and math.isnan(of_nan[1]["mean"])
    clean = ek.tolerance_ess(ek.operators.linear_attention(bad["q"][:, :, :1], k["k"][:, :, :1]), atol=0.1)
    assert of_nan[0]["value"] == clean[1, 0].double().tolist()  # the last row's sample is 1


def test_padding_has_no_positions(tmp_path):
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, :4] = 0
    layers = {"l": ("linear_attention", {**tensors("q", "k"), "attention_mask": mask})}
    _, rows = rows_of(save(tmp_path / "p.safetensors", layers), tmp_path / "out", metrics=["entropy"])
    assert [row["position"] for row in rows if row["head"] == 0] == [list(range(1, LENGTH)), list(range(5, LENGTH))]
    assert [len(row["value"]) for row in rows] == [len(row["cap"]) for row in rows] == [9, 9, 5, 5]


def test_layers_are_chosen_and_files_that_are_none_left_out(tmp_path):
    layers = {name: ("linear_attention", tensors("q", "k")) for name in ("a.0", "a.1", "b.0")}
    save(tmp_path / "p.safetensors", layers)
    (tmp_path / "q.safetensors").write_bytes(b"no safetensors")
    found = ek.analyze_dataset(None, tmp_path / "*.safetensors", tmp_path / "out", layers=["a.*"], atol=0.1)
    assert list(found.failed) == ["q.safetensors"] and "header" in found.failed["q.safetensors"]
    assert {row["layer"] for row in parquet.read_table(tmp_path / "out").to_pylist()} == {"a.0", "a.1"}
    assert sorted(parts_of(tmp_path / "out")) == ["part-00000.parquet"]
    with pytest.raises(ValueError, match="model: expected None"):
        ek.analyze_dataset(torch.nn.Linear(1, 1), tmp_path / "*.safetensors", tmp_path / "out")
    (tmp_path / "p.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="got both"):
        ek.analyze_dataset(None, tmp_path / "p.*", tmp_path / "out")


def test_which_constructors_files_may_name():
    names = constructors()
    assert {"gla", "attention", "ssd", "kda", "convolution", "dense", "recurrence"} <= names.keys()
    assert not {"as_operator", "sum_of", "tiles", "Operator", "StateSpace"} & names.keys()
