"""Gauge groups, one a file."""

from manifoldid.groups.affine import Affine
from manifoldid.groups.base import Canonical, GaugeGroup
from manifoldid.groups.finite import Finite, Permutation, SignFlip
from manifoldid.groups.general_linear import GeneralLinear
from manifoldid.groups.location_scale import LocationScale
from manifoldid.groups.matrix import MatrixGroup
from manifoldid.groups.motions import RigidMotion, Similarity
from manifoldid.groups.orthogonal import Orthogonal
from manifoldid.groups.parts import Parts
from manifoldid.groups.phase import Phase
from manifoldid.groups.pointwise import Pointwise
from manifoldid.groups.positive_scaling import PositiveScaling
from manifoldid.groups.product import Product
from manifoldid.groups.rescaling import Rescaling
from manifoldid.groups.scaling import Scaling
from manifoldid.groups.shift import Shift
from manifoldid.groups.translation import Translation

__all__ = [
    "Affine",
    "Canonical",
    "Finite",
    "GaugeGroup",
    "GeneralLinear",
    "LocationScale",
    "MatrixGroup",
    "Orthogonal",
    "Parts",
    "Permutation",
    "Phase",
    "Pointwise",
    "PositiveScaling",
    "Product",
    "Rescaling",
    "RigidMotion",
    "Scaling",
    "Shift",
    "SignFlip",
    "Similarity",
    "Translation",
]
