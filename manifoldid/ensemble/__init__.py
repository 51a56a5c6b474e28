"""Ensembles of points that each have their own gauge."""

from manifoldid.ensemble.ensemble import Ensemble

__all__ = ["Ensemble"]
