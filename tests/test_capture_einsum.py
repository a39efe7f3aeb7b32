"""Which einsums are products of the weights of attention with values, and the axes of their tensors."""

import pytest
import torch

from ess_kernels.capture import Refused
from ess_kernels.capture.torch_mode import as_product

B, H, L, D = 2, 3, 13, 5


@pytest.mark.parametrize(
    "equation",
    [
        "bhij,bhjd->bhid",
        "bhij,bjhd->bihd",
        "bhij,jbhd->dihb",
        "hbij,bhdj->hdbi",
        " b h i j , b h j d -> b h i d ",
    ],
)
def test_the_axes_of_an_einsum(equation):
    letters = equation.replace(" ", "")
    first, second = letters.partition("->")[0].split(",")
    sizes = {"b": B, "h": H, "i": L, "j": L, "d": D}
    w, v = (torch.randn([sizes[letter] for letter in x]) for x in (first, second))
    weights, values, output = as_product(equation, w, v, torch.einsum(equation, w, v))
    assert weights.shape[-2:] == (L, L)
    assert values.shape[-2:] == output.shape[-2:] == (L, D)
    assert weights.shape[:-2] == values.shape[:-2] == output.shape[:-2]
    assert torch.allclose(weights @ values, output, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "equation",
    [
        "bhij,bhid->bhjd",  # over the rows
        "bhij,bhij->bhi",  # no channels
        "bhij,bjd->bhid",  # values that heads share
        "bhij,bhjd->bhd",  # the rows are summed
        "bhij,bhjd->hid",  # the batch is summed
        "bhij,bhjde->bhide",  # two axes of channels
        "...ij,...jd->...id",
        "bhij,bhjd",
    ],
)
def test_an_einsum_that_is_no_product_with_values(equation):
    x = torch.randn(2, 2, 2, 2)
    with pytest.raises(Refused, match=r"a softmax in einsum\(.*\): expected a product over its last axis"):
        as_product(equation, x, x, x)
