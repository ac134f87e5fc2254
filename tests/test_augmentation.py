from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hihlandmark import ConfigurationError
from hihlandmark.crop import crop_matrix, transform_points
from hihlandmark.datasets.augmentation import (
    NO_AUGMENTATION,
    Augmentation,
    generator,
    mirror_face,
)
from hihlandmark.layouts import FIVE, WFLW98

LOOKS = ("color", "gray", "shrink", "blur", "motion_blur", "jpeg", "patch", "occlusion")
SQUARE = np.array([40.0, 30.0, 50.0, 0.1])


def image_of(height: int = 60, width: int = 80) -> NDArray[np.uint8]:
    """Smooth colors: noise would not survive any change of look."""
    y, x = np.mgrid[:height, :width]
    channels = [128 + 100 * np.sin(x / 9), 128 + 100 * np.cos(y / 7), 100 + x + y * 0.5]
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


def dot(size: int, x: int, y: int) -> NDArray[np.uint8]:
    image = np.zeros((size, size, 3), np.uint8)
    image[y - 1 : y + 2, x - 1 : x + 2] = 255
    return image


def centroid(image: NDArray[Any]) -> NDArray[np.float64]:
    weight = image.sum(axis=2, dtype=float)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def squares(augmentation: Augmentation, number: int = 2000) -> NDArray[np.float64]:
    return np.array([augmentation.square(SQUARE, generator(0, i)) for i in range(number)])


@given(st.integers(0, 10_000), st.sampled_from(["normal", "uniform"]))
def test_the_map_to_the_crop_is_a_similarity(seed: int, distribution: Any) -> None:
    augmentation = Augmentation(distribution=distribution, rotation_degrees=90, scale=0.5)
    square = augmentation.square(SQUARE, generator(seed))
    linear = crop_matrix(square, 64)[:, :2]
    scale = np.sqrt(np.linalg.det(linear))
    assert scale == pytest.approx(64 / square[2])
    np.testing.assert_allclose(linear @ linear.T, scale**2 * np.eye(2), atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_points_stay_on_their_feature(seed: int) -> None:
    """A white dot is found at its point, flipped, rotated and blurred or not."""
    augmentation = replace(
        NO_AUGMENTATION, rotation_degrees=20, scale=0.1, shift=0.03, flip=0.5, motion_blur=1, blur=1
    )
    place = np.array([[58.0, 45.0]])
    crop, points, *_ = augmentation.crop(
        dot(100, 58, 45), place, np.array([0]), np.array([50, 50, 70, 0.0]), 96, generator(seed)
    )
    np.testing.assert_allclose(centroid(crop), points[0], atol=0.35)


def test_the_same_seed_gives_the_same_crop_and_another_epoch_another() -> None:
    everything = Augmentation(**dict.fromkeys((*LOOKS, "flip"), 1.0))
    points = np.array([[30.0, 20.0], [45.0, 22.0]])

    def crop(epoch: int) -> Any:
        return everything.crop(
            image_of(),
            points,
            np.array([1, 0]),
            SQUARE,
            32,
            generator(7, 0, 3, epoch),
            image_of(50, 50),
        )

    first, again, later = crop(0), crop(0), crop(1)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.points, again.points)
    assert not np.array_equal(first.image, later.image)
    assert not np.allclose(first.points, later.points)


def test_without_augmentation_the_pixels_are_identical() -> None:
    """Also fails when a new field is missing in `NO_AUGMENTATION`."""
    for seed in range(50):
        crop = image_of(32, 32)
        changed = NO_AUGMENTATION.look(crop, generator(seed), image_of())
        assert np.array_equal(changed, image_of(32, 32))
        assert np.array_equal(NO_AUGMENTATION.square(SQUARE, generator(seed)), SQUARE)
        points = np.array([[30.0, 20.0]])
        sample = NO_AUGMENTATION.crop(
            image_of(), points, np.array([0]), SQUARE, 32, generator(seed)
        )
        assert not sample.flipped


@pytest.mark.parametrize("name", LOOKS)
def test_each_change_acts_alone_and_leaves_its_input_alone(name: str) -> None:
    crop = image_of(64, 64)
    other = 255 - image_of(64, 64)
    changer = replace(NO_AUGMENTATION, **{name: 1.0})
    changed = [changer.look(crop, generator(seed), other) for seed in range(5)]
    assert not all(np.array_equal(each, crop) for each in changed)
    assert np.array_equal(crop, image_of(64, 64))
    if name == "gray":
        assert np.ptp(changed[0], axis=2).max() == 0


def test_a_patch_shows_the_other_image_and_needs_one() -> None:
    patches = replace(NO_AUGMENTATION, patch=1, occlusion_side=(0.25, 0.5))
    crop, other = np.zeros((64, 64, 3), np.uint8), np.full((40, 90, 3), 200, np.uint8)
    for seed in range(20):
        covered = patches.look(crop, generator(seed), other)
        assert set(np.unique(covered)) == {0, 200}
        # An ellipse covers pi/4 of its rectangle.
        assert 16**2 * 0.7 < (covered[..., 0] > 0).sum() <= 32**2
        assert np.array_equal(patches.look(crop, generator(seed), None), crop)


def test_the_other_image_is_only_read_for_a_patch() -> None:
    reads = []

    def other() -> NDArray[np.uint8]:
        reads.append(1)
        return image_of()

    for seed in range(200):
        replace(NO_AUGMENTATION, patch=0.2).look(image_of(20, 20), generator(seed), other)
    assert 15 < len(reads) < 70


def test_occlusions_have_the_sides_asked_for() -> None:
    augmentation = replace(NO_AUGMENTATION, occlusion=1, occlusion_side=(0.25, 0.5))
    crop = image_of(64, 64)
    for seed in range(50):
        changed = (augmentation.look(crop, generator(seed)) != crop).any(axis=2)
        rows, columns = np.nonzero(changed)
        for extent in (np.ptp(rows) + 1, np.ptp(columns) + 1):
            assert 64 * 0.25 - 2 <= extent <= 64 * 0.5


def test_uniform_spreads_are_limits_and_happen_with_their_probability() -> None:
    """As in the released code of HIH: half of the samples rotated by up to 30 degrees."""
    drawn = squares(
        Augmentation(
            distribution="uniform",
            rotation_degrees=30,
            shift=30 / 256,
            scale=0,
            rotation_probability=0.5,
            shift_probability=0.25,
        )
    )
    angle = np.rad2deg(drawn[:, 3] - 0.1)
    assert 0.46 < (angle != 0).mean() < 0.54
    assert 29 < np.abs(angle).max() <= 30
    assert np.abs(angle[angle != 0]).mean() == pytest.approx(15, abs=1)
    moved = drawn[:, :2] != SQUARE[:2]
    assert np.array_equal(moved[:, 0], moved[:, 1])
    assert 0.21 < moved[:, 0].mean() < 0.29
    assert np.abs(drawn[:, :2] - SQUARE[:2]).max() <= 50 * 30 / 256
    assert (drawn[:, 2] == 50).all()


@given(st.integers(0, 10_000))
def test_points_can_be_kept_inside(seed: int) -> None:
    points = np.array([[20.0, 12.0], [60.0, 48.0], [np.nan, np.nan]])
    augmentation = Augmentation(rotation_degrees=40, shift=0.2, keep_points=True)
    free = replace(augmentation, keep_points=False).square(SQUARE, generator(seed))
    kept = augmentation.square(SQUARE, generator(seed), points)
    inside = transform_points(crop_matrix(kept, 256), points[:2])
    assert inside.min() >= -0.5
    assert inside.max() <= 255.5
    if kept[2] != free[2]:
        assert min(inside.min() + 0.5, 255.5 - inside.max()) == pytest.approx(8)
    assert np.array_equal(kept[[0, 1, 3]], free[[0, 1, 3]])


def test_a_mirrored_face_has_its_points_on_the_right_features() -> None:
    image = np.zeros((50, 60, 3), np.uint8)
    points = np.array([[10.0, 20.0], [40.0, 22.0], [27.0, 30.0], [15.0, 40.0], [np.nan, np.nan]])
    for index, (x, y) in enumerate(points[:4].astype(int)):
        image[y, x] = 50 * (index + 1)
    mirrored, moved = mirror_face(image, points, FIVE.mirror)
    for index, (x, y) in enumerate(moved):
        if not np.isnan(x):
            source = FIVE.mirror[index]
            assert mirrored[int(y), int(x), 0] == 50 * (source + 1)
    assert np.isnan(moved[3]).all()
    with pytest.raises(ConfigurationError, match=r"98|\(5, 2\)"):
        mirror_face(image, points, WFLW98.mirror)
    back, points_back = mirror_face(mirrored, moved, FIVE.mirror)
    assert np.array_equal(back, image)
    np.testing.assert_allclose(points_back, points)


def test_a_flipped_crop_is_the_mirror_image_of_the_crop() -> None:
    points = WFLW98.mean_shape * 30 + (40, 30)
    arguments = (image_of(), points, WFLW98.mirror, SQUARE, 48)
    plain = NO_AUGMENTATION.crop(*arguments, generator(0))
    flipped = replace(NO_AUGMENTATION, flip=1).crop(*arguments, generator(0))
    assert flipped.flipped
    assert np.array_equal(flipped.image, plain.image[:, ::-1])
    np.testing.assert_allclose(flipped.points[:, 0], 47 - plain.points[WFLW98.mirror, 0])


PROBABILITIES = {field.name for field in fields(Augmentation)} - {
    "distribution",
    "rotation_degrees",
    "scale",
    "shift",
    "blur_sigma",
    "occlusion_side",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in sorted(PROBABILITIES) for value in (1.01, -0.1)],
        ("patch", float("nan")),
        ("rotation_degrees", -1),
        ("shift", float("inf")),
        ("distribution", "gaussian"),
        ("blur_sigma", (0.2, 0.1)),
        ("occlusion_side", (0.1, 1.5)),
    ],
)
def test_values_out_of_range_are_named(name: str, value: Any) -> None:
    """A new field is a probability unless it is listed as something else."""
    with pytest.raises(ConfigurationError, match=name):
        Augmentation(**{name: value})
