"""Gauge groups, one a file."""

from manifoldid.groups.affine import Affine
from manifoldid.groups.base import Canonical, GaugeGroup
from manifoldid.groups.general_linear import GeneralLinear
from manifoldid.groups.location_scale import LocationScale
from manifoldid.groups.orthogonal import Orthogonal
from manifoldid.groups.positive_scaling import PositiveScaling
from manifoldid.groups.product import Product
from manifoldid.groups.scaling import Scaling
from manifoldid.groups.shift import Shift
from manifoldid.groups.translation import Translation

__all__ = [
    "Affine",
    "Canonical",
    "GaugeGroup",
    "GeneralLinear",
    "LocationScale",
    "Orthogonal",
    "PositiveScaling",
    "Product",
    "Scaling",
    "Shift",
    "Translation",
]
