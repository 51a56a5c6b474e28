"""Times of `diagnose` on large models; run it as a script, with part of a name to run only these. Targets in seconds are those of one free core."""

import resource
import sys
import time

import torch

from manifoldid.diagnose import Diagnosis, diagnose

F64 = torch.float64


def comparisons(items, pairs, components=1):
    """Random comparisons within each component, every component connected by a chain."""
    generator = torch.Generator().manual_seed(0)
    size, first, second = items // components, [], []
    for c in range(components):
        first += [torch.arange(size - 1), torch.randint(size, (pairs // components - size,), generator=generator)]
        second += [torch.arange(1, size), torch.randint(size, (pairs // components - size,), generator=generator)]
        first[-2:] = [t + c * size for t in first[-2:]]
        second[-2:] = [t + c * size for t in second[-2:]]
    i, j = torch.cat(first), torch.cat(second)
    return lambda x: torch.nn.functional.logsigmoid(x[i] - x[j]), torch.zeros(items, dtype=F64)


def factorisation(flat):
    u, v = torch.randn(2, 300, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    if flat:
        return lambda x: x[:1500].reshape(300, 5) @ x[1500:].reshape(300, 5).T, torch.cat([u.flatten(), v.flatten()])
    return lambda p: p["U"] @ p["V"].T, {"U": u, "V": v}


def attention():
    """One head of width 16 on tokens of length 160, four projections of 2,560 parameters each, and enough tokens to see them."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=F64) / shape[0] ** 0.5  # noqa: E731
    tokens = torch.randn(24, 24, 160, generator=generator, dtype=F64)

    def predict(p):
        weights = torch.softmax(tokens @ p["Q"] @ (tokens @ p["K"]).mT / 4, dim=-1)
        return weights @ tokens @ p["V"] @ p["O"]

    return predict, {"Q": draw(160, 16), "K": draw(160, 16), "V": draw(160, 16), "O": draw(16, 160)}


def many_heads():
    """Eight heads of width 6 on tokens of length 50, heads as a leading dimension: 9,600 parameters."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=F64) / shape[1] ** 0.5  # noqa: E731
    tokens = torch.randn(60, 12, 50, generator=generator, dtype=F64)

    def predict(p):
        queries, keys, values = (torch.einsum("ntd,hdk->nhtk", tokens, p[name]) for name in "QKV")
        return torch.einsum("nhtk,hkd->ntd", torch.softmax(queries @ keys.mT / 6**0.5, dim=-1) @ values, p["O"])

    return predict, {**{name: draw(8, 50, 6) for name in "QKV"}, "O": draw(8, 6, 50)}


CASES = {
    "Bradley-Terry, 1,000 items": (lambda: comparisons(1000, 8000), 1, 3),
    "Bradley-Terry, 200,000 items": (lambda: comparisons(200_000, 1_000_000), 1, 60),
    "Bradley-Terry, 200,000 items, two components": (lambda: comparisons(200_000, 1_000_000, 2), 2, 60),
    "factorisation 300 x 300, rank 5, flat": (lambda: factorisation(flat=True), 25, 60),
    "factorisation 300 x 300, rank 5": (lambda: factorisation(flat=False), 25, 60),
    "attention block, 10,240 parameters": (attention, 512, 60),
    "eight heads, 9,600 parameters": (many_heads, 576, 60),
}


def main(chosen=""):
    torch.set_num_threads(1)
    for name, (make, dim, target) in CASES.items():
        if chosen not in name:
            continue
        predict, point = make()
        start = time.perf_counter()
        diagnosis = diagnose(predict, point)
        taken = time.perf_counter() - start
        assert isinstance(diagnosis, Diagnosis)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        right = "" if diagnosis.dim == dim else f"  EXPECTED {dim}"
        print(
            f"{name:48} dim {diagnosis.dim:4}  {diagnosis.algebra:12} {taken:6.1f} s of {target}  {memory:4.1f} GB{right}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:2])
