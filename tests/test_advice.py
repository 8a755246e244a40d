"""Advice on a photo: a good one passes, each fault is found by its own check and by few others."""

import cv2
import numpy as np
import pytest

from aa.advice import advise, background_contrast, check_photo
from aa.body import ASSETS
from aa.detect import detect
from aa.photo import load_image


@pytest.fixture(scope="module")
def image():
    return load_image(ASSETS / "portraits" / "ada.png")


@pytest.fixture(scope="module")
def person(image):
    return detect(image)


def failed(image):
    return {a.name for a in check_photo(image) if not a.ok}


def test_a_good_photo_passes_with_numbers(person):
    advice = advise(person)
    assert [a.name for a in advice if not a.ok] == []
    assert len({a.name for a in advice}) == len(advice) >= 10
    assert all(a.say.endswith(".") and a.measured for a in advice)


def spoilt(image, person, fault):
    """The photo with one fault."""
    middle, top = person.face[1, 0], person.face[:, 1].min()
    return {
        "light": lambda: (image * 0.3).astype(np.uint8),
        "sharpness": lambda: cv2.GaussianBlur(image, (0, 0), 5),
        "a colour photograph": lambda: cv2.cvtColor(image, cv2.COLOR_RGB2GRAY),
        "whole head": lambda: image[int(top) :],
        "size of the face": lambda: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        "even light": lambda: np.where(np.arange(image.shape[1])[:, None] < middle, 0.5 * image, image).astype(np.uint8),
        "one person": lambda: np.concatenate([image, image[:, ::-1]], 1),
    }[fault]()


FAULTS = ("light", "sharpness", "a colour photograph", "whole head", "size of the face", "even light", "one person")


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(image, person, fault):
    found = failed(spoilt(image, person, fault))
    assert fault in found
    assert len(found) <= 3


def test_a_background_like_the_person_is_found(person):
    colour = np.median(person.image[person.mask > 0.9], 0)
    hidden = np.where(person.mask[..., None] > 0.5, 0.2 * person.image + 0.8 * colour, colour).astype(np.uint8)
    assert background_contrast(person) > 3 * background_contrast(type(person)(**{**vars(person), "image": hidden}))


def test_what_is_refused_is_one_advice():
    (only,) = check_photo(np.full((300, 300, 3), 90, np.uint8))
    assert not only.ok
    assert "No person" in only.say
