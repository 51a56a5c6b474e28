"""What a type checker sees of the package: checked by pyrefly and mypy against the installed wheel, in `.ci/run`. Never run."""

from collections.abc import Mapping
from typing import Any, assert_type

import torch
from torch import Tensor

import manifoldid as mid


class AsinhShift(mid.GaugeGroup):
    dim = 1

    def act(self, xi: Tensor, x: Any) -> Any:
        return torch.sinh(torch.asinh(x) + xi)


def groups_and_sections(x: Tensor, named: dict[str, Tensor]) -> None:
    group = mid.Product(skill=mid.Translation(), rate=mid.PositiveScaling())
    section = mid.Section(mid.Affine(), weights=x)
    assert_type(section(x), Tensor)
    assert_type(section.frame(x), Tensor)
    assert_type(section.carry(section.frame(x), x), Tensor)
    assert_type(mid.Section(group)(named), dict[str, Tensor])
    assert_type(mid.Reference(mid.Affine(), (0, 1))(x), Tensor)
    assert_type(mid.check_invariance(lambda y: y, x, AsinhShift()), float)


def optimisers(x: torch.nn.Parameter, model: torch.nn.ParameterDict) -> None:
    optimizer = torch.optim.AdamW([x])
    handle = mid.attach(optimizer, mid.Translation(), x, loss=lambda: x.sum())
    assert_type(handle, mid.Handle)
    assert_type(handle.attached, bool)
    mid.attach(optimizer, mid.Shift({"theta": 1, "beta": 1}), model)
    mid.attach(optimizer, mid.GeneralLinear("a", "b"), [{"a": x, "b": x}])
    manifold = mid.QuotientManifold(mid.Scaling())
    assert_type(manifold.dist(x, x), Tensor)
    mid.parameter(x, mid.Scaling()).backward()


def heads(x: Tensor, layer: torch.nn.Linear) -> None:
    head = mid.nn.GaugeFix(mid.Translation(), over="batch")
    assert_type(mid.nn.fold(layer, head), torch.nn.Linear)


def ensembles(x: Tensor) -> None:
    ensemble = mid.Ensemble(x, mid.Translation(), names=["a", "b"])
    contrast = ensemble.contrast(lambda p: p[..., 0] - p[..., 1])
    assert_type(contrast, mid.Contrast)
    assert_type(contrast.value, Tensor)
    assert_type(contrast.standard_error, Tensor)
    assert_type(contrast.interval(0.95), tuple[Tensor, Tensor])
    assert_type(ensemble.table(), list[dict[str, Any]])


def estimates(x: Tensor) -> None:
    def nll(p: Any) -> Tensor:
        return p.square().sum()

    result = mid.fit(nll, x, mid.Translation())
    assert_type(result, mid.FitResult)
    assert_type(result.converged, bool)
    estimate = mid.infer(nll, result.point, mid.Translation())
    assert_type(estimate, mid.Estimate)
    assert_type(estimate.covariance(), Tensor)
    assert_type(estimate.quasi_variances().worst_errors, tuple[float, float])
    assert_type(estimate.contrast(lambda p: p[0] - p[1]).wald_test(), mid.WaldTest)


def wrong(x: Tensor) -> None:
    mid.Section("translation")  # type: ignore[arg-type]
    mid.nn.GaugeFix(mid.Translation(), over="rows")  # type: ignore[arg-type]
    mid.attach([x], mid.Translation(), x)  # type: ignore[arg-type]


def a_point_is_a_tensor_or_a_mapping(x: Tensor, named: Mapping[str, Tensor]) -> None:
    mid.Section(mid.Translation())(x)
    mid.Section(mid.Shift({"theta": 1, "beta": 1}))(named)
