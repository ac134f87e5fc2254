import numpy as np

from hihlandmark.calibration import Calibration
from hihlandmark.training.calibrate import _fit_logistic


def scores(calibration: Calibration, variance: float, mass: float, interocular: float) -> float:
    covariance = np.eye(2)[None, None] * variance
    return float(calibration.scores(covariance, np.array([[mass]]), np.array([interocular]))[0, 0])


def test_a_wider_heatmap_scores_lower() -> None:
    calibration = Calibration()
    assert scores(calibration, 1, 0.9, 60) > scores(calibration, 25, 0.9, 60)
    assert scores(calibration, 4, 0.9, 60) > scores(calibration, 4, 0.3, 60)


def test_scores_do_not_depend_on_the_size_of_the_face() -> None:
    calibration = Calibration(bias=-2, spread=-1.5, mass=0.5)
    assert np.isclose(scores(calibration, 4, 0.8, 60), scores(calibration, 4 * 9, 0.8, 180))


def test_extreme_statistics_give_probabilities() -> None:
    calibration = Calibration(bias=3, spread=-2, mass=1)
    for variance, mass in ((0.0, 1.0), (1e9, 0.0)):
        assert 0 <= scores(calibration, variance, mass, 60) <= 1


def test_calibration_survives_the_card() -> None:
    calibration = Calibration(bias=-3.1, spread=-1.2, mass=0.4, covariance_scale=1.7)
    assert Calibration.from_dict(calibration.to_dict()) == calibration


def test_the_fit_finds_the_weights_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    features = np.concatenate([np.ones((20000, 1)), rng.standard_normal((20000, 2))], axis=1)
    truth = np.array([0.5, -1.5, 0.8])
    near = rng.random(20000) < 1 / (1 + np.exp(-features @ truth))
    assert np.allclose(_fit_logistic(features, near), truth, atol=0.1)
