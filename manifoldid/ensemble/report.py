"""Tables, text and pictures of an ensemble."""

from typing import TYPE_CHECKING, Any

import torch

from manifoldid.distributed.dtensors import whole
from manifoldid.ensemble.members import member
from manifoldid.inference.names import Names, chosen_names, item_labels
from manifoldid.inference.presentation import Column, rendered
from manifoldid.plots import before_and_after
from manifoldid.points import blocks_of, flatten, is_dict
from manifoldid.sections import SectionLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from manifoldid.ensemble.ensemble import Ensemble


def ensemble_rows(ensemble: "Ensemble", names: Names, section: SectionLike, block: str | None) -> list[dict[str, Any]]:
    """The rows of `Ensemble.table`."""
    means, deviations = whole(ensemble.mean(section)), whole(ensemble.spread(section))
    one = member(ensemble.members, 0)
    called = chosen_names(names, ensemble.names, one, block)
    if block is not None:
        ensemble.block_of(means, block)
    several = is_dict(means) and len(means) > 1 and block is None
    rows = []
    for of in list(blocks_of(means)) if block is None else [block]:
        # a complex number is one row: its deviation is real
        labels = item_labels(called, of, blocks_of(means)[of].shape)
        counts = [len(ensemble)] * len(labels) if ensemble.observed is None else ensemble.counts.tolist()
        columns = (blocks_of(t)[of].flatten().tolist() for t in (means, deviations))
        for label, mean, deviation, count in zip(labels, *columns, counts, strict=True):
            row = {
                "item": label,
                "mean": mean,
                "standard_deviation": deviation if count > 1 else None,
                "members": count,
            }
            rows.append({"block": of, **row} if several else row)
    return rows


def ensemble_text(ensemble: "Ensemble") -> str:
    """The text of an ensemble: its table, and what was dropped."""
    rows = ensemble.table()
    columns = [Column(key) for key in ("block", "item") if key in rows[0]]
    columns += [Column("mean", "standard_deviation"), Column("standard_deviation")]
    columns += [] if ensemble.observed is None else [Column("members")]
    notes = []
    if ensemble.dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in ensemble.dropped.items())
        lost = sum(ensemble.dropped.values())
        notes.append(f"{lost} of {len(ensemble) + lost} replicates had no estimate and were dropped: {reasons}.")
    return rendered(f"Ensemble of {len(ensemble)} members under {ensemble.group}", columns, rows, notes)


def ensemble_picture(ensemble: "Ensemble", axes: "Axes | None", names: Names, block: str | None, order: bool) -> "Axes":
    """The picture of an ensemble, before and after alignment."""
    before, after = (flatten(ensemble.block_of(t, block), 1) for t in (ensemble.members, ensemble.aligned))
    if ensemble.observed is not None:
        before, after = (torch.where(ensemble.observed, t, torch.nan) for t in (before, after))
    return before_and_after(before, after, ensemble.labels(names, block), axes, order)
