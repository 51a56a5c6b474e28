"""Points as flat vectors and back, item weights, what is no point."""

import pytest
import torch

from manifoldid.points import (
    as_point,
    blocks_of,
    cast_like,
    compute_point,
    concrete,
    detached,
    event_numel,
    flat_weights,
    flatten,
    is_dict,
    item_weights,
    like_point,
    map_blocks,
    unflatten,
)

BATCHES = ((), (3,), (2, 3))


def random(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def points(*batch):
    """Points of every kind, each with its batch dimensions."""
    return {
        "vector": random(*batch, 5),
        "matrix": random(*batch, 2, 3),
        "complex": random(*batch, 4, dtype=torch.complex128),
        "dict": {"a": random(*batch, 5), "b": random(*batch, 2, 3), "number": random(*batch)},
        "with a complex block": {"z": random(*batch, 2, dtype=torch.complex128), "a": random(*batch, 3)},
    }


def same(x, y):
    assert is_dict(x) == is_dict(y)
    assert list(blocks_of(x)) == list(blocks_of(y))
    return all(torch.equal(t, blocks_of(y)[name]) for name, t in blocks_of(x).items())


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("kind", points())
def test_unflatten_is_the_inverse_of_flatten(kind, batch):
    x = points(*batch)[kind]
    vector = flatten(x, len(batch))
    assert vector.shape == (*batch, event_numel(x, len(batch)))
    assert same(unflatten(vector, x, len(batch)), x)


def test_flatten_keeps_the_order_of_the_blocks_and_the_length_of_vectors():
    x = points(3)["with a complex block"]
    square = x["z"].abs().square().sum(-1) + x["a"].square().sum(-1)
    torch.testing.assert_close(flatten(x, 1).square().sum(-1), square)
    assert torch.equal(flatten(x, 1)[:, -3:], x["a"])


def test_flatten_repeats_blocks_that_have_no_batch():
    x = {"a": random(4, 2), "b": random(1, 3)}
    assert torch.equal(flatten(x, 1)[:, 2:], x["b"].expand(4, 3))


def test_unflatten_takes_the_batch_of_the_vector():
    assert unflatten(random(7, 6), random(2, 3), 0).shape == (7, 2, 3)


def test_a_tensor_is_a_point_with_one_block():
    x = random(3)
    assert list(blocks_of(x)) == [""]
    assert like_point(blocks_of(x), x) is x
    assert same(like_point({"a": x}, {"a": x}), {"a": x})


def test_mappings_of_parameters_are_dict_points():
    parameters = torch.nn.ParameterDict({"a": torch.nn.Parameter(random(2)), "b": torch.nn.Parameter(random(3))})
    x = as_point(parameters)
    assert is_dict(parameters)
    assert x["a"] is parameters["a"]
    assert type(detached(x)["a"]) is torch.Tensor
    assert not detached(x)["a"].requires_grad
    assert flatten(x).shape == (5,)


def test_map_blocks_pairs_blocks_by_name_in_any_order():
    x, y = {"a": random(2), "b": random(3)}, {"b": random(3), "a": random(2)}
    assert same(map_blocks(torch.add, x, y), {"a": 2 * x["a"], "b": 2 * x["b"]})


def test_half_precision_is_widened_and_everything_else_is_kept():
    x = {
        name: random(2).to(getattr(torch, name)) for name in ("float16", "bfloat16", "float32", "float64", "complex64")
    }
    wide = compute_point(x)
    assert [t.dtype for t in wide.values()] == [*[torch.float32] * 3, torch.float64, torch.complex64]
    assert same(cast_like(wide, x), x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(3, dtype=torch.long), "`point` must be a floating tensor, got dtype torch.int64; convert it"),
        ({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bool)}, r"`point\['b'\]` must be a floating tensor"),
        ([1.0], "`point` must be a tensor or a dict of tensors, got list"),
        ({"a": 1.0}, r"`point\['a'\]` must be a tensor or a dict of tensors, got float"),
        (None, "`point` must be a tensor or a dict of tensors, got NoneType"),
    ],
)
def test_what_is_no_point_is_named(x, message):
    with pytest.raises(TypeError, match=message):
        as_point(x)


# ------------------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_weights_are_normalised_to_mean_one_per_block(batch):
    x = {"a": random(*batch, 4), "b": random(*batch, 3, 2)}
    weights = {"a": torch.tensor([1.0, 2, 3, 4]), "b": torch.tensor([1.0, 0, 2])}
    w = flat_weights(weights, x, len(batch))
    expected = torch.tensor([0.4, 0.8, 1.2, 1.6, 1, 1, 0, 0, 2, 2]).double()
    torch.testing.assert_close(w, expected)
    torch.testing.assert_close(flat_weights({"a": weights["a"]}, x, len(batch))[4:], torch.ones(6).double())
    torch.testing.assert_close(flat_weights({k: 1e6 * v for k, v in weights.items()}, x, len(batch)), expected)


def test_weights_of_complex_items_count_both_parts():
    w = flat_weights(torch.tensor([1.0, 3.0]), random(2, dtype=torch.complex128))
    torch.testing.assert_close(w, torch.tensor([0.5, 0.5, 1.5, 1.5]).double())


def test_weights_follow_the_point_and_are_not_changed():
    weights = torch.tensor([1.0, 3.0], dtype=torch.float16)
    w = item_weights(weights, torch.Size([2]), random(2))
    assert w.dtype == torch.float64
    assert weights.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("weights", "x", "message"),
    [
        (torch.ones(3), random(4), r"`weights` must have shape \(4,\), one weight per item, got \(3,\)"),
        (-torch.ones(4), random(4), "`weights` must be finite and not negative"),
        (torch.full((4,), torch.inf), random(4), "`weights` must be finite and not negative"),
        (torch.zeros(4), random(4), "`weights` are all zero"),
        (torch.ones(4), {"a": random(4), "b": random(4)}, "`weights` of a dict point must be a dict over its blocks"),
        ({"c": torch.ones(4)}, {"a": random(4)}, r"`weights` names blocks that the point does not have: \['c'\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(weights, x, message):
    with pytest.raises(ValueError, match=message):
        flat_weights(weights, x)


# ------------------------------------------------------------------------------------------------------------- values


def test_values_are_looked_at_only_where_they_exist():
    seen = {}

    def note(name):
        def function(t):
            seen[name] = concrete(t)
            return t.sum()

        return function

    x = random(3)
    note("eager")(x)
    torch.func.grad(note("grad"))(x)
    torch.func.vmap(note("vmap"))(x[None])
    torch.func.vmap(torch.func.grad(note("grad in vmap")))(x[None])
    note("meta")(x.to("meta"))
    with torch._subclasses.FakeTensorMode() as mode:
        note("fake")(mode.from_tensor(x))
    assert seen == {"eager": True, "grad": True, "vmap": False, "grad in vmap": False, "meta": False, "fake": False}
