"""What happens to an attachment when models, optimisers and parameters are copied, replaced, compiled or switched off."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import manifoldid as mid

F64 = {"dtype": torch.float64}


def start(seed: int = 0) -> Tensor:
    return torch.randn(8, generator=torch.Generator().manual_seed(seed), **F64)


class Scores(nn.Module):
    """Eight scores of which differences are seen."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.scores = nn.Parameter(start(seed))

    def loss(self) -> Tensor:
        return (self.scores[:, None] - self.scores - 1).square().mean()


def attached(**options) -> tuple[Scores, torch.optim.Optimizer, mid.optim.Handle]:
    model = Scores()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, **options)
    return model, optimizer, mid.attach(optimizer, mid.Translation(), model.scores)


def step(model: Scores, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model.loss().backward()
    optimizer.step()


def mean(model: Scores) -> float:
    return abs(float(model.scores.detach().mean()))


# ------------------------------------------------------------------------------------------------------------ copies


@pytest.mark.parametrize("order", ["optimizer first", "handle first"])
def test_a_handle_is_copied_with_its_optimizer(order):
    parts = attached()
    if order == "optimizer first":
        model, optimizer, handle = copy.deepcopy(parts)
    else:
        handle, optimizer, model = copy.deepcopy(parts[::-1])
    assert handle.attached
    step(model, optimizer)
    assert mean(model) < 1e-14
    handle.detach()
    assert not handle.attached
    assert parts[2].attached


def test_a_handle_cannot_be_pickled():
    with pytest.raises(TypeError, match=r"state_dict\(\)"):
        pickle.dumps(attached()[2])


# ------------------------------------------------------------------------------------------------------- replacements


def test_a_parameter_that_is_replaced_in_the_optimizer_is_named():
    model, optimizer, handle = attached()
    step(model, optimizer)
    model.load_state_dict({"scores": start(1)}, assign=True)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    with pytest.warns(mid.DetachedWarning, match="`params` is no longer among the parameters"):
        step(model, optimizer)
    assert not handle.attached
    step(model, optimizer)  # said once


@pytest.mark.parametrize("replace", ["assign", "to"])
def test_parameters_that_no_longer_are_those_of_the_model_are_named(replace):
    model, optimizer, _ = attached()
    step(model, optimizer)
    optimizer.zero_grad()
    if replace == "assign":
        model.load_state_dict({"scores": start(1)}, assign=True)
    else:
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            model.to(torch.float32)
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)
    with pytest.warns(mid.DetachedWarning, match=r"no attached parameter has a gradient.*`params`"):
        step(model, optimizer)
    step(model, optimizer)  # said once


def test_conversion_in_place_and_swapped_tensors_stay_attached():
    model, optimizer, handle = attached()
    model.to(torch.float32)
    step(model, optimizer)
    assert mean(model) < 1e-7
    torch.utils.swap_tensors(model.scores, nn.Parameter(start(1)))
    optimizer.state.clear()
    step(model, optimizer)
    assert mean(model) < 1e-14
    model.scores.data = start(2)
    step(model, optimizer)
    assert handle.attached
    assert mean(model) < 1e-14


def test_a_state_dict_loaded_into_the_model_is_put_on_the_section_by_the_next_step():
    model, optimizer, _ = attached()
    model.load_state_dict({"scores": start(1) + 100})
    step(model, optimizer)
    assert mean(model) < 1e-12


# --------------------------------------------------------------------------------------------------- ways of stepping


def test_steps_under_no_grad_and_inference_mode():
    model, optimizer, _ = attached()
    both = [nn.Parameter(start()), nn.Parameter(start(1))]  # several of a kind share a buffer
    optimizer.add_param_group({"params": both})
    mid.attach(optimizer, mid.Translation(), both)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        optimizer.zero_grad()
        (model.loss() + sum((p[:, None] - p).square().sum() for p in both)).backward()
        with mode():
            optimizer.step()
        assert mean(model) < 1e-14
        assert max(abs(float(p.detach().mean())) for p in both) < 1e-14


def test_clipping_accumulation_and_averages_of_weights():
    """Averages of points on a flat section that is linear are on it, too."""
    model, optimizer, _ = attached()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        optimizer.zero_grad()
        for _ in range(4):
            (model.loss() / 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        average.update_parameters(model)
    assert mean(model) < 1e-14
    assert mean(average.module) < 1e-14


def test_gradients_that_are_zero_and_gradients_that_are_absent():
    model, optimizer, _ = attached()
    step(model, optimizer)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()  # moves by momentum
    assert mean(model) < 1e-14


@pytest.mark.compile
def test_a_compiled_step_follows_the_gauge():
    model, optimizer, _ = attached()
    compiled = torch.compile(optimizer.step, backend="eager")
    for _ in range(2):
        optimizer.zero_grad()
        model.loss().backward()
        compiled()
    assert mean(model) < 1e-14


# ---------------------------------------------------------------------------------------------- one owner at a time


def test_a_parameter_that_another_optimiser_moves_is_refused_until_it_is_detached():
    p, q = nn.Parameter(start()), nn.Parameter(start(1))
    first, second = torch.optim.SGD([p], lr=0.1), torch.optim.Adam([p, q], lr=0.1)
    handle = mid.attach(first, mid.Translation(), p)
    before = p.detach().clone()
    with pytest.raises(
        ValueError, match=r"`params\[1\]` is attached already, through another optimiser \(SGD\).*detach\(\)"
    ):
        mid.attach(second, mid.Scaling(), [q, p])
    assert torch.equal(p.detach(), before)
    handle.detach()
    assert mid.attach(second, mid.Scaling(), [q, p]).attached


def test_an_optimiser_that_was_thrown_away_blocks_nobody_even_if_its_handle_was_kept():
    p = nn.Parameter(start())
    optimiser = torch.optim.SGD([p], lr=0.1)
    handle = mid.attach(optimiser, mid.Translation(), p)
    del optimiser
    again = torch.optim.SGD([p], lr=0.1)
    assert mid.attach(again, mid.Translation(), p).attached
    assert not handle.attached
    assert not copy.deepcopy(handle).attached
    handle.detach()
