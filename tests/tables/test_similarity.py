"""CKA, SVCCA and matched channels against direct formulas, their invariances, brute force."""

import itertools

import h5py
import numpy as np
import pytest
from scipy import linalg

from rfatlas.tables import similarity


def layers(n=60, widths=(5, 8, 3), seed=0) -> list[np.ndarray]:
    """Features with means, unequal variances, and something in common."""
    random = np.random.default_rng(seed)
    common = random.normal(0, 1, (n, 3))
    return [
        (common @ random.normal(0, 1, (3, width)) + random.normal(0, 1, (n, width)))
        * random.uniform(0.2, 4, width)
        + random.normal(0, 5, width)
        for width in widths
    ]


def orthogonal(width: int, seed: int) -> np.ndarray:
    return linalg.qr(np.random.default_rng(seed).normal(0, 1, (width, width)))[0]


def cka(x: np.ndarray, y: np.ndarray) -> float:
    return similarity.cka(similarity.Moments([x, y]), 0, 1)


def svcca(x: np.ndarray, y: np.ndarray, variance: float) -> float:
    return similarity.Canonical(similarity.Moments([x, y]), variance).svcca(0, 1)


# ---- cross products


@pytest.mark.parametrize("batch", [None, 7, 60, 1])
@pytest.mark.parametrize("tile", [1, 8, 13, 100])
def test_products_do_not_depend_on_the_batches_or_the_tiles(batch, tile):
    whole = layers()
    found = similarity.Moments(whole, batch=batch, tile=tile)
    centred = [layer - layer.mean(axis=0) for layer in whole]
    for a, b in itertools.product(range(3), repeat=2):
        np.testing.assert_allclose(found.cross(a, b), centred[a].T @ centred[b], atol=1e-9)
        assert found.squared(a, b) == pytest.approx((found.cross(a, b) ** 2).sum())
        by_image = [(p @ p) * (q @ q) for p, q in zip(centred[a], centred[b], strict=True)]
        assert found.norm_products[a, b] == pytest.approx(sum(by_image))
    np.testing.assert_allclose(found.norms, [(layer**2).sum() for layer in centred])


@pytest.mark.parametrize("tile", [1, 8, 13])
def test_every_measure_is_the_same_from_tiles(tile):
    whole = layers(widths=(5, 8, 3, 1, 6))
    one, tiled = (similarity.Moments(whole, 4, 16, size) for size in (100, tile))
    canonical = [similarity.Canonical(found) for found in (one, tiled)]
    assert list(one.pairs()) == list(itertools.combinations_with_replacement(range(5), 2))
    assert sorted(tiled.pairs()) == list(one.pairs())
    for a, b in tiled.pairs():
        for shuffled in (False, True):
            expected, found = (similarity.cka(each, a, b, shuffled) for each in (one, tiled))
            assert found == pytest.approx(expected, rel=1e-12)
            expected, found = (each.svcca(a, b, shuffled) for each in canonical)
            assert found == pytest.approx(expected, rel=1e-9)
            expected, found = (similarity.correlations(m, a, b, shuffled) for m in (one, tiled))
            np.testing.assert_allclose(found, expected, rtol=1e-9)
        expected, found = (similarity.cka_debiased(each, a, b) for each in (one, tiled))
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("tile", [1, 9, 14, 100])
def test_products_of_more_than_two_groups_are_never_held_or_made_twice(tile):
    widths = (5, 8, 3, 1, 6)
    made = []

    class Watched(similarity.Moments):
        def _products(self, first, second):
            product, shuffled = super()._products(first, second)
            made.append((first, second))
            assert max(product.shape) <= max(tile, *widths) and product.shape == shuffled.shape
            return product, shuffled

    found = Watched(layers(widths=widths), tile=tile)
    canonical = similarity.Canonical(found)
    for a, b in found.pairs():
        similarity.cka(found, a, b), similarity.cka_debiased(found, a, b)
        canonical.svcca(a, b), canonical.svcca(a, b, shuffled=True)
    groups = {first for first, _ in made}
    assert sorted(layer for group in groups for layer in group) == list(range(len(widths)))
    assert len(made) == len(set(made)) == len(groups) * (len(groups) + 1) / 2


def test_layers_are_read_from_a_file_in_single_precision(tmp_path):
    whole = [layer.astype(np.float32) for layer in layers()]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for index, layer in enumerate(whole):
            file[str(index)] = layer
        found = similarity.Moments([file[str(index)] for index in range(3)], batch=16)
        expected = similarity.Moments([layer.astype(np.float64) for layer in whole])
        for a, b in itertools.product(range(3), repeat=2):
            products = expected.cross(a, b)
            np.testing.assert_allclose(found.cross(a, b), products, rtol=1e-12, atol=1e-9)


def test_shuffled_products_pair_every_image_with_one_image():
    # Where channel i is 1 for image i alone, the product tells who was paired with whom.
    found = similarity.Moments([np.eye(6)], seed=3)
    pairs = np.round(found.cross(0, 0, shuffled=True) + 1 / 6).astype(int)
    assert (pairs.sum(axis=0) == 1).all() and (pairs.sum(axis=1) == 1).all()
    assert not np.array_equal(pairs, np.eye(6))


# ---- CKA


def test_cka_is_hsic_of_centred_kernels():
    x, y = layers()[:2]
    n = len(x)
    centre = np.eye(n) - 1 / n

    def hsic(k, m):
        return np.trace(k @ centre @ m @ centre) / (n - 1) ** 2

    k, m = x @ x.T, y @ y.T
    assert cka(x, y) == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))


def test_debiased_cka_is_that_of_the_unbiased_hsic():
    x, y = layers(n=12)[:2]
    n = len(x)

    def hsic(k, m):
        # Song et al. 2012, equation 5, on kernels without diagonal, not centred.
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        one = np.ones(n)
        middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    found = similarity.cka_debiased(similarity.Moments([x, y]), 0, 1)
    assert found == pytest.approx(expected)


def test_cka_ignores_turns_scales_and_shifts_but_not_other_mixing():
    x, y = layers()[:2]
    turned = 3.7 * x @ orthogonal(5, 1) + 11
    assert cka(turned, y) == pytest.approx(cka(x, y))
    assert cka(turned, x) == pytest.approx(1)
    stretched = x @ np.diag([1, 1, 1, 1, 9])
    assert abs(cka(stretched, y) - cka(x, y)) > 0.01
    found = [similarity.cka_debiased(similarity.Moments([z, y]), 0, 1) for z in (x, turned)]
    assert found[0] == pytest.approx(found[1])


def test_debiased_cka_of_unrelated_layers_is_about_nothing():
    random = np.random.default_rng(0)
    pairs = [random.normal(0, 1, (2, 30, 40)) for _ in range(60)]
    found = [similarity.Moments(list(pair)) for pair in pairs]
    debiased = np.array([similarity.cka_debiased(each, 0, 1) for each in found])
    assert abs(debiased.mean()) < 3 * debiased.std() / np.sqrt(60)
    assert np.mean([similarity.cka(each, 0, 1) for each in found]) > 0.4
    # Shuffled images show the bias too.
    assert np.mean([similarity.cka(each, 0, 1, True) for each in found]) > 0.4


def test_a_layer_that_never_changes_has_no_similarity():
    x = layers()[0]
    rounding = np.random.default_rng(0).uniform(-1e-8, 1e-8, (60, 4))
    found = similarity.Moments([x, 0.1 + rounding])
    assert np.isnan(similarity.cka(found, 0, 1))
    assert np.isnan(similarity.cka_debiased(found, 0, 1))
    canonical = similarity.Canonical(found)
    assert np.isnan(canonical.svcca(0, 1)) and canonical.directions(1) == 0
    assert np.isnan(similarity.cka_debiased(similarity.Moments([x[:3], x[:3]]), 0, 1))


# ---- SVCCA


@pytest.mark.parametrize("variance", [0.6, 0.9, 0.99, 1.0])
def test_svcca_is_the_mean_canonical_correlation_of_principal_components(variance):
    x, y = layers()[:2]

    def reduced(z):
        z = z - z.mean(axis=0)
        u, s, _ = np.linalg.svd(z, full_matrices=False)
        kept = next(
            k for k in range(1, len(s) + 1) if (s[:k] ** 2).sum() >= variance * (s**2).sum() - 1e-9
        )
        return u[:, :kept] * s[:kept]

    p, q = reduced(x), reduced(y)
    # Canonical correlations are the cosines of the angles between the two column spaces.
    expected = np.cos(linalg.subspace_angles(p, q))
    canonical = similarity.Canonical(similarity.Moments([x, y]), variance)
    assert (canonical.directions(0), canonical.directions(1)) == (p.shape[1], q.shape[1])
    assert canonical.svcca(0, 1) == pytest.approx(expected.mean())


def test_svcca_of_everything_ignores_any_mixing():
    x, y = layers()[:2]
    mixed = x @ np.random.default_rng(5).normal(0, 1, (5, 5)) + 4
    assert svcca(mixed, y, 1.0) == pytest.approx(svcca(x, y, 1.0))
    assert svcca(mixed, x, 1.0) == pytest.approx(1)


def test_a_direction_of_rounding_errors_is_none():
    x = layers()[0]
    doubled = np.concatenate([x, x], axis=1)
    canonical = similarity.Canonical(similarity.Moments([doubled, x]), 1.0)
    assert canonical.directions(0) == 5
    assert canonical.svcca(0, 1) == pytest.approx(1)


def test_svcca_of_shuffled_images_is_that_of_unrelated_layers():
    random = np.random.default_rng(1)
    x = random.normal(0, 1, (200, 20))
    found = similarity.Moments([x, x @ random.normal(0, 1, (20, 20))])
    canonical = similarity.Canonical(found, 1.0)
    unrelated = svcca(x, random.normal(0, 1, (200, 20)), 1.0)
    assert canonical.svcca(0, 1) == pytest.approx(1)
    assert canonical.svcca(0, 1, shuffled=True) == pytest.approx(unrelated, abs=0.05)


# ---- matched channels


def test_correlations_are_those_of_the_columns():
    x, y = layers()[:2]
    x[:, 2] = 7
    found = similarity.correlations(similarity.Moments([x, y]), 0, 1)
    for i, j in itertools.product(range(5), range(8)):
        if i == 2:
            assert np.isnan(found[i, j])
        else:
            assert found[i, j] == pytest.approx(np.corrcoef(x[:, i], y[:, j])[0, 1])


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3), (1, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_the_match_is_the_best_of_all_matches(shape, seed):
    correlation = np.random.default_rng(seed).uniform(-1, 1, shape)
    rows, columns = similarity.match(correlation)
    small = min(shape)
    every = [
        sum(correlation[i, j] for i, j in zip(chosen, order, strict=True))
        for chosen in itertools.combinations(range(shape[0]), small)
        for order in itertools.permutations(range(shape[1]), small)
    ]
    assert len(rows) == small and len(set(columns)) == small
    assert correlation[rows, columns].sum() == pytest.approx(max(every))


def test_channels_that_never_change_stay_alone():
    correlation = np.array([[0.9, np.nan, 0.1], [np.nan] * 3, [0.8, np.nan, -0.2]])
    rows, columns = similarity.match(correlation)
    assert rows.tolist() == [0, 2] and columns.tolist() == [2, 0]
    assert [len(side) for side in similarity.match(np.full((2, 3), np.nan))] == [0, 0]


def test_permuted_channels_are_found_again():
    x = layers(widths=(8,))[0]
    order = np.random.default_rng(2).permutation(8)
    found = similarity.Moments([x, 3 * x[:, order] + 1])
    _, columns = similarity.match(similarity.correlations(found, 0, 1))
    assert order[columns].tolist() == list(range(8))
