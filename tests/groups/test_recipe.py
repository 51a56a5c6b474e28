"""The recipe of CONTRIBUTING.md for a new gauge group, followed word by word."""

import re
import textwrap
from pathlib import Path

import cases
import pytest
import torch

import manifoldid as mid

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def boost(monkeypatch):
    """The case that the recipe makes: its file executed, its export and its line of the table put in place."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    file, line = (textwrap.dedent(code) for code in re.findall(r"^ *```python\n(.*?)^ *```$", text, re.M | re.S))
    namespace = {"__name__": "manifoldid.groups.boost"}
    exec(compile(file, "boost.py", "exec"), namespace)
    monkeypatch.setattr(mid, "Boost", namespace["Boost"], raising=False)
    return eval(line.strip(), {**vars(cases), "mid": mid, "torch": torch})


def interval(x):
    return x[..., 0].square() - x[..., 1].square()


def test_the_group_of_the_recipe_passes_the_conformance_kit(boost):
    report = mid.conformance.check_group(boost.group, boost.sample, invariant=interval)
    assert report.passed, str(report)
    assert boost.name == "boost"


def test_the_group_of_the_recipe_has_sections_attaches_and_makes_ensembles(boost):
    x, target = boost.sample, interval(boost.point(seed=3))
    section = mid.Section(boost.group)

    def run(start):
        p = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.Adam([p], lr=1e-2)
        mid.attach(optimizer, boost.group, p, loss=lambda: (interval(p) - target).square().mean())
        for _ in range(10):
            optimizer.zero_grad()
            (interval(p) - target).square().mean().backward()
            optimizer.step()
        return section(p.detach())

    moved = boost.group.act(torch.tensor([0.5]).double(), x)
    torch.testing.assert_close(section(moved), section(x))
    torch.testing.assert_close(run(moved), run(x), rtol=0, atol=1e-9)
    members = torch.stack([boost.group.act(cases.randn(1, seed=k), x * (1 + 0.001 * k)) for k in range(5)])
    assert float(mid.Ensemble(members, boost.group).std().max()) < 0.02
