"""Draws the pictures of the documentation: `python docs/pictures.py [FOLDER]`, by default into docs/images. Needs the extra `plot`."""

import math
import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import manifoldid as mid

ORBIT, SECTION, VERTICAL, HORIZONTAL, POINT = "#bbbbbb", "#4477aa", "#bb5566", "#228833", "#222222"


def orbits_and_sections() -> Figure:
    """Two gauges of the plane: orbits, sections, and points with their representatives."""
    figure, (left, right) = _panels(2, (-2.4, 2.4))
    generator = torch.Generator().manual_seed(3)
    points = 1.2 * torch.randn(6, 2, generator=generator, dtype=torch.float64)
    line = torch.linspace(-4, 4, 2, dtype=torch.float64)
    for offset in torch.arange(-4.0, 4.5, 0.5):
        left.plot(line + offset, line - offset, color=ORBIT, linewidth=0.6, zorder=0)
    left.plot(line, -line, color=SECTION)
    for angle in torch.arange(0, 2 * math.pi, math.pi / 12):
        right.plot([0, 4 * angle.cos()], [0, 4 * angle.sin()], color=ORBIT, linewidth=0.6, zorder=0)
    circle = torch.linspace(0, 2 * math.pi, 100)
    right.plot(math.sqrt(2) * circle.cos(), math.sqrt(2) * circle.sin(), color=SECTION)
    for axes, group, title in (
        (left, mid.Translation(), "Translation: mean 0"),
        (right, mid.Scaling(), "Scaling: root mean square 1"),
    ):
        for x, y in zip(points, mid.Section(group)(points), strict=True):
            _arrow(axes, x, y, VERTICAL)
            axes.plot(*x, "o", color=POINT, markersize=4)
            axes.plot(*y, "o", color=SECTION, markersize=4)
        axes.set_title(title, fontsize=10)
    return figure


def horizontal_step() -> Figure:
    """One step of an optimiser under a scaling, split into what the likelihood sees and what it does not."""
    figure, (axes,) = _panels(1, (-0.3, 2.6))
    x, u = torch.tensor([1.6, 0.8]), torch.tensor([0.1, 1.1])
    manifold = mid.QuotientManifold(mid.Scaling())
    horizontal = manifold.horizontal_component(x, u)
    arrived = manifold.retr(x, horizontal)
    for t in (x, x + u, arrived):
        axes.plot([0, 3 * t[0]], [0, 3 * t[1]], color=ORBIT, linewidth=0.8, zorder=0)
    angle = torch.linspace(0, math.pi / 2, 60)
    axes.plot(x.norm() * angle.cos(), x.norm() * angle.sin(), color=SECTION, linewidth=0.8)
    _arrow(axes, x, x + u, POINT, "the step that the\noptimiser wants", (0.08, -0.05))
    _arrow(axes, x + horizontal, x + u, VERTICAL, "vertical: no\nlikelihood sees it", (-0.2, 0.3))
    _arrow(axes, x, x + horizontal, HORIZONTAL, "horizontal", (-1.0, -0.25))
    axes.plot(*x, "o", color=POINT, markersize=5)
    axes.plot(*arrived, "o", color=HORIZONTAL, markersize=5)
    axes.annotate("x", x + torch.tensor([0.07, -0.12]))
    axes.annotate("retracted", arrived + torch.tensor([-0.75, -0.05]), color=HORIZONTAL, fontsize=8)
    return figure


def moving_frame() -> Figure:
    """The frame of a point, applied to another one."""
    figure, axes = _strip(2.2)
    known = torch.tensor([2.6, 3.4, 4.1, 5.1])
    new = torch.tensor([3.0, 6.0])
    section = mid.Section(mid.Translation())
    xi = section.frame(known)
    for level, (values, carried, colour, label) in enumerate(
        [
            (new, section.carry(xi, new), VERTICAL, "new items: carried by the same move"),
            (known, section(known), SECTION, "items that define the origin"),
        ]
    ):
        axes.plot(values, [level] * len(values), "o", color=POINT, markersize=5)
        axes.plot(carried, [level] * len(carried), "o", color=colour, markersize=5)
        for start, end in zip(values, carried, strict=True):
            axes.annotate(
                "",
                (float(end), level),
                (float(start), level),
                arrowprops={"arrowstyle": "->", "color": colour, "connectionstyle": "arc3,rad=0.25", "shrinkB": 4},
            )
        axes.text(-2.6, level + 0.55, label, color=colour, fontsize=9)
    axes.axvline(0, color=ORBIT, linewidth=0.8)
    axes.set_xlabel(f"score; frame xi = {float(xi):.1f}", fontsize=9)
    return figure


def flat_and_curved() -> Figure:
    """Around a loop of identifiable moves and back: with a flat gauge to the same point, with a curved one to another."""
    figure, panels = _panels(2, (-1.8, 1.8))
    triangle = torch.tensor([[1.0, -0.6], [-1.0, -0.6], [0.0, 1.2]], dtype=torch.float64)
    along, upwards = torch.tensor([1.0, 0.0]).expand(3, 2), torch.tensor([0.0, 1.0]).expand(3, 2)
    for axes, group, title in zip(
        panels,
        (mid.Shift(torch.stack([along, upwards]).double()), mid.Orthogonal()),
        ("shifts: flat", "rotations: curved"),
        strict=True,
    ):
        start, end = _around_a_loop(triangle, group)
        axes.set_title(title, fontsize=10)
        for corners, colour, style in ((start, SECTION, "-"), (end, VERTICAL, "--")):
            closed = torch.cat([corners, corners[:1]])
            axes.plot(*closed.T, style, color=colour, linewidth=1.5)
    return figure


def anchor() -> Figure:
    """The standard errors of a league with two anchors, and its quasi-standard errors."""
    teams = ["Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore"]
    wins = torch.tensor(
        [
            [0, 7, 9, 7, 7, 9, 11],
            [6, 0, 7, 5, 11, 9, 9],
            [4, 6, 0, 7, 7, 8, 12],
            [6, 8, 6, 0, 6, 7, 10],
            [6, 2, 6, 7, 0, 7, 12],
            [4, 4, 5, 6, 6, 0, 6],
            [2, 4, 1, 3, 1, 7, 0],
        ],
        dtype=torch.float64,
    )

    def nll(score: Tensor) -> Tensor:
        return -(wins * torch.nn.functional.logsigmoid(score[:, None] - score)).sum()

    group = mid.Translation()
    best = mid.fit(nll, torch.zeros(7, dtype=torch.float64), group).point
    estimate = mid.infer(nll, best, group)
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    sections = [mid.Reference(group, 6), mid.Reference(group, 0), None]
    titles = ["anchor: Baltimore", "anchor: Milwaukee", "no anchor: quasi-standard errors"]
    for axes, section, title in zip(panels, sections, titles, strict=True):
        errors = estimate.standard_errors(section) if section else estimate.quasi_variances().standard_errors
        axes.errorbar(
            estimate.estimate(section),
            range(7),
            xerr=2 * errors,
            fmt="o",
            color=SECTION if section else HORIZONTAL,
            markersize=4,
        )
        axes.set_title(title, fontsize=10)
        axes.set_yticks(range(7), teams, fontsize=8)
    panels[0].invert_yaxis()
    return figure


PICTURES = (orbits_and_sections, horizontal_step, moving_frame, flat_and_curved, anchor)


def main(folder: Path) -> None:
    """Writes every picture to `folder`, byte for byte the same in every run."""
    matplotlib.rcParams["svg.hashsalt"] = "manifoldid"
    folder.mkdir(parents=True, exist_ok=True)
    for draw in PICTURES:
        draw().savefig(folder / f"{draw.__name__}.svg", metadata={"Date": None})


def _around_a_loop(triangle: Tensor, group: mid.GaugeGroup) -> tuple[Tensor, Tensor]:
    """Deforms a triangle around a closed loop of shapes, every step taken horizontally; the first and the last triangle."""
    bend = torch.tensor([[0.8, 0.0], [0.0, 0.8], [-0.8, -0.8]], dtype=torch.float64)
    stretch = torch.tensor([[0.0, -0.8], [0.8, 0.0], [-0.8, 0.8]], dtype=torch.float64)
    manifold = mid.QuotientManifold(group)
    x = start = triangle - triangle.mean(0)
    for t in torch.linspace(0, 4 * math.pi, 400, dtype=torch.float64)[1:]:
        shape = start + (t.cos() - 1) * bend + t.sin() * stretch
        x = manifold.align(shape, to=x)
    return start, x


def _panels(count: int, limits: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(3.6 * count, 3.6), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    for axes in panels:
        axes.set(xlim=limits, ylim=limits, aspect="equal", xticks=[], yticks=[])
    return figure, panels


def _strip(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.subplots()
    axes.set(ylim=(-0.5, 2), yticks=[])
    axes.spines[["left", "top", "right"]].set_visible(False)
    return figure, axes


def _arrow(
    axes: Axes, start: Tensor, end: Tensor, colour: str, text: str = "", offset: tuple[float, float] = (0, 0)
) -> None:
    axes.annotate("", end.tolist(), start.tolist(), arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.4})
    if text:
        axes.text(*((start + end) / 2 + torch.tensor(offset)), text, color=colour, fontsize=8)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
