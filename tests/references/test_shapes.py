"""Kendall's shape space of gorilla skulls, as the R package shapes computes it."""

import torch
from _data import printed, skulls, tensor

import manifoldid as mid

GORF = printed("gorf")
UNIT = 8**0.5  # sizes here are root mean squares over 8 landmarks, Kendall's are Frobenius norms
MANIFOLD = mid.QuotientManifold(mid.Similarity())


def test_intrinsic_mean_shape_and_variance_are_those_of_shapes():
    shapes = skulls()
    mean = MANIFOLD.mean(shapes)
    variance = (MANIFOLD.dist(mean.expand_as(shapes), shapes) / UNIT).square().sum()
    assert abs(float(variance) - GORF["frechet_var"]) < 1e-9
    theirs = tensor(GORF["frechet_mshape"])
    # they stop at a change of 1e-5 or so, and print the mean at size 1 in a rotation of their own
    assert float(MANIFOLD.dist(mean, theirs)) / UNIT < 1e-4


def test_distances_of_shapes_are_riemannian():
    shapes = skulls()[:5]
    distances = MANIFOLD.dist(shapes[:, None].expand(5, 5, 8, 2), shapes.expand(5, 5, 8, 2)) / UNIT
    torch.testing.assert_close(distances, tensor(GORF["riemdist_first5"]), rtol=0, atol=1e-8)


def test_size_that_a_section_removes_is_the_centroid_size():
    frame = mid.Section(mid.Similarity()).frame(skulls())
    torch.testing.assert_close(frame[:, 0].exp() * UNIT, tensor(GORF["size"]), rtol=1e-10, atol=0)


def test_an_ensemble_of_shapes_is_aligned_to_the_mean_shape():
    shapes = skulls()
    ensemble = mid.Ensemble(shapes, mid.Similarity())
    assert float(MANIFOLD.dist(ensemble.mean(), MANIFOLD.mean(shapes))) < 1e-10
    # of the aligned configurations: the tangent-space spread, to second order
    rms = ensemble.std().square().sum().sqrt() / UNIT
    assert abs(float(rms) - (GORF["frechet_var"] / 29) ** 0.5) < 1e-3
