"""Changes of predictions against loops over images and scipy."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from rfatlas.ablation import paired


def predictions(random, *shape: int) -> SimpleNamespace:
    return SimpleNamespace(
        prediction=random.integers(0, 3, shape),
        in_top5=random.random(shape) < 0.8,
        loss=random.exponential(1, shape).astype(np.float32),
    )


@pytest.mark.parametrize("own_reference", [False, True])
def test_changes_are_those_of_a_loop_over_images(own_reference):
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 60)
    found = predictions(random, 4, 60)
    reference = predictions(random, *((4, 60) if own_reference else (60,)))
    result = paired.changes(found, reference, labels, seed=1)
    assert tuple(result) == paired.COLUMNS
    for row in range(4):
        lost = won = top5 = 0
        losses = []
        for image, label in enumerate(labels):
            at = (row, image) if own_reference else image
            before, after = (
                reference.prediction[at] == label,
                found.prediction[row, image] == label,
            )
            lost, won = lost + (before and not after), won + (after and not before)
            top5 += int(found.in_top5[row, image]) - int(reference.in_top5[at])
            losses.append(float(found.loss[row, image]) - float(reference.loss[at]))
        assert result["right_to_wrong"][row] == lost and result["wrong_to_right"][row] == won
        assert result["n_flips"][row] == lost + won
        assert result["delta_top1"][row] == pytest.approx((won - lost) / 60)
        assert result["delta_top5"][row] == pytest.approx(top5 / 60)
        assert result["delta_loss"][row] == pytest.approx(np.mean(losses))
        assert result["p"][row] == pytest.approx(stats.binomtest(int(lost), int(lost + won)).pvalue)
        # About two standard errors to either side.
        error = stats.sem(losses)
        for end, sign in (("lo", -1), ("hi", 1)):
            assert result[f"delta_loss_{end}"][row] == pytest.approx(
                np.mean(losses) + sign * 1.96 * error, abs=0.4 * error
            )
            assert sign * (result[f"delta_top1_{end}"][row] - result["delta_top1"][row]) > 0


def test_nothing_changes_where_the_predictions_are_the_same():
    random = np.random.default_rng(0)
    reference = predictions(random, 40)
    same = SimpleNamespace(**{name: value[None] for name, value in vars(reference).items()})
    result = paired.changes(same, reference, random.integers(0, 3, 40))
    assert result["p"] == 1
    for name in ("delta_top1", "delta_top5", "delta_loss", "delta_loss_lo", "delta_loss_hi"):
        assert result[name] == 0
    assert result["delta_top1_lo"] <= 0 <= result["delta_top1_hi"]
