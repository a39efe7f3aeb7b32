"""mamba_ssm's own modules: their fused passes are switched off while capture watches, and their scans are seen.

The package compiles CUDA code when it is installed. Its Python files alone, with its reference functions in place of
its kernels, run on a CPU: slow tests install them from the package index, without what they depend on.
"""

import os
import subprocess
import sys
import types

import pytest
import torch
from torch import nn

from ess_kernels.analysis.analyze import analyze
from ess_kernels.capture import capturing, verify

VERSION = "2.3.2.post1"


class Layer(nn.Module):
    """With the attributes of mamba_ssm's layers."""

    def __init__(self):
        super().__init__()
        self.use_fast_path = True
        self.use_mem_eff_path = False

    def forward(self, hidden):
        return self.use_fast_path, self.use_mem_eff_path


class Failing(Layer):
    def forward(self, hidden):
        raise ArithmeticError


def test_switches_are_off_while_capture_watches():
    model = nn.Sequential(Layer())
    assert model(0) == (True, False)
    with capturing(model, lambda call: None):
        assert model(0) == (False, False)
    assert model(0) == (True, False)


def test_switches_are_on_again_after_an_exception():
    model = nn.Sequential(Failing())
    with pytest.raises(ArithmeticError), capturing(model, lambda call: None):
        model(0)
    assert model[0].use_fast_path is True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the package is, without its compiled part."""
    folder = tmp_path_factory.mktemp("mamba_ssm")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", folder]
    # without these two it compiles, or looks for a compiled file that fits to the CUDA of torch
    environment = os.environ | {"MAMBA_SKIP_CUDA_BUILD": "TRUE", "MAMBA_FORCE_BUILD": "TRUE"}
    done = subprocess.run(
        [*command, f"mamba_ssm=={VERSION}"], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode:
        pytest.skip(f"mamba_ssm could not be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.fixture
def mamba_ssm(folder, monkeypatch):
    pytest.importorskip("einops")
    pytest.importorskip("transformers")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", types.ModuleType("selective_scan_cuda"))
    try:
        import mamba_ssm
        from mamba_ssm.modules import mamba2, mamba_simple
        from mamba_ssm.ops import selective_scan_interface as interface
        from mamba_ssm.ops.triton import ssd_combined
    except ImportError as error:
        pytest.skip(f"mamba_ssm cannot be imported: {error}")
    for namespace in (interface, mamba_simple):
        monkeypatch.setattr(namespace, "causal_conv1d_fn", causal_convolution)
        monkeypatch.setattr(namespace, "selective_scan_fn", interface.selective_scan_ref)
        monkeypatch.setattr(namespace, "mamba_inner_fn", interface.mamba_inner_ref)

    def scan(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, seq_idx=None, cu_seqlens=None, dt_softplus=False,
             return_final_states=False, return_varlen_states=False):  # fmt: skip
        assert seq_idx is None and cu_seqlens is None
        return ssd_combined.ssd_chunk_scan_combined_ref(x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus)

    def fused(*args, seq_idx=None, **kwargs):
        return ssd_combined.mamba_split_conv1d_scan_ref(*args, **kwargs)

    monkeypatch.setattr(ssd_combined, "causal_conv1d_fn", causal_convolution)
    monkeypatch.setattr(mamba2, "causal_conv1d_fn", None)
    monkeypatch.setattr(mamba2, "mamba_chunk_scan_combined", scan)
    monkeypatch.setattr(mamba2, "mamba_split_conv1d_scan_combined", fused)
    yield mamba_ssm
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("mamba_ssm", "selective_scan_cuda"):
            del sys.modules[name]


def causal_convolution(x, weight, bias=None, activation=None, **_):
    """What the package causal_conv1d has a kernel for."""
    padded = nn.functional.pad(x, (weight.shape[1] - 1, 0))
    y = nn.functional.conv1d(padded, weight[:, None], bias, groups=len(weight))
    return nn.functional.silu(y) if activation in ("silu", "swish") else y


def seen(module, hidden):
    calls = []
    with torch.no_grad(), capturing(module, calls.append, shape=hidden.shape[:2]) as capture:
        output = module(hidden)
    assert not capture.refused, capture.refused
    (call,) = calls
    with torch.no_grad():
        return call, verify(call), output


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_mamba(mamba_ssm, training):
    torch.manual_seed(0)
    module = mamba_ssm.Mamba(16, d_state=4, layer_idx=0).train(training)
    hidden = torch.randn(2, 24, 16)
    with torch.no_grad():
        fused = module(hidden)
    call, found, output = seen(module, hidden)
    assert (call.mixer, found.route) == ("mamba", "global") and found.capture_error < 1e-6
    assert found.operator.batch_shape == (2, 32) and found.operator.state_size == 4
    torch.testing.assert_close(output, fused, rtol=1e-5, atol=1e-6)
    assert module.use_fast_path is True


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"D_has_hdim": True}, {"d_ssm": 16}, {"ngroups": 2}], ids=str)
def test_mamba2(mamba_ssm, options):
    torch.manual_seed(0)
    # its norm is a kernel
    module = mamba_ssm.Mamba2(16, d_state=4, headdim=8, chunk_size=8, rmsnorm=False, **options).eval()
    hidden = torch.randn(2, 24, 16)
    call, found, output = seen(module, hidden)
    assert (call.mixer, found.route) == ("mamba2", "global") and found.capture_error < 1e-6
    assert found.operator.batch_shape == (2, 2 if "d_ssm" in options else 4) and found.operator.state_size == 4
    assert module.use_mem_eff_path is True
    if "d_ssm" not in options:  # the fused reference does not know it
        torch.testing.assert_close(output, module(hidden), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["Mamba1", "Mamba2"])
def test_a_whole_model_is_analyzed(mamba_ssm, layer):
    from mamba_ssm.models.config_mamba import MambaConfig

    torch.manual_seed(0)
    options = {"d_state": 4} | ({"headdim": 8, "chunk_size": 8, "rmsnorm": False} if layer == "Mamba2" else {})
    plain = {"rms_norm": False, "fused_add_norm": False, "residual_in_fp32": False}
    config = MambaConfig(d_model=16, n_layer=2, vocab_size=50, ssm_cfg={"layer": layer, **options}, **plain)
    model = mamba_ssm.MambaLMHeadModel(config).eval()
    result = analyze(model, torch.randint(50, (2, 16)))
    assert list(result.layers) == ["backbone.layers.0.mixer", "backbone.layers.1.mixer"]
    assert all(each.capture_error < 1e-6 and each.route == "global" for each in result.layers.values())
    assert not [reason for reason in result.skipped.values() if "short convolution" not in reason]
