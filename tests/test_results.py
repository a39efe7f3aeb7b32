"""Results of an analysis: rows, aggregates, the summary, and files that load back whole."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from importlib import resources

import pytest
import torch

import ess_kernels as ek
from ess_kernels._whole_files import write_whole
from ess_kernels.analysis.measure import measure
from ess_kernels.analysis.plain import to_plain
from ess_kernels.analysis.result import Analysis
from ess_kernels.testing.analyses import an_analysis, an_operator

SIZES = {"layers": 2, "batch": 2, "heads": 2, "length": 20}


@pytest.fixture(scope="module")
def analysis():
    return an_analysis(**SIZES, padding=5)


def change(analysis, **fields):
    """The analysis with other fields in its first layer."""
    name, layer = next(iter(analysis.layers.items()))
    layers = {**analysis.layers, name: dataclasses.replace(layer, **fields)}
    return dataclasses.replace(analysis, layers=layers)


def with_bad_data(analysis):
    """Head 1 of sample 0 of the first layer holds NaN and -1, as the metrics mark bad data."""
    layer = next(iter(analysis.layers.values()))
    entropy = layer.entropy.clone()
    entropy[0, 1] = math.nan
    tolerance = {atol: counts.clone() for atol, counts in layer.tolerance.items()}
    for counts in tolerance.values():
        counts[0, 1] = -1
    return change(analysis, entropy=entropy, tolerance=tolerance, capture_error=math.nan)


def test_one_row_a_layer_metric_tolerance_sample_and_head(analysis):
    rows = analysis.records()
    assert len(rows) == 2 * (1 + 3) * 2 * 2
    keys = [tuple(row[name] for name in ("layer", "metric", "atol", "sample", "head")) for row in rows]
    assert len(set(keys)) == len(rows)
    assert {row["atol"] for row in rows if row["metric"] == "entropy"} == {None}
    assert {row["positions"] for row in rows if row["sample"] == 0} == {19}
    assert {row["positions"] for row in rows if row["sample"] == 1} == {14}  # 5 of padding, and where the text starts
    layer = analysis.layers["model.layers.0.mixer"]
    row = next(row for row in rows if row["atol"] == 1e-3 and row["sample"] == 1 and row["head"] == 1)
    counts = layer.tolerance[1e-3][1, 1][layer.valid[1]].double()
    cap = layer.cap[1][layer.valid[1]]
    assert row["layer"] == layer.name and row["model"] == "MadeUpForCausalLM" and row["state_size"] == 8
    assert row["mean"] == pytest.approx(float(counts.mean())) and row["total"] == float(counts.sum())
    assert row["max"] == float(counts.max()) and row["cap"] == pytest.approx(float(cap.double().mean()))
    assert row["utilisation"] == pytest.approx(float((counts / cap).mean()))
    assert row["utilisation_tss"] == pytest.approx(float(counts.mean()) / 8)
    assert {row["utilisation_tss"] for row in rows if row["mixer"] == "attention"} == {None}


def test_shares_are_those_of_aggregate():
    generator = torch.Generator().manual_seed(1)
    gated = an_operator("gated_linear_attention", 1, 2, 60, None, generator)
    wide = an_operator("attention", 1, 2, 60, None, generator)
    for op in (gated, wide):
        counts, entropy = ek.tolerance_ess(op, atol=1.0), ek.entropy_ess(op)
        layer = next(iter(an_analysis(layers=1).layers.values()))
        cap = ek.aggregate.cap(op).expand(1, -1)
        layer = dataclasses.replace(
            layer,
            state_size=op.state_size,
            positions=torch.arange(1, 60),
            cap=cap,
            valid=torch.ones_like(cap, dtype=torch.bool),
            entropy=entropy,
            tolerance={1.0: counts},
        )
        analysis = dataclasses.replace(an_analysis(layers=1), layers={layer.name: layer})
        rows = {(row["metric"], row["head"]): row for row in analysis.records()}
        for head in range(2):
            assert rows["tolerance", head]["saturated"] == ek.aggregate.saturated(counts, op)[0, head]
            collapsed = ek.aggregate.collapsed(counts, op)[0, head]
            assert rows["tolerance", head]["collapsed"] == pytest.approx(float(collapsed), nan_ok=True)
            assert rows["entropy", head]["saturated"] == ek.aggregate.saturated(entropy, op)[0, head]
            assert rows["entropy", head]["collapsed"] is None
        assert analysis.average_ess() == pytest.approx(float(ek.aggregate.average_ess(entropy)))
        assert analysis.total_ess("tolerance", 1.0) == pytest.approx(float(ek.aggregate.total_ess(counts)))
        found = analysis.utilisation("tolerance")[layer.name]
        torch.testing.assert_close(found, ek.aggregate.utilisation(counts, op, against="cap"))
        tss = analysis.utilisation(against="tss")
        if op.state_size is None:
            assert tss == {}
        else:
            torch.testing.assert_close(tss[layer.name], ek.aggregate.utilisation(entropy, op))


def test_aggregates_of_padded_batches_leave_padding_out(analysis):
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[-1, :5] = False
    ops = [an_operator(mixer, 2, 2, 20, mask, generator) for mixer in ("gated_linear_attention", "attention")]
    entropies = [ek.entropy_ess(op) for op in ops]
    assert analysis.average_ess() == pytest.approx(float(ek.aggregate.average_ess(entropies, op=ops[0])))
    assert analysis.total_ess() == pytest.approx(float(ek.aggregate.total_ess(entropies, op=ops[0])))
    assert analysis.utilisation()["model.layers.1.mixer"].isnan().sum() == 2 * 5


def test_wrong_metrics_are_refused(analysis):
    with pytest.raises(ValueError, match="metric: expected 'entropy' or 'tolerance', got 'rank'"):
        analysis.average_ess("rank")
    with pytest.raises(
        ValueError, match=r"atol: expected one of \[0.1, 0.001, 1e-05\] in model.layers.0.mixer, got None"
    ):
        analysis.total_ess("tolerance")
    with pytest.raises(ValueError, match="atol: expected None beside metric='entropy'"):
        analysis.average_ess("entropy", 1e-3)
    with pytest.raises(ValueError, match="was not measured"):
        change(analysis, entropy=None).average_ess()
    with pytest.raises(ValueError, match="against: expected 'cap' or 'tss', got 'l'"):
        analysis.utilisation(against="l")
    with pytest.raises(ValueError, match="layers: expected at least one"):
        dataclasses.replace(analysis, layers={}).average_ess()


def test_bad_data_stays_in_its_head(analysis):
    bad = with_bad_data(analysis)
    for row in bad.records():
        hit = row["layer"] == "model.layers.0.mixer" and row["sample"] == 0 and row["head"] == 1
        for name in ("mean", "max", "total", "utilisation", "saturated"):
            assert math.isnan(row[name]) == hit, (name, row)
    assert math.isnan(bad.average_ess()) and math.isnan(bad.total_ess("tolerance", 0.1))
    assert "bad data" in bad.summary()


def test_one_row_a_position(analysis):
    rows = analysis.records(per_position=True)
    assert len(rows) == 2 * 4 * 2 * 2 * 19
    layer = analysis.layers["model.layers.1.mixer"]
    for row in rows[:: len(rows) // 50]:
        layer = analysis.layers[row["layer"]]
        ess = layer.entropy if row["metric"] == "entropy" else layer.tolerance[row["atol"]]
        place = row["position"] - 1
        assert row["value"] == float(ess[row["sample"], row["head"], place])
        assert row["cap"] == int(layer.cap[row["sample"], place]) and row["valid"] == bool(
            layer.valid[row["sample"], place]
        )


def test_data_frames_hold_the_same_rows(analysis):
    pandas = pytest.importorskip("pandas")
    for per_position in (False, True):
        frame, rows = analysis.to_pandas(per_position=per_position), analysis.records(per_position=per_position)
        assert list(frame.columns) == list(rows[0])
        for found, row in zip(frame.to_dict("records"), rows):
            for name, value in row.items():
                missing = value is None or value != value  # None, or NaN where no cap is large enough
                assert pandas.isna(found[name]) if missing else found[name] == value, (name, row)


def test_without_pandas_the_command_that_installs_it_is_named(analysis, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        analysis.to_pandas()


def test_summary_has_a_line_a_layer_then_what_was_skipped_and_the_notes(analysis):
    text = change(analysis, unresolved=0.25).summary()
    lines = text.splitlines()
    assert lines[0].startswith("MadeUpForCausalLM: 2 mixers, 1 skipped, 2 x 20 tokens")
    assert lines[2].split()[:4] == ["name", "mixer", "heads", "TSS"]
    first, second = lines[4], lines[5]
    assert first.split()[:4] == ["model.layers.0.mixer", "gated_linear_attention", "2", "8"]
    assert second.split()[:4] == ["model.layers.1.mixer", "attention", "2", "i"]
    layer = analysis.layers["model.layers.0.mixer"]
    mean = float(layer.entropy.transpose(0, 1)[:, layer.valid].mean())
    assert first.split()[4] == f"{mean:.2f}"
    assert "unresolved 25 %" in first and "attribution only" in second and "saturated 100 %" in second
    assert "  model.encoder: cross-attention" in text and "  dropout was switched off" in text
    assert text.index("Skipped:") < text.index("Notes:")
    assert repr(analysis) == str(analysis) == f"<Analysis of {lines[0]}>"


def test_summary_of_what_was_not_measured(analysis):
    empty = dataclasses.replace(analysis, layers={}, notes=())
    assert empty.summary().splitlines()[0].startswith("MadeUpForCausalLM: 0 mixers, 1 skipped")
    lines = change(analysis, entropy=None).summary().splitlines()
    assert " - " in lines[4]
    assert empty.records() == []


def test_names_of_modules_cannot_write_on_the_terminal(analysis):
    evil = dataclasses.replace(change(analysis, name="a\x1b[2Jb\nc"), skipped={"x\x1b]0;y\x07": "<b>"})
    text = evil.summary()
    assert "\x1b" not in text and "\x07" not in text and r"a\x1b[2Jb\nc" in text
    assert "<b>" not in evil._repr_html_() and "&lt;b&gt;" in evil._repr_html_()


def same(a, b):
    """Whether two analyses hold equal values, NaN equal to NaN."""
    for field in dataclasses.fields(a):
        if field.name != "layers":
            assert getattr(a, field.name) == getattr(b, field.name), field.name
    assert list(a.layers) == list(b.layers)
    for one, other in zip(a.layers.values(), b.layers.values()):
        for field in dataclasses.fields(one):
            x, y = getattr(one, field.name), getattr(other, field.name)
            if field.name in ("tolerance", "widths", "unresolved_positions"):
                assert list(x) == list(y)
                for atol in x:
                    torch.testing.assert_close(x[atol], y[atol], rtol=0, atol=0, equal_nan=True)
            elif isinstance(x, torch.Tensor):
                torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
            else:
                assert x == y or (x != x and y != y), field.name


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_files_load_back_whole(analysis, suffix, tmp_path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    some = {"entropy": None, "positions": torch.tensor([7, 3, 3]), "state_size": None}
    layer = next(iter(analysis.layers.values()))
    for name in ("cap", "valid"):
        some[name] = getattr(layer, name)[:, [6, 2, 2]]
    some["tolerance"] = {1e-3: layer.tolerance[1e-3][..., [6, 2, 2]]}
    none = {"positions": torch.zeros(0, dtype=torch.int64), "entropy": layer.entropy[..., :0], "tolerance": {}}
    none |= {"cap": layer.cap[:, :0], "valid": layer.valid[:, :0]}
    cases = [analysis, with_bad_data(analysis), change(analysis, **some), change(analysis, **none)]
    cases.append(dataclasses.replace(analysis, layers={}, tokens=None, notes=()))
    for number, case in enumerate(cases):
        path = tmp_path / f"{number}{suffix}"
        case.save(path)
        same(case, Analysis.load(str(path)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number}{suffix}" for number in range(len(cases))]


def test_json_follows_its_schema(analysis):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(resources.files("ess_kernels.analysis").joinpath("schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    plain = json.loads(json.dumps(to_plain(with_bad_data(analysis)), allow_nan=False))
    validator.validate(plain)
    # nothing is written that the schema does not describe, and everything that it describes is written
    assert set(plain) == set(schema["properties"])
    assert set(plain["layers"][0]) == set(schema["properties"]["layers"]["items"]["properties"])
    plain["layers"][0]["cap"][0][0] = -1
    assert not validator.is_valid(plain)


def test_json_says_what_was_measured_and_how(analysis, tmp_path):
    with_bad_data(analysis).save(tmp_path / "a.json")
    plain = json.loads((tmp_path / "a.json").read_text())
    layer = plain["layers"][0]
    assert plain["schema"] == "ess-kernels/analysis/1" and plain["versions"]["torch"] == torch.__version__
    assert plain["tolerances"] == [1e-1, 1e-3, 1e-5] and layer["positions"] == list(range(1, 20))
    assert layer["capture_error"] is None and layer["entropy"][0][1] == [None] * 19 and layer["dtype"] == "float32"
    assert layer["tolerance"][1]["counts"][0][1] == [-1] * 19 and layer["route"] == "global"


def test_parquet_is_one_table_for_other_programs(analysis, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    analysis.save(tmp_path / "a.parquet")
    table = parquet.read_table(tmp_path / "a.parquet")
    rows = analysis.records(per_position=True)
    assert table.column_names == list(rows[0])
    assert table.to_pylist() == rows


def test_files_of_others_are_refused(analysis, tmp_path):
    for suffix in (".txt", "", ".html"):
        with pytest.raises(ValueError, match=rf"path: expected a file that ends in .json, .parquet, got '{suffix}'"):
            Analysis.load(tmp_path / f"a{suffix}")
    with pytest.raises(ValueError, match=r"ends in .json, .parquet, .html, got '.csv'"):
        analysis.save(tmp_path / "a.csv")
    analysis.save(tmp_path / "a.json")
    whole = json.loads((tmp_path / "a.json").read_text())
    broken = [
        "no json",
        "[]",
        json.dumps({**whole, "schema": "ess-kernels/demo/1"}),
        json.dumps({**whole, "layers": [{**whole["layers"][0], "cap": [[1]]}]}),
        json.dumps({**whole, "layers": [{**whole["layers"][0], "entropy": [[["x"]]]}]}),
        json.dumps({**whole, "layers": 3}),
        json.dumps({name: value for name, value in whole.items() if name != "skipped"}),
        "[" * 100_000,
    ]
    for number, text in enumerate(broken):
        path = tmp_path / f"broken{number}.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=path.name):
            Analysis.load(path)
    with pytest.raises(FileNotFoundError):
        Analysis.load(tmp_path / "none.json")


def test_parquet_files_of_others_are_refused(analysis, tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 this is none")
    with pytest.raises(ValueError, match=r"a\.parquet: expected a \.parquet file of Analysis\.save"):
        Analysis.load(path)
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), path)
    with pytest.raises(ValueError, match=r"a\.parquet: expected a \.parquet file of Analysis\.save"):
        Analysis.load(path)
    analysis.save(path)
    table = pyarrow.parquet.read_table(path)
    for other in (table.sort_by([("value", "descending")]), table.slice(1), table.slice(0, table.num_rows - 1)):
        pyarrow.parquet.write_table(other, path)
        with pytest.raises(ValueError, match=r"a\.parquet: "):
            Analysis.load(path)


def test_an_existing_file_is_replaced_only_by_a_whole_one(analysis, tmp_path):
    path, link = tmp_path / "a.json", tmp_path / "link.json"
    path.write_text("before")
    path.chmod(0o640)
    link.symlink_to(path)
    unwritable = dataclasses.replace(analysis, notes=(object(),))  # what JSON cannot hold
    with pytest.raises(TypeError):
        unwritable.save(path)
    assert path.read_text() == "before"

    def interrupted(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, interrupted)
    assert path.read_text() == "before" and sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "link.json"]
    analysis.save(link)
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o640
    same(analysis, Analysis.load(path))
    with pytest.raises(FileNotFoundError):
        analysis.save(tmp_path / "no folder" / "a.json")


def test_what_is_no_regular_file_is_not_replaced(analysis, tmp_path):
    pipe = tmp_path / "a.json"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, lambda path: path.write_text("through"))
        assert os.read(reader, 100) == b"through" and not pipe.is_file()
    finally:
        os.close(reader)


def test_results_import_no_optional_package():
    code = (
        "import sys, ess_kernels.analysis.result; "
        "print([name for name in ('pandas', 'pyarrow', 'matplotlib', 'torchmetrics', 'lightning', 'transformers') "
        "if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_operators_of_any_batch_shape_are_measured_as_rows_and_heads():
    T = torch.randn(3, 2, 4, 9, 9, dtype=torch.float64).tril()
    found = measure(T, atol=(1e-3,), positions=[2, 5, 2])
    assert found.entropy.shape == found.tolerance[1e-3].shape == (6, 4, 3) and found.cap.shape == (6, 3)
    torch.testing.assert_close(found.entropy, ek.entropy_ess(T, positions=[2, 5, 2]).reshape(6, 4, 3))
    assert found.cap[5].tolist() == [2, 4, 2] and bool(found.valid.all()) and found.unresolved == 0
    one = measure(T[0, 0, 0], metrics=("entropy",))
    assert one.entropy.shape == (1, 1, 8) and one.tolerance == {} and list(one.backends) == ["entropy_ess"]
    for metrics in ((), "entropy", ("entropy", "rank")):
        with pytest.raises(ValueError, match="metrics: expected some of"):
            measure(T, metrics=metrics)


def test_a_picture_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"matplotlib draws pictures and is not installed: pip install"):
        an_analysis(layers=1).plot("heatmap")
