"""A model in a Python file: `predict`, where to look (`point` or `sample`), and for a network its `inputs` and `likelihood`."""

import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from manifoldid.diagnose.api import diagnose
from manifoldid.diagnose.diagnosis import Diagnosis
from manifoldid.diagnose.draws import Draws, required_arguments
from manifoldid.diagnose.networks import NetworkDiagnosis


class ModelFileError(ValueError):
    """A file cannot be diagnosed; the message is one line that names the file, what is wrong, and what to do."""


def diagnose_file(target: str, seed: int = 0, progress: bool = False) -> Diagnosis | NetworkDiagnosis:
    """Runs a file and diagnoses the model in it.

    Args:
        target: FILE.py:NAME, or FILE.py for the name `predict`: a function of one point, or a `torch.nn.Module`. The file may
            define `point`, and `sample`, a function of nothing or of a `torch.Generator`; one of them is needed. `inputs` is the
            second argument of a function, or what a network is called with; for one it may define `likelihood`.
        seed: Seed of torch's global generator while the file runs, and of the generator of `sample` and of the diagnosis.
        progress: Write a line per stage to stderr once it takes longer than two seconds.

    Returns:
        What `manifoldid.diagnose` returns.

    Raises:
        ModelFileError: There is no such file or name, the file fails, or its model is refused.
    """
    path, name = _split(target)
    torch.manual_seed(seed)
    module = _loaded(path)
    predict = _required(module, path, name)
    generator = torch.Generator().manual_seed(seed)
    try:
        if isinstance(predict, torch.nn.Module):
            inputs = _required(module, path, "inputs", f"{name} is a network: define `inputs`, what it is called with")
            likelihood = getattr(module, "likelihood", None)
            return diagnose(predict, inputs=inputs, likelihood=likelihood, generator=generator, progress=progress)
        sample = getattr(module, "sample", None)
        point = getattr(module, "point", None)
        if point is None and sample is None:
            raise ModelFileError(
                f"{path} defines neither `point` nor `sample`: add a line like `point = torch.randn(5, dtype=torch.float64)`, "
                f"parameters at which {name} is looked at, or `def sample(): ...`, which draws them"
            )
        point = Draws(sample, generator).point() if point is None and sample is not None else point
        inputs = getattr(module, "inputs", None) if required_arguments(predict) > 1 else None
        return diagnose(predict, point, sample=sample, inputs=inputs, generator=generator, progress=progress)
    except ModelFileError:
        raise
    except Exception as error:
        raise ModelFileError(_explained(error, path, name)) from error


def _split(target: str) -> tuple[Path, str]:
    file, colon, name = target.rpartition(":")
    if colon and name.isidentifier():
        return Path(file), name
    return Path(target), "predict"  # no name, or the colon of a Windows drive


def _loaded(path: Path) -> ModuleType:
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"{path} {kind}: pass a Python file and the name of a function in it, FILE.py:predict")
    name = f"_diagnosed_{path.stem}"  # a file called torch.py must not become the module torch
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelFileError(f"{path} is no Python file: pass FILE.py:predict")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    # what lies beside the file can be imported, as with `python FILE.py`
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except SystemExit as error:
        raise ModelFileError(f"{path} exits when it is run: guard it with `if __name__ == '__main__':`") from error
    except Exception as error:
        raise ModelFileError(f"{path} cannot be run: {_where(error, path)}{_short(error)}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _required(module: ModuleType, path: Path, name: str, remedy: str = "") -> Any:
    if hasattr(module, name):
        return getattr(module, name)
    functions = [k for k, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
    known = f"it defines {', '.join(functions[:5])}" if functions else "it defines no function"
    raise ModelFileError(f"{path} has no `{name}`: {remedy or f'{known}; pass FILE.py:NAME'}")


def _explained(error: Exception, path: Path, name: str) -> str:
    """What went wrong, in the words of the names in the file."""
    text = _short(error)
    if isinstance(error, (TypeError, ValueError)) and text.split(": ", 1)[-1].startswith("`"):
        return f"{path}: " + text.split(": ", 1)[-1].replace("`predict`", f"`{name}`")
    return f"{path}: `{name}` cannot be diagnosed: {_where(error, path)}{text}"


def _where(error: Exception, path: Path) -> str:
    """The line of the file that failed."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"line {error.lineno}: "
    lines = [
        f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == path.resolve()
    ]
    return f"line {lines[-1]}: " if lines else ""


def _short(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())}"
