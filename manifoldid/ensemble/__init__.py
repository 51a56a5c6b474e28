"""Ensembles of points that each have their own gauge."""

from manifoldid.ensemble.ensemble import Contrast, Ensemble

__all__ = ["Contrast", "Ensemble"]
