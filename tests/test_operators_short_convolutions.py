"""Short convolutions with gates, or with taps of their own at every token, against transformers' modules."""

import types

import pytest
import torch
from loops import by_token, randn

from ess_kernels import operators
from ess_kernels.testing import OperatorTestCase, assert_close, upstream_function


class TestLFM2(OperatorTestCase):
    constructor = staticmethod(operators.lfm2_conv)
    reads = {"B": (0, 1), "C": (0, 1), "weight": (None, 0)}
    state_size = 2
    scales = ("B", "C", "weight")
    value_layout = "[B, D, T]"

    def make_inputs(self, length):
        return {"B": randn(2, 4, length), "C": randn(2, 4, length), "weight": randn(4, 3)}

    def dense(self, B, C, weight):
        width = weight.shape[1]

        def column(j):
            for i in range(j, min(j + width, B.shape[-1])):
                yield C[..., i] * weight[:, width - 1 - (i - j)] * B[..., j]

        return by_token(B.shape[-1], column)

    def upstream(self, v, B, C, weight):
        convolve = upstream_function("transformers.models.lfm2.modeling_lfm2", "causal_conv1d_fn")
        return C * convolve(B * v, weight, None)


def test_a_whole_layer_of_lfm2():
    """From its own parameters, projections included."""
    module = pytest.importorskip("transformers.models.lfm2.modeling_lfm2")
    torch.manual_seed(0)
    config = module.Lfm2Config(
        hidden_size=6, conv_L_cache=3, conv_bias=False, layer_types=["conv"], num_hidden_layers=1
    )
    layer = module.Lfm2ShortConv(config, 0).double()
    hidden = randn(2, 9, 6)
    forward = upstream_function(module.__name__, "Lfm2ShortConv.forward")
    B, C, x = (layer.in_proj(hidden).mT).detach().chunk(3, -2)
    op = operators.lfm2_conv(B, C, layer.conv.weight.detach()[:, 0])
    y = layer.out_proj((op.dense() @ x[..., None])[..., 0].mT)
    assert_close("y", y, forward(layer, hidden), 1e-12, 1e-12)


class TestLFM2OfOneTap(TestLFM2):
    state_size = 0

    def make_inputs(self, length):
        return {**super().make_inputs(length), "weight": randn(4, 1)}


class TestDynamicShortConvolution(OperatorTestCase):
    constructor = staticmethod(operators.dynamic_short_convolution)
    reads = {"weight": (0, 1)}
    state_size = 2
    scales = ("weight",)

    def make_inputs(self, length):
        return {"weight": randn(2, 4, length, 3)}

    def upstream(self, v, weight):
        """Inkling-2's module with these taps for all channels of a head, but for the input and the factor it adds."""
        module = "transformers.models.inkling2.modeling_inkling2"
        width, channels = weight.shape[-1], v.shape[3]
        scaled = weight.transpose(1, 2) * (2 * width + 1) ** 0.5
        scaled[..., 0] -= 1
        stub = types.SimpleNamespace(
            conv_kernel_size=width,
            num_heads=4,
            static_weight=torch.zeros(width, 4 * channels, dtype=torch.float64),
            weight_proj=lambda taps: taps,
        )
        forward = upstream_function(module, "Inkling2DynamicShortConvolution.forward")
        return forward(stub, v.flatten(2), scaled).unflatten(-1, (4, channels))

    def dense(self, weight):
        def column(j):
            for i in range(j, min(j + weight.shape[-1], weight.shape[2])):
                yield weight[:, :, i, i - j]

        return by_token(weight.shape[2], column)


class TestDynamicShortConvolutionOfOneTap(TestDynamicShortConvolution):
    state_size = 0

    def make_inputs(self, length):
        return {"weight": randn(2, 4, length, 1)}
