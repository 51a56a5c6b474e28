"""Pictures of ensembles. Needs matplotlib, the extra `plot`; works on figures of its own, never on pyplot's state."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MEMBER = "#4477aa"
_MEAN = "#222222"
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
