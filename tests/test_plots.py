"""Pictures show the numbers they are given, in the order that is asked for, and leave pyplot alone."""

import sys

import numpy as np
import pytest
import torch

import manifoldid as mid
from manifoldid.plots import before_and_after, caterpillar, contrasts, draw_members, new_figure


def test_bars_are_mean_and_standard_deviation_of_all_members():
    values = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    axes = new_figure(3.0, 2.0).subplots()
    draw_members(axes, values, ["a", "b", "c", "d"], "members")
    (bars,) = axes.containers
    line, _, (segments,) = bars.lines
    torch.testing.assert_close(torch.tensor(line.get_ydata()), values.double().mean(0))
    lengths = torch.tensor([end[1] - start[1] for start, end in segments.get_segments()])
    torch.testing.assert_close(lengths, 2 * values.double().std(0))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b", "c", "d"]


def test_picture_leaves_pyplot_alone(tmp_path):
    new_figure(1.0, 1.0).savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 0
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_missing_matplotlib_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'manifoldid\[plot\]'"):
        new_figure(1.0, 1.0)


def spans(axes, container=0):
    """Lower and upper ends of the bars."""
    _, _, (segments,) = axes.containers[container].lines
    return torch.tensor(np.array(segments.get_segments()))[..., 0].mT


def labels_from_the_top(axes):
    return [text.get_text() for text in axes.get_yticklabels()]


def test_a_caterpillar_has_the_largest_score_on_top_and_bars_of_two_errors():
    values, errors = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0.1, 0.2, 0.3])
    axes = caterpillar(values, errors, ["a", "b", "c"], "score")
    assert labels_from_the_top(axes) == ["b", "c", "a"]
    assert axes.get_yticks().tolist() == [2, 1, 0]
    torch.testing.assert_close(spans(axes), torch.tensor([[2.6, 1.4, 0.8], [3.4, 2.6, 1.2]]), check_dtype=False)
    assert labels_from_the_top(caterpillar(values, errors, [0, 1, 2], "score", order=False)) == ["0", "1", "2"]


def test_an_item_without_an_error_gets_an_open_dot():
    axes = caterpillar(torch.tensor([1.0, 3.0]), torch.tensor([0.1, torch.nan]), ["a", "b"], "score")
    assert len(axes.containers) == 2
    assert axes.containers[1].lines[0].get_markerfacecolor() == "none"


def test_contrasts_that_miss_zero_are_dark():
    values = torch.tensor([1.0, -1.0, 0.1])
    axes = contrasts(values, values - 0.5, values + 0.5, ["a - b", "b - a", "c - a"], "difference")
    assert len(axes.containers[0].lines[0].get_xdata()) == 2
    assert len(axes.containers[1].lines[0].get_xdata()) == 1


def test_an_ensemble_is_drawn_before_and_after():
    values = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = torch.where(torch.arange(30).reshape(10, 3) == 4, torch.nan, values + 5)
    axes = before_and_after(before, values, ["a", "b", "c"], order=False)
    shown = torch.tensor(axes.containers[0].lines[0].get_xdata())
    torch.testing.assert_close(shown, before.nanmean(0))
    low, high = spans(axes, 1)
    torch.testing.assert_close(high - low, 2 * values.std(0))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["as they came", "aligned"]


def nll(x):
    return 0.5 * (x[:, None] - x - torch.tensor([[0.0, 1, 2], [3, 0, 1], [1, 1, 0]], dtype=x.dtype)).square().sum()


def test_an_estimate_is_drawn_with_quasi_standard_errors_on_the_axes_that_are_given():
    fit = mid.fit(nll, torch.zeros(3, dtype=torch.float64), mid.Translation())
    estimate = mid.infer(nll, fit.point, mid.Translation(), names=["a", "b", "c"])
    mine = new_figure(3.0, 2.0).subplots()
    axes = estimate.plot(mine)
    assert axes is mine
    low, high = spans(axes)
    order = estimate.estimate().argsort(descending=True)
    torch.testing.assert_close(high - low, 4 * estimate.quasi_variances().standard_errors[order])
    assert labels_from_the_top(axes) == ["abc"[k] for k in order]
    assert "quasi-standard errors" in axes.get_xlabel()


def test_where_there_are_no_quasi_variances_the_axis_says_so():
    fit = mid.fit(nll, torch.zeros(3, dtype=torch.float64), mid.Translation())
    both = mid.infer(
        lambda p: nll(p["s"]) + (p["c"] - 1).square(),
        {"s": fit.point, "c": torch.ones((), dtype=torch.float64)},
        mid.Product(s=mid.Translation()),
    )
    assert "errors on the section" in both.plot(block="c").get_xlabel()
    with pytest.raises(ValueError, match="`block` must be one of"):
        both.plot()


def test_plot_without_matplotlib_names_the_extra(monkeypatch):
    fit = mid.fit(nll, torch.zeros(3, dtype=torch.float64), mid.Translation())
    estimate = mid.infer(nll, fit.point, mid.Translation())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'manifoldid\[plot\]'"):
        estimate.plot()


def test_pairs_are_drawn_against_one_item_or_all():
    fit = mid.fit(nll, torch.zeros(3, dtype=torch.float64), mid.Translation())
    pairs = mid.infer(nll, fit.point, mid.Translation(), names=["a", "b", "c"]).pairwise()
    assert labels_from_the_top(pairs.plot()) == ["a - b", "a - c", "b - c"]
    axes = pairs.plot("b")
    assert labels_from_the_top(axes) == ["a - b", "c - b"]
    low, high = pairs.simultaneous_interval()
    ends = torch.cat([spans(axes, k) for k in range(len(axes.containers))], 1)
    assert sorted(ends[0].tolist()) == pytest.approx(sorted(low[[0, 2], 1].tolist()))
    assert sorted(ends[1].tolist()) == pytest.approx(sorted(high[[0, 2], 1].tolist()))
    with pytest.raises(ValueError, match=r"`against` must be the name or index of an item \(a, b, c\), got 'd'"):
        pairs.plot("d")


def test_too_many_pairs_for_one_picture_are_refused():
    many = mid.PairwiseContrasts(torch.arange(30.0), torch.eye(30), list(range(30)))
    with pytest.raises(ValueError, match="`against` must name one item: all 435 pairs"):
        many.plot()
    assert len(many.plot(3).get_yticks()) == 29
