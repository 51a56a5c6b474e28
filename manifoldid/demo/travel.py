"""Travel modes: networks emit one utility per alternative, the choice sees only differences within a traveller."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, vmap

from manifoldid.demo.tables import read_table

MODES = ("air", "train", "bus", "car")
STEPS = 300
_NUMBERS = ("ttme", "invc", "invt", "gc", "hinc", "psize")
_HIDDEN = 8
_LEARNING_RATE = 0.02
_WEIGHT_DECAY = (
    0.01  # without it 158 travellers are overfitted; it does not remove the shift, which no single weight carries
)


@dataclass(frozen=True)
class Travellers:
    """Features of every alternative of every traveller, and the alternative taken.

    Attributes:
        features: Standardised numbers and one indicator per mode.
        chosen: Index into `MODES`.
    """

    features: Float[Tensor, "n 4 f"]
    chosen: Int[Tensor, " n"]

    def log_likelihood(self, utilities: Float[Tensor, "*members n 4"]) -> Float[Tensor, "*members n"]:
        """Log-probability of every choice, log softmax(utilities)[chosen].

        Args:
            utilities: One number per alternative; its differences within a traveller are all that matters.

        Returns:
            One number per traveller.
        """
        index = self.chosen.expand(utilities.shape[:-1])[..., None]
        return utilities.log_softmax(-1).gather(-1, index)[..., 0]


def load_travellers() -> tuple[Travellers, Travellers]:
    """The 210 travellers of modechoice.csv.

    Returns:
        158 travellers to learn from, and every fourth one (52) held out. Features are standardised by the first group.
    """
    rows = read_table("modechoice")
    numbers = torch.tensor([[float(row[name]) for name in _NUMBERS] for row in rows], dtype=torch.float64)
    numbers = numbers.reshape(-1, len(MODES), len(_NUMBERS))
    chosen = torch.tensor([int(row["choice"]) for row in rows]).reshape(-1, len(MODES)).argmax(1)
    held_out = torch.arange(len(chosen)) % 4 == 3
    mean, std = numbers[~held_out].mean((0, 1)), numbers[~held_out].std((0, 1))
    modes = torch.eye(len(MODES), dtype=torch.float64).expand(len(chosen), -1, -1)
    features = torch.cat([(numbers - mean) / std, modes], -1)
    return Travellers(features[~held_out], chosen[~held_out]), Travellers(features[held_out], chosen[held_out])


def train_members(
    data: Travellers, members: int, generator: torch.Generator, on_step: Callable[[], object]
) -> Callable[[Float[Tensor, "n 4 f"]], Float[Tensor, "members n 4"]]:
    """Trains `members` small tanh networks side by side, each from its own start on its own bootstrap sample.

    Args:
        data: The travellers to learn from.
        members: Number of networks.
        generator: Source of starts and bootstrap samples.
        on_step: Called after each of the `STEPS` steps.

    Returns:
        The utilities of all members as a function of features.
    """
    with torch.device("meta"):  # the architecture alone: weights come from `generator`, not from the global one
        network = torch.nn.Sequential(
            torch.nn.Linear(data.features.shape[-1], _HIDDEN), torch.nn.Tanh(), torch.nn.Linear(_HIDDEN, 1)
        )
    weights = _starts(network, members, generator)
    count = len(data.chosen)
    drawn = torch.randint(count, (members, count), generator=generator)
    times = torch.zeros(members, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())

    def one(parameters: dict[str, Tensor], features: Tensor) -> Tensor:
        return functional_call(network, parameters, (features,)).squeeze(-1)

    every = vmap(one, in_dims=(0, None))
    optimizer = torch.optim.Adam(weights.values(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    for _ in range(STEPS):
        optimizer.zero_grad()
        # a sum over members: Adam works element by element, so each network trains as if it were alone
        loss = -(times * data.log_likelihood(every(weights, data.features))).sum() / count
        loss.backward()
        optimizer.step()
        on_step()
    trained = {name: weight.detach() for name, weight in weights.items()}
    return lambda features: every(trained, features)


def _starts(network: torch.nn.Module, members: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform starts on +-1/sqrt(fan in), as torch.nn.Linear draws them, stacked over members."""
    starts = {}
    for name, parameter in network.named_parameters():
        fan_in = network.get_parameter(name.replace("bias", "weight")).shape[1]
        start = 2 * torch.rand(members, *parameter.shape, generator=generator, dtype=torch.float64) - 1
        starts[name] = (start / fan_in**0.5).requires_grad_()
    return starts
