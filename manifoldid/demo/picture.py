"""The picture of the demo."""

from pathlib import Path as FilePath

from jaxtyping import Float
from torch import Tensor

from manifoldid.demo.baseball import Path
from manifoldid.demo.travel import MODES
from manifoldid.plots import draw_members, new_figure


def save_picture(
    path: FilePath,
    naive: Float[Tensor, "members 4"],
    aligned: Float[Tensor, "members 4"],
    penalised: Path,
    section: Path,
) -> None:
    """Saves three panels: one traveller as the networks emit it, aligned, and the unit of the abilities.

    Args:
        path: PNG file to write.
        naive: Utilities of one traveller as emitted.
        aligned: The same on the section.
        penalised: The fit with a penalty.
        section: The fit on the affine section.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    figure = new_figure(10.0, 3.2)
    left, middle, right = figure.subplots(1, 3)
    draw_members(left, naive, MODES, "one traveller, as the networks emit it")
    draw_members(middle, aligned, MODES, "the same networks, aligned")
    middle.set_ylim(left.get_ylim())
    left.set_ylabel("utility")
    right.semilogy(penalised.spread, color="#cc3311", label=f"penalty, -log L {penalised.nll:.2f}")
    right.semilogy(section.spread, color="#4477aa", label=f"affine section, -log L {section.nll:.2f}")
    right.set_title("unit of the abilities, slope free", fontsize=10)
    right.set_xlabel("rounds of L-BFGS")
    right.set_ylabel("sd")
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
