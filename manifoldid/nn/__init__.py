"""Network outputs on a section."""

from manifoldid.nn.calibrate import calibrate
from manifoldid.nn.fold import fold
from manifoldid.nn.gauge_fix import GaugeFix

__all__ = ["GaugeFix", "calibrate", "fold"]
