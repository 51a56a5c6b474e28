"""Which gauge does a model have?"""

from manifoldid.diagnose.api import diagnose
from manifoldid.diagnose.diagnosis import Diagnosis, Direction, DiscreteSymmetry, Generator
from manifoldid.diagnose.networks import NetworkDiagnosis

__all__ = ["Diagnosis", "Direction", "DiscreteSymmetry", "Generator", "NetworkDiagnosis", "diagnose"]
