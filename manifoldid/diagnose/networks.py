"""Networks on two levels: what the likelihood cannot see of the outputs, and what the outputs cannot see of the weights."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manifoldid.diagnose.diagnosis import Diagnosis
from manifoldid.diagnose.probe import flat_outputs
from manifoldid.points import Point

_RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True, eq=False)
class NetworkDiagnosis:
    """Two diagnoses of a network.

    Attributes:
        outputs: Of the outputs, as the likelihood sees them; None if no likelihood was given.
        weights: Of the weights, as the outputs see them; blocks are named as in the module.
        verdict: One line.
    """

    outputs: Diagnosis | None
    weights: Diagnosis
    verdict: str

    @property
    def identifiable(self) -> bool | None:
        """False if one of the levels has a gauge, None if nothing is known of one, else True."""
        levels = [level.identifiable for level in (self.outputs, self.weights) if level is not None]
        return False if False in levels else None if None in levels else True

    def __str__(self) -> str:
        parts = [self.verdict, ""]
        if self.outputs is not None:
            parts += ["OUTPUTS, seen by the likelihood", str(self.outputs), ""]
        return "\n".join([*parts, "WEIGHTS, seen by the outputs", str(self.weights)])


def diagnose_network(
    diagnose: Callable[[Callable[[Any, Any], Any], Point, Any], Diagnosis],
    module: nn.Module,
    inputs: Any,
    likelihood: Callable[[Any], Any] | None,
) -> NetworkDiagnosis:
    """Diagnoses the outputs and the weights of a network.

    Args:
        diagnose: The diagnosis of a function of a point and inputs, at a point and inputs.
        module: The network; a float64 copy in evaluation mode is looked at, the network itself is left alone.
        inputs: What it is called with: a tensor, or a tuple of arguments.
        likelihood: What the likelihood sees of the outputs; None leaves this level out.

    Returns:
        Both diagnoses.

    Raises:
        ValueError: The module has no parameters.
        TypeError: Its outputs are no floating tensors.
    """
    network = copy.deepcopy(module).cpu().double().eval()
    arguments = tuple(_double(a) for a in (inputs if isinstance(inputs, tuple) else (inputs,)))
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    if not weights:
        raise ValueError("`predict` is a module without parameters: there are no weights to diagnose")
    rest = {name: b.detach().clone() for name, b in network.named_buffers()}

    def run(point: dict[str, Tensor], given: tuple) -> Any:
        buffers = {name: b.clone() for name, b in rest.items()}
        return torch.func.functional_call(network, {**buffers, **point}, given)

    of_weights = diagnose(lambda point, given: flat_outputs(run(point, given)), weights, arguments)
    if module.training and any(isinstance(m, _RANDOM) for m in module.modules()):
        note = "the network is in training mode; dropout and batch normalisation were looked at in evaluation mode"
        of_weights = of_weights.concluded((*of_weights.warnings, note))
    of_outputs = None
    if likelihood is not None:
        with torch.no_grad():
            outputs = run(weights, arguments)
        if not isinstance(outputs, (Tensor, dict)):
            raise TypeError(
                f"`likelihood` takes the outputs of the network as one point, a tensor or a dict of tensors; the network "
                f"returns {type(outputs).__name__}: wrap it"
            )
        of_outputs = diagnose(lambda point, _: likelihood(point), outputs, None)
    return NetworkDiagnosis(of_outputs, of_weights, _verdict(of_outputs, of_weights))


def _double(argument: Any) -> Any:
    if isinstance(argument, Tensor) and argument.is_floating_point():
        return argument.detach().cpu().double()
    return argument


def _verdict(outputs: Diagnosis | None, weights: Diagnosis) -> str:
    level = "" if outputs is None else f"outputs: {outputs.verdict}; "
    exact = "" if math.isfinite(weights.certainty) else " (uncertain)"
    return f"{level}weights: {weights.verdict}{exact}"
