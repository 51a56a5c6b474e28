"""Ensembles of points that each have their own gauge."""

from manifoldid.ensemble.ensemble import Ensemble
from manifoldid.ensemble.train import TrainedEnsemble, train_ensemble

__all__ = ["Ensemble", "TrainedEnsemble", "train_ensemble"]
