"""The background with the person painted out, against known rooms."""

import cv2
import numpy as np

from aa.plate import clean_plate, grain, membrane


def room(h=240, w=200, seed=0):
    """A wall with a dark board and a floor, a little grainy: (H, W, 3) uint8 and the same without grain."""
    image = np.full((h, w, 3), (190, 180, 170), np.float32)
    image *= np.linspace(0.9, 1.1, w)[None, :, None]
    image[110:125] = (90, 40, 30)
    image[190:] = (110, 80, 60)
    noisy = image + np.random.default_rng(seed).normal(0, 3, image.shape)
    return noisy.clip(0, 255).astype(np.uint8), image


def person(shape):
    mask = np.zeros(shape, np.float32)
    cv2.circle(mask, (100, 60), 25, 1.0, -1)
    cv2.rectangle(mask, (70, 85), (130, 240), 1.0, -1)
    return cv2.GaussianBlur(mask, (0, 0), 1.5)


def test_lines_go_on_behind_the_person():
    photo, true = room()
    mask = person(photo.shape[:2])
    image = (photo * (1 - mask[..., None]) + np.array([250, 0, 0]) * mask[..., None]).astype(np.uint8)
    plate = clean_plate(image, mask)
    hidden = mask > 0.01
    error = np.abs(plate.astype(float) - true)[hidden]
    assert error.mean() < 8
    assert np.abs(plate[100:135, 100].astype(float) - true[100:135, 100]).mean() < 25  # the board is there
    assert plate.dtype == np.uint8
    assert (plate == clean_plate(image, mask)).all()


def test_no_colour_of_the_person_bleeds_in():
    """Far from the person the photo is kept; near it nothing is redder than the room."""
    photo, true = room()
    mask = person(photo.shape[:2])
    halo = cv2.GaussianBlur(mask, (0, 0), 1.0)[..., None]  # wider than the mask, as cameras blur
    image = (photo * (1 - halo) + np.array([255, 0, 0]) * halo).astype(np.uint8)
    plate = clean_plate(image, mask).astype(float)
    redness = (plate[..., 0] - plate[..., 1]) - (true[..., 0] - true[..., 1])
    assert redness.max() < 40
    assert redness[mask > 0.01].mean() < 5
    assert (plate[:, :30] == image[:, :30]).all()


def test_hole_has_the_grain_of_the_photo():
    photo, _ = room()
    hole = person(photo.shape[:2]) > 0.1
    fine = grain(photo.astype(np.float32), hole)
    known = photo - cv2.GaussianBlur(photo.astype(np.float32), (0, 0), 1.5)
    assert 0.5 < fine[hole].std() / known[:80, :40].std() < 1.5
    assert (fine[~hole] == 0).all()


def test_membrane_is_exact_for_a_smooth_ramp():
    x = np.linspace(0, 200, 150, dtype=np.float32)
    ramp = np.repeat(np.tile(x, (100, 1))[..., None], 3, 2)
    hole = np.zeros((100, 150), bool)
    hole[20:, 50:100] = True
    assert np.abs(membrane(np.where(hole[..., None], 0, ramp).astype(np.float32), hole) - ramp).max() < 4


def test_all_person_and_nobody():
    photo, _ = room()
    assert (clean_plate(photo, np.zeros(photo.shape[:2], np.float32)) == photo).all()
    full = clean_plate(photo, np.ones(photo.shape[:2], np.float32))
    assert (full == full[0, 0]).all()


def test_plain_backdrop_shows_no_trace_of_a_rim():
    y, x = np.mgrid[-1:1:120j, -1:1:90j]
    true = (190 - 20 * (x**2 + y**2))[..., None].repeat(3, 2)
    mask = np.zeros((120, 90), np.float32)
    mask[40:, 30:60] = 1
    photo = true.copy()
    photo[mask > 0] = (160, 30, 30)
    photo[70:74, 60:66] = (200, 140, 100)  # a finger that the mask missed
    plate = clean_plate(photo.astype(np.uint8), mask).astype(float)
    hole = mask > 0
    assert np.abs(plate - true)[hole].max() < 4
