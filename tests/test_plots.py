"""Pictures: the numbers in them, the cap, gaps for bad data, and axes in and out."""

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

import ess_kernels as ek
from ess_kernels.analysis.delimiters import delimiter_dips, find_delimiters
from ess_kernels.analysis.names import short_names
from ess_kernels.analysis.plots import KINDS, draw, plot_delimiters, plot_overview, plot_spectra
from ess_kernels.testing.analyses import an_analysis

LENGTH = 24


@pytest.fixture(scope="module")
def analysis():
    return an_analysis(layers=3, batch=2, heads=2, length=LENGTH)


@pytest.fixture(scope="module")
def padded():
    return an_analysis(layers=3, batch=2, heads=2, length=LENGTH, padding=6)


def with_layer(analysis, number, **fields):
    """The analysis with some fields of one layer replaced."""
    name = list(analysis.layers)[number]
    return dataclasses.replace(
        analysis, layers={**analysis.layers, name: dataclasses.replace(analysis.layers[name], **fields)}
    )


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def dashed(ax):
    return [line for line in ax.get_lines() if line.get_linestyle() == "--"]


def grid_of(ax, shape):
    return np.ma.filled(ax.collections[0].get_array().astype(float), np.nan).reshape(shape)


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_takes_axes_and_makes_its_own(analysis, kind):
    subject = [(0, analysis), (10, analysis)] if kind == "training" else analysis
    options = {"marks": [12]} if kind == "delimiters" else {}
    given = Figure().subplots()
    assert draw(subject, kind, given, **options) is given
    made = draw(subject, kind, **options)
    assert isinstance(made, Axes) and made is not given
    made.get_figure().canvas.draw()


def test_an_unknown_kind_is_answered_with_the_names(analysis):
    with pytest.raises(ValueError, match="heatmap, position, utilisation, heads, delimiters, training, got 'pie'"):
        draw(analysis, "pie")
    with pytest.raises(ValueError, match=r"plot_spectra\(op, positions\)"):
        draw(analysis, "spectra")


def test_no_window_and_no_backend(analysis):
    import sys

    draw(analysis, "heatmap")
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_heatmap_shows_the_mean_over_heads_of_one_sample(analysis):
    ax = draw(analysis, "heatmap", metric=1e-3, sample=1)
    expected = [layer.tolerance[1e-3][1].double().mean(0).numpy() for layer in analysis.layers.values()]
    np.testing.assert_allclose(grid_of(ax, (3, LENGTH - 1)), expected)
    assert ax.get_figure().axes[1].get_ylabel() == "tolerance-ESS, 1e-3"


def test_heatmap_marks_where_the_cap_is_largest(analysis):
    ax = draw(analysis, "heatmap")
    caps = [found for found in ax.collections if found.get_label() == "_cap"]
    places = [sorted({float(x) for x, _ in np.concatenate(found.get_segments())}) for found in caps]
    assert places == [[7.5, 16.5], [11.5, 12.5], [7.5, 16.5]]  # a state of 8; attention, whose cap is largest at 12
    assert not [x for x in draw(analysis, "heatmap", of_cap=True).collections if x.get_label() == "_cap"]


def test_heatmap_as_a_share_of_the_cap(analysis):
    grid = grid_of(draw(analysis, "heatmap", metric=1e-5, of_cap=True), (3, LENGTH - 1))
    layers = list(analysis.layers.values())
    np.testing.assert_allclose(grid[1], (layers[1].tolerance[1e-5][0] / layers[1].cap[0]).mean(0))
    assert np.nanmax(grid) <= 1


def test_bad_data_and_padding_leave_gaps(padded):
    layer = next(iter(padded.layers.values()))
    entropy = layer.entropy.clone()
    entropy[1, :, 14] = torch.nan  # position 15, both heads
    entropy[1, 0, 16] = torch.nan  # position 17, one head
    broken = with_layer(padded, 0, entropy=entropy, tolerance={1e-3: torch.full_like(layer.tolerance[1e-3], -1)})
    row = grid_of(draw(broken, "heatmap", sample=1), (3, LENGTH - 1))[0]
    assert np.isnan(row[:6]).all() and np.isnan(row[14]) and np.isfinite(row[[6, 13, 15]]).all()
    assert row[16] == pytest.approx(float(entropy[1, 1, 16]))
    found = lines(draw(broken, "position", sample=1))
    np.testing.assert_allclose(found["entropy-ESS"].get_ydata(), row)
    assert np.isnan(found["tolerance-ESS, 1e-3"].get_ydata()).all()
    assert np.isnan(found["cap min(TSS, i, L-i)"].get_ydata()[:6]).all()


def test_position_shows_means_bands_caps_and_marks(analysis):
    ax = draw(analysis, "position", marks=[5, 9])
    layer = next(iter(analysis.layers.values()))
    found = lines(ax)
    for label, values in [("entropy-ESS", layer.entropy), ("tolerance-ESS, 1e-1", layer.tolerance[1e-1])]:
        np.testing.assert_allclose(found[label].get_ydata(), values[0].double().mean(0))
        np.testing.assert_array_equal(found[label].get_xdata(), np.arange(1, LENGTH))
    (cap,) = dashed(ax)
    np.testing.assert_array_equal(cap.get_ydata(), [min(8, i, LENGTH - i) for i in range(1, LENGTH)])
    band = np.concatenate([path.vertices for path in ax.collections[0].get_paths()])
    assert band[:, 1].max() == pytest.approx(float(layer.entropy[0].max()))
    assert [line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"] == [5, 9]
    assert [text.get_text() for text in ax.get_legend().get_texts()][-2:] == ["cap min(TSS, i, L-i)", "mark"]


def test_position_draws_each_cap_of_several_layers_once(analysis):
    ax = draw(analysis, "position", layers=list(analysis.layers), metrics=["entropy"])
    assert len(dashed(ax)) == 2  # two layers with a state of 8, and attention
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["0 gated_linear_attention", "1 attention", "2 linear_attention", "cap min(TSS, i, L-i)"]
    (share,) = dashed(draw(analysis, "position", layers=list(analysis.layers), of_cap=True))
    assert set(share.get_ydata()) == {1.0}


def test_position_finds_the_delimiter_in_the_tokens(analysis):
    ax = draw(analysis, "position", delimiter="w9")
    assert [line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"] == [10]
    with pytest.raises(ValueError, match="with tokens to find it in"):
        draw(dataclasses.replace(analysis, tokens=None), "position", delimiter="w9")


def test_positions_in_any_order_are_drawn_from_left_to_right(analysis):
    shuffled = torch.tensor([10, 4, 20, 4])
    layer = next(iter(analysis.layers.values()))
    changes = {
        "positions": shuffled,
        "cap": layer.cap[:, shuffled - 1],
        "valid": layer.valid[:, shuffled - 1],
        "entropy": layer.entropy[:, :, shuffled - 1],
        "tolerance": {},
    }
    few = with_layer(analysis, 0, **changes)
    found = lines(draw(few, "position", metrics=["entropy"]))["entropy-ESS"]
    np.testing.assert_array_equal(found.get_xdata(), [4, 10, 20])
    np.testing.assert_allclose(found.get_ydata(), layer.entropy[0].mean(0)[[3, 9, 19]])
    grid = grid_of(draw(few, "heatmap"), (3, LENGTH - 1))
    assert np.isfinite(grid[0]).sum() == 3 and np.isfinite(grid[1]).all()


def test_overview_has_a_panel_for_each_kind_of_mixer(analysis):
    figure = plot_overview(an_analysis(layers=5, batch=1, heads=2, length=LENGTH), title="all")
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
    assert titles == [
        "model.layers.0.mixer: gated_linear_attention, state 8",
        "model.layers.1.mixer: attention, state grows with i",
        "model.layers.2.mixer: linear_attention, state 8",
    ]
    assert all(len(dashed(ax)) == 1 for ax in figure.axes if ax.get_title(loc="left"))
    figure.canvas.draw()


def test_utilisation_has_a_bar_a_layer_and_a_colour_a_kind(analysis):
    six = an_analysis(layers=6, batch=1, heads=2, length=LENGTH)
    ax = draw(six, "utilisation", metric=1e-1)
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in ax.patches}
    expected = [float((layer.tolerance[1e-1] / layer.cap[:, None]).mean()) for layer in six.layers.values()]
    assert [heights[number] for number in range(6)] == pytest.approx(expected)
    colours = {round(bar.get_x() + bar.get_width() / 2): bar.get_facecolor() for bar in ax.patches}
    assert colours[0] == colours[3] != colours[1] == colours[4]
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["cap", "gated_linear_attention", "attention", "linear_attention"]


def test_heads_leaves_cells_of_missing_heads_blank(analysis):
    layer = list(analysis.layers.values())[1]
    one = with_layer(analysis, 1, entropy=layer.entropy[:, :1], tolerance={})
    ax = draw(one, "heads")
    matrix = np.ma.filled(ax.get_images()[0].get_array(), np.nan)
    assert matrix.shape == (2, 3) and np.isnan(matrix[1, 1])
    assert matrix[0, 1] == pytest.approx(float(layer.entropy[:, 0].mean()))


def test_spectra_show_singular_values_tolerances_and_noise():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 32, 2, 8).unbind(0)
    op = ek.operators.linear_attention(q, k)
    ax = plot_spectra(op, [4, 16], atol=[1e-1, 1.0], head=1)
    values = ek.singular_values(op, [4, 16])[0, 1]
    counts = ek.tolerance_ess(op, atol=[1e-1, 1.0], positions=[4, 16])[:, 0, 1]
    first, second = ax.get_lines()[0], ax.get_lines()[2]
    np.testing.assert_allclose(first.get_ydata(), values[0, :4])
    np.testing.assert_allclose(second.get_ydata(), values[1])
    assert second.get_label() == f"i = 16: {counts[0, 1]}, {counts[1, 1]} of 8"
    assert [line.get_ydata()[0] for line in ax.get_lines() if line.get_label() == "_tolerance"] == [0.1, 1.0]
    (shade,) = ax.patches
    assert shade.get_label() == "noise floor, float32"
    top = shade.get_y() + shade.get_height()
    assert top == pytest.approx(torch.finfo(torch.float32).eps * float(values.max()))
    with pytest.raises(ValueError, match="head: expected an integer from 0 to 1, got 2"):
        plot_spectra(op, [4], head=2)
    with pytest.raises(ValueError, match="NaN or infinity"):
        plot_spectra(ek.operators.linear_attention(q * torch.nan, k), [4])


def test_training_has_a_line_a_layer_over_steps(analysis):
    later = an_analysis(layers=2, batch=2, heads=2, length=LENGTH, seed=1)
    ax = draw([(100, later), (0, analysis)], "training")
    means = [[float(each.entropy.mean()) for each in run.layers.values()] for run in (analysis, later)]
    np.testing.assert_array_equal(ax.get_lines()[0].get_xdata(), [0, 100])
    np.testing.assert_allclose(ax.get_lines()[1].get_ydata(), [means[0][1], means[1][1]])
    assert np.isnan(ax.get_lines()[2].get_ydata()[1])  # no such layer at the later step
    with pytest.raises(ValueError, match="at least one pair"):
        draw([], "training")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": 1e-7}, r"metric: expected one of those measured, \['entropy', 0.1, 0.001, 1e-05\], got 1e-07"),
        ({"layers": ["nowhere"]}, "layers: expected names among .* got 'nowhere'"),
        ({"sample": 2}, "sample: expected an integer from 0 to 1, got 2"),
    ],
)
def test_what_is_not_there_is_refused(analysis, options, message):
    with pytest.raises(ValueError, match=message):
        draw(analysis, "heatmap", **options)
    with pytest.raises(ValueError, match="expected at least one layer"):
        draw(dataclasses.replace(analysis, layers={}), "heatmap")


def test_names_of_layers_lose_what_they_share():
    assert short_names(["model.layers.0.mixer", "model.layers.10.mixer"]) == ["0", "10"]
    assert short_names(["layers.0.attn", "layers.1.mamba"]) == ["0.attn", "1.mamba"]
    assert short_names(["a.b", "a.b[1]"]) == ["b", "b[1]"]
    assert short_names(["model.mixer"]) == ["model.mixer"]


def test_delimiters_are_found_by_text():
    tokens = ["A", " b", ".", " C", "\u0120.", "3", ".", "\n", "<|", "sep", "|>"]
    assert find_delimiters(tokens, ".") == [3, 5, 7]
    assert find_delimiters(tokens, "<|sep|>") == [11]
    assert find_delimiters(tokens, "\n") == [8]
    assert find_delimiters(tokens, "b") == [2] and find_delimiters(tokens, "s") == []
    with pytest.raises(ValueError, match="an empty one"):
        find_delimiters(tokens, "")


def test_the_depth_of_a_dip_is_what_its_formula_says(analysis):
    layer = next(iter(analysis.layers.values()))
    values = torch.full_like(layer.entropy, 4.0)
    values[:, :, 9:11] = torch.tensor([1.0, 3.0])  # positions 10 and 11
    made = with_layer(analysis, 0, entropy=values)
    dips = delimiter_dips(made, marks=[10], window=3)
    assert dips.depth["marks"][layer.name] == pytest.approx(0.75)
    assert dips.aligned["marks"][layer.name].tolist() == [4, 4, 4, 1, 3, 4, 4]
    assert delimiter_dips(made, "w9", window=3, after=2).depth["w9"][layer.name] == pytest.approx(0.5)
    assert delimiter_dips(made, "w9").count == {"w9": 2}  # once a row
    at_the_start = delimiter_dips(made, marks=[1])
    assert np.isnan(at_the_start.depth["marks"][layer.name])  # nothing before it
    assert at_the_start.count == {"marks": 0}
    both = delimiter_dips(made, marks=[10, 22], window=3)  # the second is too close to the end of 24 tokens
    assert both.aligned["marks"][layer.name].tolist() == [4, 4, 4, 1, 3, 4, 4]


def test_separators_are_compared(analysis):
    other = an_analysis(layers=3, batch=2, heads=2, length=LENGTH, seed=5)
    tokens = [["x"] * 9 + [";"] + ["x"] * 14] * 2
    by_separator = {"w9": analysis, ";": dataclasses.replace(other, tokens=tokens)}
    dips = delimiter_dips(by_separator, window=4, of_cap=True)
    ax = plot_delimiters(dips)
    assert [line.get_label().split(":")[0] for line in ax.get_lines()][:2] == ["'w9'", "';'"]
    expected = np.mean([dips.aligned[";"][name] for name in other.layers], 0)
    np.testing.assert_allclose(ax.get_lines()[1].get_ydata(), expected)
    assert to_rgba(ax.get_lines()[0].get_color()) != to_rgba(ax.get_lines()[1].get_color())
    with pytest.raises(ValueError, match="expected a text that is among the tokens, got '!'"):
        delimiter_dips({"!": analysis})
    with pytest.raises(ValueError, match="expected either delimiter or marks"):
        delimiter_dips(analysis)
