"""Gauge groups, one a file."""

from manifoldid.groups.affine import Affine
from manifoldid.groups.base import Canonical, GaugeGroup
from manifoldid.groups.positive_scaling import PositiveScaling
from manifoldid.groups.product import Product
from manifoldid.groups.scaling import Scaling
from manifoldid.groups.shift import Shift
from manifoldid.groups.translation import Translation

__all__ = ["Affine", "Canonical", "GaugeGroup", "PositiveScaling", "Product", "Scaling", "Shift", "Translation"]
