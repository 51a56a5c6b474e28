"""Which gauge does a model have?"""

from manifoldid.diagnose.api import diagnose
from manifoldid.diagnose.diagnosis import Diagnosis, Direction, DiscreteSymmetry, Generator

__all__ = ["Diagnosis", "Direction", "DiscreteSymmetry", "Generator", "diagnose"]
