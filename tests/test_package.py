"""What `import manifoldid` does and does not do, and the public names."""

import importlib.resources
import subprocess
import sys

import pytest

import manifoldid as mid

pytestmark = pytest.mark.slow


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def test_import_is_silent_and_leaves_geoopt_and_matplotlib_alone():
    done = run("import sys, manifoldid; print(*sorted({'geoopt', 'matplotlib', 'rich', 'pandas'} & set(sys.modules)))")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_import_does_not_touch_the_random_generators_or_settings_of_torch():
    done = run(
        "import random, torch; torch.manual_seed(3); before = torch.get_rng_state(), random.getstate();"
        "dtype, threads, grad = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled();"
        "import manifoldid;"
        "assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1];"
        "assert (dtype, threads, grad) == (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())"
    )
    assert done.returncode == 0, done.stderr


def test_package_is_typed_and_has_a_version():
    assert importlib.resources.files("manifoldid").joinpath("py.typed").is_file()
    assert mid.__version__.count(".") >= 1


def test_public_names_are_those_of_the_core():
    core = [
        "Affine",
        "Contrast",
        "DegeneratePointError",
        "DetachedWarning",
        "Ensemble",
        "GaugeGroup",
        "NotConvergedError",
        "NotEstimableError",
        "NotIdentifiableError",
        "NotInvariantError",
        "NotInvariantWarning",
        "PositiveScaling",
        "Product",
        "Reference",
        "Scaling",
        "Section",
        "Shift",
        "Translation",
        "UnboundedEstimateError",
        "UncalibratedWarning",
        "attach",
        "check_invariance",
        "nn",
    ]
    assert set(core) <= set(mid.__all__)
    assert set(mid.__all__) <= set(dir(mid))
    assert len(set(mid.__all__)) == len(mid.__all__)
    assert {"GaugeFix", "calibrate", "fold"} <= set(mid.nn.__all__)


@pytest.mark.parametrize("name", [name for name in mid.__all__ if name.endswith("Error")])
def test_errors_are_value_or_runtime_errors(name):
    assert issubclass(getattr(mid, name), ValueError | RuntimeError)


@pytest.mark.parametrize("name", [name for name in mid.__all__ if name.endswith("Warning")])
def test_warnings_are_user_warnings(name):
    assert issubclass(getattr(mid, name), UserWarning)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        mid.no_such_name  # noqa: B018
