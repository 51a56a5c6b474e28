"""Pictures of scores and ensembles. Needs matplotlib, the extra `plot`; works on figures of its own, never on pyplot's state."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MEMBER = "#4477aa"
_MEAN = "#222222"
_BEFORE = "#bb5566"
_LINES = 200  # more lines than this in one panel cannot be told apart


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure outside pyplot: no window, no backend, nothing to close.

    Args:
        width: Width in inches.
        height: Height in inches.

    Returns:
        The figure; `figure.savefig(path)` writes it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'manifoldid[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def axes_or_new(axes: "Axes | None", width: float, height: float) -> "Axes":
    """`axes`, or those of a new figure of this size in inches."""
    return new_figure(width, height).subplots() if axes is None else axes


def caterpillar(
    values: Tensor,
    errors: Tensor,
    labels: Sequence[object],
    meaning: str,
    axes: "Axes | None" = None,
    order: bool = True,
    reach: float = 2.0,
) -> "Axes":
    """Draws one line per item: a dot, and a bar of `reach` errors to both sides.

    Args:
        values: Scores (n,).
        errors: Standard errors (n,); an item whose error is nan gets an open dot without a bar.
        labels: Names of the n items.
        meaning: Label of the value axis: what dots and bars are.
        axes: Where to draw; default a figure of its own.
        order: Whether the largest score comes first (at the top); else the first item.
        reach: Half the length of the bars, in errors.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    values, errors = (t.detach().cpu().double() for t in (values, errors))
    n = len(values)
    axes = axes_or_new(axes, 6.0, max(2.0, 0.6 + 0.18 * n))
    rank = values.argsort(descending=True, stable=True) if order else torch.arange(n)
    values, errors, names = values[rank], errors[rank], [str(labels[k]) for k in rank.tolist()]
    places = torch.arange(n - 1, -1, -1)  # the first on top
    known = torch.isfinite(errors)
    style = {"fmt": "o", "markersize": 3.5, "color": _MEMBER}
    axes.errorbar(
        values[known].numpy(), places[known].numpy(), xerr=reach * errors[known].numpy(), elinewidth=1.2, **style
    )
    if not bool(known.all()):
        axes.errorbar(values[~known].numpy(), places[~known].numpy(), markerfacecolor="none", **style)
    axes.set_yticks(places.tolist(), names, fontsize=8 if n > 20 else 10)
    axes.set_ylim(-0.8, n - 0.2)
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    axes.set_xlabel(meaning)
    return axes


def contrasts(
    values: Tensor,
    low: Tensor,
    high: Tensor,
    labels: Sequence[object],
    meaning: str,
    axes: "Axes | None" = None,
) -> "Axes":
    """Draws intervals of contrasts below each other, and the line where they are zero; those that miss it are dark.

    Args:
        values: Contrasts (k,).
        low: Lower ends (k,).
        high: Upper ends (k,).
        labels: What is compared, k of them.
        meaning: Label of the value axis.
        axes: Where to draw; default a figure of its own.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    values, low, high = (t.detach().cpu().double() for t in (values, low, high))
    k = len(values)
    axes = axes_or_new(axes, 6.0, max(2.0, 0.6 + 0.2 * k))
    places = torch.arange(k - 1, -1, -1)
    apart = (low > 0) | (high < 0)
    axes.axvline(0.0, color=_MEAN, linewidth=0.8)
    for chosen, colour in ((apart, _MEAN), (~apart, _MEMBER)):
        if not bool(chosen.any()):
            continue
        reach = torch.stack([values - low, high - values])[:, chosen].numpy()
        axes.errorbar(
            values[chosen].numpy(),
            places[chosen].numpy(),
            xerr=reach,
            fmt="o",
            markersize=3.5,
            color=colour,
            elinewidth=1.2,
        )
    axes.set_yticks(places.tolist(), [str(label) for label in labels], fontsize=8 if k > 20 else 10)
    axes.set_ylim(-0.8, k - 0.2)
    axes.set_xlabel(meaning)
    return axes


def before_and_after(
    before: Tensor, after: Tensor, labels: Sequence[object], axes: "Axes | None" = None, order: bool = True
) -> "Axes":
    """Draws an ensemble twice, item by item: members as they came (red) and aligned (blue), with mean and standard deviation.

    Args:
        before: Members (M, n) as they came; nan where a member did not see an item.
        after: The same, aligned.
        labels: Names of the n items.
        axes: Where to draw; default a figure of its own.
        order: Whether the item with the largest aligned mean comes first (at the top); else the first item.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    before, after = (t.detach().cpu().double() for t in (before, after))
    n = before.shape[-1]
    rank = after.nanmean(0).argsort(descending=True, stable=True) if order else torch.arange(n)
    before, after, names = before[:, rank], after[:, rank], [str(labels[k]) for k in rank.tolist()]
    axes = axes_or_new(axes, 6.0, max(2.0, 0.6 + 0.3 * n))
    places = torch.arange(n - 1.0, -1.0, -1.0)
    for values, colour, offset, name in ((before, _BEFORE, 0.17, "as they came"), (after, _MEMBER, -0.17, "aligned")):
        seen = ~values.isnan()
        count = seen.sum(0)
        mean = values.nansum(0) / count
        spread = (torch.where(seen, values - mean, 0).square().sum(0) / (count - 1)).sqrt()
        dots = values[:_LINES]
        axes.plot(
            dots.flatten().numpy(), (places + offset).expand_as(dots).flatten().numpy(), "|", color=colour, alpha=0.3
        )
        axes.errorbar(
            mean.numpy(),
            (places + offset).numpy(),
            xerr=spread.numpy(),
            fmt="o",
            markersize=3.5,
            color=colour,
            capsize=2,
            label=name,
        )
    axes.set_yticks(places.tolist(), names, fontsize=8 if n > 20 else 10)
    axes.set_ylim(-0.8, n - 0.2)
    axes.set_xlabel("value, bars: standard deviation of one member")
    axes.legend(frameon=False, fontsize=8)
    return axes


def draw_members(axes: "Axes", values: Float[Tensor, "members n"], names: Sequence[str], title: str) -> None:
    """Draws one line per member over the items, and mean +- standard deviation (ddof 1).

    Args:
        axes: Where to draw.
        values: One row per member; at most 200 rows get a line, mean and standard deviation take all.
        names: Labels of the n items.
        title: Title of the panel.
    """
    values = values.detach().cpu().double()
    items = range(len(names))
    axes.plot(items, values[:_LINES].T.numpy(), color=_MEMBER, alpha=0.25, linewidth=0.8)
    axes.errorbar(items, values.mean(0).numpy(), values.std(0).numpy(), color=_MEAN, linewidth=1.5, capsize=4, zorder=3)
    axes.set_xticks(items, names)
    axes.set_title(title, fontsize=10)
