import sys

import pytest
import torch

from manifoldid.plots import draw_members, new_figure


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
