"""Heads and sections through torch.export, ONNX and torch.compile."""

import functools
import warnings

import pytest
import torch
from torch import nn

import manifoldid as mid

pytestmark = pytest.mark.slow

export = functools.partial(torch.export.export, strict=False)  # torch 2.6 has another default
LABELS = torch.tensor([7, -2, 7, -2, 7, -2])


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def calibrated(group, columns=1):
    head = mid.nn.GaugeFix(group, over="batch")
    frame = 0.3 + 0.2 * random(columns, group.dimension(torch.zeros(3)), seed=columns)
    head.set_frame(frame if columns > 1 else frame[0])
    return head


def network(head, outputs):
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, outputs), head)
    for k, parameter in enumerate(model.parameters()):
        parameter.data = random(*parameter.shape, seed=k)
    return model.eval()


HEADS = {
    "translation of rows": lambda: network(mid.nn.GaugeFix(mid.Translation()), 6),
    "weighted translation of rows": lambda: network(mid.nn.GaugeFix(mid.Translation(), 1 + torch.arange(6)), 6),
    "scaling of rows": lambda: network(mid.nn.GaugeFix(mid.Scaling()), 6),
    "affine of rows": lambda: network(mid.nn.GaugeFix(mid.Affine()), 6),
    "affine of rows, per block": lambda: network(mid.nn.GaugeFix(mid.Affine(blocks=LABELS)), 6),
    "positive rows": lambda: nn.Sequential(
        nn.Linear(3, 6), nn.Softplus(), mid.nn.GaugeFix(mid.PositiveScaling())
    ).eval(),
    "translation of examples": lambda: network(calibrated(mid.Translation()), 1),
    "affine of examples": lambda: network(calibrated(mid.Affine()), 1),
    "affine of examples, three columns": lambda: network(calibrated(mid.Affine(), 3), 3),
}
each_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS.keys())


class Ragged(nn.Module):
    """Rewards of responses, one shift per prompt; the prompts are an input."""

    def __init__(self, group):
        super().__init__()
        self.head = mid.nn.GaugeFix(group)

    def forward(self, rewards, prompts):
        return self.head(rewards, blocks=prompts)


@each_head
@pytest.mark.filterwarnings("ignore:.*(to insert a get_attr Node|lifted_tensor)")  # torch 2.6, of constants
def test_an_exported_head_takes_batches_of_any_size(make):
    model, x = make(), random(5, 3)
    program = export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    for size in (5, 2, 11):
        new = random(size, 3, seed=size)
        torch.testing.assert_close(program.module()(new), model(new), rtol=1e-5, atol=1e-6)


def test_an_exported_program_survives_a_file(tmp_path):
    model, x = HEADS["affine of examples, three columns"](), random(5, 3)
    torch.export.save(export(model, (x,)), tmp_path / "model.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "model.pt2").module()(x), model(x), rtol=1e-5, atol=1e-6)


def test_exported_heads_put_degenerate_rows_to_zero():
    x = random(4, 6)
    x[2] = 0
    for group in (mid.Scaling(), mid.Affine()):
        head = mid.nn.GaugeFix(group).eval()
        y = export(head, (x,)).module()(x)
        assert torch.equal(y[2], torch.zeros(6))
        torch.testing.assert_close(y[:2], head(x[:2]))


@pytest.mark.parametrize("group", [mid.Translation(), mid.Scaling(), mid.Affine()], ids=repr)
def test_exported_ragged_prompts_take_other_labels(group):
    model, x = Ragged(group), random(6)
    program = export(model, (x, LABELS))
    for labels in (LABELS, torch.zeros(6, dtype=torch.long), torch.tensor([-9, 4, 4, 4, -9, -9])):
        torch.testing.assert_close(program.module()(x, labels), model(x, labels), rtol=1e-5, atol=1e-6)


def test_an_uncalibrated_head_warns_in_eager_mode_and_exports():
    model = network(mid.nn.GaugeFix(mid.Translation(), over="batch"), 1)
    x = random(5, 3)
    with pytest.warns(mid.UncalibratedWarning):
        y = model(x)
    torch.testing.assert_close(export(model, (x,)).module()(x), y)


@pytest.mark.parametrize(
    "name",
    ["weighted translation of rows", "affine of rows, per block", "positive rows", "affine of examples, three columns"],
)
def test_onnx_gives_the_outputs_of_the_module(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="the extra `test` installs it")
    model, x = HEADS[name](), random(5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.onnx itself
        torch.onnx.export(
            model,
            (x,),
            tmp_path / "model.onnx",
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.AUTO},),
            verbose=False,
        )
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for size in (5, 2, 11):
        new = random(size, 3, seed=size)
        (y,) = session.run(None, {name: new.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), model(new).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.compile
@pytest.mark.usefixtures("fresh_compiler")
@each_head
def test_heads_compile_without_graph_breaks(make):
    model, other = make().train(), make().train()
    other.load_state_dict(model.state_dict())
    x = random(5, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), other(x), rtol=1e-5, atol=1e-6)
    compiled(x).pow(3).sum().backward()
    other(x).pow(3).sum().backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.eval()(x), other.eval()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.compile
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_ragged_prompts_take_other_labels():
    model, x = Ragged(mid.Affine()), random(6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for labels in (LABELS, torch.zeros(6, dtype=torch.long), torch.tensor([5, 5, 4, 5, 4, 4])):
        torch.testing.assert_close(compiled(x, labels), model(x, labels), rtol=1e-5, atol=1e-6)
