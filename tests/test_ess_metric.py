"""ESSMetric: what torchmetrics adds up equals what the results say, in one process and joined over two."""

import json
import math
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch

import ess_kernels as ek
from ess_kernels import analysis
from ess_kernels.testing.analyses import an_analysis, an_operator

torchmetrics = pytest.importorskip("torchmetrics")

NAMES = ("layer 0", "layer 1")


def operators(seed, length=16, mask=None):
    generator = torch.Generator().manual_seed(seed)
    return [an_operator(mixer, 2, 2, length, mask, generator) for mixer in ("linear_attention", "attention")]


def values(metric):
    return {name: float(value) for name, value in metric.compute().items()}


def test_mean_spread_and_maximum_over_all_batches():
    metric = analysis.ESSMetric(NAMES, atol=(1.0, 1e-3))
    batches = [operators(0, 16), operators(1, 21)]
    for ops in batches:
        metric.update(ops)
    found = values(metric)
    assert len(found) == 2 * (3 * 3 + 1)
    for row, name in enumerate(NAMES):
        entropy = torch.cat([ek.entropy_ess(ops[row]).flatten() for ops in batches])
        counts = torch.cat([ek.tolerance_ess(ops[row], atol=1.0).flatten() for ops in batches]).double()
        for column, ess in (("entropy", entropy), ("tolerance_1e+00", counts)):
            assert found[f"{name}/{column}_mean"] == pytest.approx(float(ess.mean()), rel=1e-12)
            assert found[f"{name}/{column}_std"] == pytest.approx(float(ess.std(unbiased=False)), rel=1e-9)
            assert found[f"{name}/{column}_max"] == float(ess.max())
        assert found[f"{name}/unresolved"] == 0
    metric.reset()
    assert int(metric.count.sum()) == 0 and float(metric.total.sum()) == 0


def test_states_keep_their_size():
    metric = analysis.ESSMetric(NAMES)
    sizes = []
    for seed in range(3):
        metric.update(operators(seed, 10 + seed))
        sizes.append({name: getattr(metric, name).shape for name in metric.metric_state})
    assert sizes[0] == sizes[1] == sizes[2] and all(isinstance(getattr(metric, n), torch.Tensor) for n in sizes[0])


def test_padding_is_left_out():
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[1, :6] = False
    metric = analysis.ESSMetric(NAMES, metrics=("entropy",))
    ops = operators(0, 16, mask)
    metric.update(ops)
    for name, op in zip(NAMES, ops):
        expected = ek.aggregate.average_ess(ek.entropy_ess(op), op=op)
        assert values(metric)[f"{name}/entropy_mean"] == pytest.approx(float(expected))
    assert metric.count.tolist() == [2 * (15 + 9)] * 2


def test_what_was_measured_already_is_not_measured_again():
    found = an_analysis(layers=3)
    metric = analysis.ESSMetric(tuple(found.layers))
    metric.update(found.layers)
    for name in found.layers:
        values_of = values(metric)
        entropy = found.layers[name].entropy
        assert values_of[f"{name}/entropy_mean"] == pytest.approx(float(entropy.mean()))
    assert sum(values(metric)[f"{name}/tolerance_1e-03_mean"] for name in found.layers) / 3 == pytest.approx(
        found.average_ess("tolerance", 1e-3)
    )
    with pytest.raises(ValueError, match=r"ops: expected \['tolerance_2e-03'\] of 'model.layers.0.mixer'"):
        analysis.ESSMetric(tuple(found.layers), atol=(2e-3,)).update(found.layers)


def test_names_and_operators_have_to_fit():
    metric = analysis.ESSMetric(NAMES, metrics=("entropy",))
    with pytest.raises(ValueError, match="ops: expected 2 operators, one a name, got 1"):
        metric.update(operators(0)[0])
    with pytest.raises(ValueError, match=r"ops: expected names among .* got \['layer 7'\]"):
        metric.update({"layer 7": operators(0)[0]})
    assert metric.count.tolist() == [0, 0]
    metric.update({"layer 1": operators(0)[1]})
    found = values(metric)
    assert math.isnan(found["layer 0/entropy_mean"]) and math.isnan(found["layer 0/entropy_max"])
    assert found["layer 1/entropy_mean"] > 1
    for names in ((), ("a", "a"), "ab"):
        with pytest.raises(ValueError, match="names: expected a sequence of different names"):
            analysis.ESSMetric(names)
    with pytest.raises(ValueError, match="metrics: expected some of"):
        analysis.ESSMetric(metrics=("rank",))
    with pytest.raises(ValueError, match="atol: expected at least one tolerance"):
        analysis.ESSMetric(atol=())


def test_one_operator_needs_no_name():
    metric = analysis.ESSMetric(positions=[3, 5], atol=(0.0025,))
    op = operators(0)[0]
    metric(op)  # torchmetrics' forward: update, and the value of this batch
    assert values(metric)["ess/tolerance_0.0025_mean"] == float(
        ek.tolerance_ess(op, atol=0.0025, positions=[3, 5]).double().mean()
    )


def test_before_the_first_update_there_is_a_warning_and_no_number():
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        found = values(analysis.ESSMetric())
    assert all(math.isnan(value) for value in found.values())


def test_bad_data_gives_no_plausible_number():
    q = torch.randn(1, 8, 2, 4, dtype=torch.float64)
    q[0, 2, 1] = math.nan
    metric = analysis.ESSMetric(NAMES, atol=(1e-3,))
    good, bad = (
        ek.operators.linear_attention(torch.ones_like(q), torch.ones_like(q)),
        ek.operators.linear_attention(q, q),
    )
    metric.update([good, bad])
    metric.update([good, good])
    found = values(metric)
    for column in ("entropy", "tolerance_1e-03"):
        for kind in ("mean", "std", "max"):
            assert math.isnan(found[f"layer 1/{column}_{kind}"]) and not math.isnan(found[f"layer 0/{column}_{kind}"])


def test_in_a_collection_pickled_and_copied():
    ops = operators(3)
    metric = analysis.ESSMetric(NAMES)
    metric.update(ops)
    again = pickle.loads(pickle.dumps(metric))
    assert values(again) == values(metric)
    again.update(ops)
    assert again.count.tolist() == [2 * count for count in metric.count.tolist()]
    collection = torchmetrics.MetricCollection(
        {"all": analysis.ESSMetric(NAMES), "entropy": analysis.ESSMetric(NAMES, metrics=("entropy",))}, prefix="val_"
    )
    for seed in range(2):
        collection.update(operators(seed))
    found = collection.compute()
    alone = analysis.ESSMetric(NAMES)
    for seed in range(2):
        alone.update(operators(seed))
    assert len(found) == 2 * (3 * 4 + 1) + 2 * 3
    for name, value in values(alone).items():
        assert any(key.endswith(name) and float(found[key]) == value for key in found), (name, list(found))


def test_without_torchmetrics_the_command_that_installs_it_is_named():
    code = (
        "import sys; sys.modules['torchmetrics'] = None\n"
        "import ess_kernels.analysis\n"
        "try: ess_kernels.analysis.ESSMetric\n"
        "except ImportError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "ess_kernels.analysis.ESSMetric: torchmetrics is not installed: pip install torchmetrics"
    with pytest.raises(AttributeError, match="no attribute 'ESSMeter'"):
        analysis.ESSMeter  # noqa: B018


PROCESS = textwrap.dedent("""
    import json, sys
    import torch, torch.distributed as dist
    from ess_kernels import analysis
    from ess_kernels.testing.analyses import an_operator

    rank, file = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    metric = analysis.ESSMetric(("layer 0", "layer 1"))
    for seed in range(rank, 5, 2):  # three batches here, two there
        generator = torch.Generator().manual_seed(seed)
        ops = [an_operator(mixer, 2, 2, 12 + seed, None, generator) for mixer in ("linear_attention", "attention")]
        metric.update(ops)
    print(json.dumps({name: float(value) for name, value in metric.compute().items()}))
    dist.destroy_process_group()
""")


@pytest.mark.slow
def test_two_processes_agree_with_one_on_the_joined_data(tmp_path):
    command = [sys.executable, "-c", PROCESS]
    running = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    alone = analysis.ESSMetric(NAMES)
    for seed in range(5):
        alone.update(operators(seed, 12 + seed))
    for output in outputs:
        assert json.loads(output.splitlines()[-1]) == pytest.approx(values(alone), rel=1e-12)
