"""Photos of every format, a painted person found in them, and one clear sentence for each bad photo."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from aa.body import load_body
from aa.detect import detect
from aa.errors import InputError
from aa.photo import load_image, load_photo

SIZE = 640


def paint(body, span, focus, turn=0.0, size=SIZE):
    """The body seen from the front, turned by `turn` degrees, painted from back to front. (size, size, 3) uint8 and (V, 2) px."""
    rotvecs = torch.zeros(len(body.parents), 3)
    for side, sign in (("L", 1), ("R", -1)):
        rotvecs[body.joint(f"upperarm01.{side}"), 1] = sign * 0.5
    rotvecs[0, 2] = np.radians(turn)
    v = body.pose(None, rotvecs)[0].numpy()
    xy = np.stack([v[:, 0] / span + 0.5, (focus - v[:, 2]) / span + 0.5], 1) * size
    tri = body.faces.numpy()
    hidden = set(body.region_faces("lash", "hair", "tights", "teeth", "tongue").tolist())
    colours = np.tile(np.float32([205, 160, 135]), (len(tri), 1))
    for names, colour in (
        (("torso", "upperarm", "leg"), (60, 80, 130)),
        (("lips",), (165, 80, 80)),
        (("scalp",), (50, 35, 25)),
    ):
        colours[body.region_faces(*names)] = colour
    eyes = body.region_vertices("eye")
    middle = body.v_template[body.faces].mean(1) - body.v_template[eyes].mean(0)
    brow = (abs(middle[:, 2] - 0.021) < 0.004) & (abs(abs(middle[:, 0]) - 0.029) < 0.018) & (middle[:, 1] < 0.02)
    colours[brow] = (60, 40, 30)
    for left in (True, False):
        ball = eyes[(body.v_template[eyes, 0] > 0) == left]
        centre = body.v_template[ball].mean(0)
        ids = body.region_faces("eye")
        ids = ids[(body.v_template[body.faces[ids]].mean(1)[:, 0] > 0) == left]
        ray = body.v_template[body.faces[ids]].mean(1) - centre
        angle = torch.rad2deg(torch.acos((-ray[:, 1] / ray.norm(dim=1)).clamp(-1, 1))).numpy()
        colours[ids] = np.where(angle[:, None] < 13, 15, np.where(angle[:, None] < 30, (70, 45, 30), (235, 235, 235)))
    normal = np.cross(v[tri[:, 1]] - v[tri[:, 0]], v[tri[:, 2]] - v[tri[:, 0]])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    shade = 0.45 + 0.55 * np.clip(normal @ np.array([0.3, -0.8, 0.5]), 0, 1)
    image = np.full((size, size, 3), (190, 200, 205), np.uint8)
    order = np.argsort(-v[tri, 1].mean(1))
    for f in order:
        if normal[f, 1] < 0.05 and f not in hidden:
            cv2.fillConvexPoly(image, np.round(xy[tri[f]] * 16).astype(np.int32), (colours[f] * shade[f]).tolist(), cv2.LINE_AA, 4)
    return image, xy


@pytest.fixture(scope="module")
def body():
    return load_body()


@pytest.fixture(scope="module")
def portrait(body):
    return paint(body, 0.9, float(body.joint_template[body.joint("head"), 2]) - 0.15)


@pytest.fixture(scope="module")
def person(portrait):
    return detect(portrait[0])


def save(tmp_path, name, picture, **options):
    Image.fromarray(picture).save(tmp_path / name, **options)
    return tmp_path / name


def pattern(h=600, w=520):
    y, x = np.mgrid[:h, :w]
    return np.stack([x * 255 // w, y * 255 // h, 0 * x + 90], -1).astype(np.uint8)


def test_formats_are_read_by_content(tmp_path):
    for name, options in (("a.png", {}), ("b.jpg", {"format": "WEBP", "lossless": True}), ("c.bmp", {})):
        image = load_image(save(tmp_path, name, pattern(), **options))
        np.testing.assert_array_equal(image, pattern())


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show
    image = load_image(save(tmp_path, "turned.png", pattern(), exif=exif))
    np.testing.assert_array_equal(image, np.rot90(pattern(), -1))


def test_grey_palette_16_bit_and_alpha(tmp_path):
    grey = pattern()[..., 0]
    assert np.array_equal(load_image(save(tmp_path, "g.png", grey)), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(load_image(save(tmp_path, "h.png", grey.astype(np.uint16) * 257)), np.repeat(grey[..., None], 3, 2))
    Image.fromarray(pattern()).quantize(64).save(tmp_path / "p.png")
    assert np.abs(load_image(tmp_path / "p.png").astype(int) - pattern()).mean() < 12
    rgba = np.dstack([pattern(), np.full(pattern().shape[:2], 255, np.uint8)])
    rgba[:100, :, 3] = 0
    photo = load_photo(save(tmp_path, "t.png", rgba))
    assert (photo.image[:100] == 255).all()
    assert np.array_equal(photo.image[100:], pattern()[100:])
    assert (photo.alpha[:100] == 0).all()
    assert (photo.alpha[100:] == 1).all()


def test_sizes_are_brought_into_range():
    assert load_photo(pattern(3000, 1500)).image.shape == (1536, 768, 3)
    small = load_photo(pattern(200, 100))
    assert small.image.shape == (768, 384, 3)
    assert small.scale == pytest.approx(3.84)
    assert load_photo(pattern(600, 520)).scale == 1


def test_files_that_are_no_photo(tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    whole = save(tmp_path, "whole.png", np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name, word in (("text.jpg", "cannot be read"), ("empty.png", "empty"), ("cut.png", "cannot"), ("none.png", "no photo")):
        with pytest.raises(InputError, match=word):
            load_image(tmp_path / name)
    with pytest.raises(InputError, match="only 20 x 10"):
        load_image(pattern(10, 20))
    with pytest.raises(InputError, match="shape"):
        load_image(np.zeros((5, 5, 2), np.uint8))


def test_photos_without_a_person():
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)
    for image in (np.full((512, 512, 3), 128, np.uint8), noise):
        with pytest.raises(InputError, match="No person"):
            detect(image)


def test_person_of_a_portrait(portrait, person, body):
    image, xy = portrait
    assert person.face.shape == (478, 2)
    assert person.mask.shape == image.shape[:2]
    for index, side in ((473, 1), (468, -1)):  # pupils: the foremost points of the eyeballs
        ball = [i for i in body.region_vertices("eye").tolist() if body.v_template[i, 0] * side > 0]
        front = xy[min(ball, key=lambda i: float(body.v_template[i, 1]))]
        assert np.linalg.norm(person.face[index] - front) < 0.12 * person.eye_distance
    assert abs(person.yaw) < 6
    left, right = person.pose3d[11], person.pose3d[12]
    assert left[0] > right[0]  # left is +x
    assert person.pose3d[0, 2] > left[2] > 0  # up is +z
    assert person.pose2d[11, 0] > person.pose2d[12, 0]
    shown = (np.abs(image.astype(int) - (190, 200, 205)).sum(-1) > 20).astype(float)
    assert np.minimum(shown, person.mask).sum() / np.maximum(shown, person.mask).sum() > 0.93


def test_detection_is_repeatable(portrait, person):
    again = detect(portrait[0])
    np.testing.assert_array_equal(again.face, person.face)
    np.testing.assert_array_equal(again.mask, person.mask)


def test_alpha_of_a_cut_out_is_the_mask(portrait):
    alpha = (np.abs(portrait[0].astype(int) - (190, 200, 205)).sum(-1) > 20).astype(np.uint8) * 255
    found = detect(np.dstack([portrait[0], alpha]))
    assert np.abs(found.mask - alpha / 255).mean() < 0.01


def test_the_largest_of_two_people_is_used(body):
    height = float(body.joint_template[body.joint("head"), 2])
    near, _ = paint(body, 1.2, height - 0.3)
    far, _ = paint(body, 1.9, height - 0.65)
    found = detect(np.concatenate([far, near], 1))
    assert any("2 faces" in notice for notice in found.notices)
    assert found.face[:, 0].min() > SIZE
    assert found.mask[:, : SIZE - 60].mean() < 0.01
    assert found.mask[:, SIZE:].mean() > 0.15


def test_a_small_or_turned_face_is_refused(body):
    height = float(body.joint_template[body.joint("head"), 2])
    with pytest.raises(InputError, match="too small"):
        detect(paint(body, 2.9, height - 0.7)[0])
    for turn in (80, 180):
        with pytest.raises(InputError, match=r"turned away"):
            detect(paint(body, 1.2, height - 0.3, turn)[0])


def test_a_photo_on_its_side_or_upside_down_is_turned(portrait, person):
    for k in (1, 2, 3):
        found = detect(np.ascontiguousarray(np.rot90(portrait[0], k)))
        assert any("was turned" in notice for notice in found.notices)
        assert found.image.shape == portrait[0].shape
        assert np.abs(found.face - person.face).max() < 0.1 * person.eye_distance


def test_a_head_cut_off_is_refused_and_a_cropped_one_noticed(portrait, person):
    top, bottom = person.face[:, 1].min(), person.face[:, 1].max()
    height = bottom - top
    with pytest.raises(InputError, match="cut off"):
        detect(portrait[0][int(top + 0.25 * height) :])
    with pytest.raises(InputError, match=r"cut off|no face"):
        detect(portrait[0][:, int(person.face[1, 0]) :])
    with pytest.raises(InputError, match=r"no face|No person"):
        detect(portrait[0][int(bottom + 5) :])
    found = detect(portrait[0][int(top) :])
    assert any("top of the head" in notice for notice in found.notices)


def worsened(image, person, how):
    """The photo (H, W, 3) spoilt in one way."""
    face = person.face
    if how == "dark":
        return (image * 0.25).astype(np.uint8)
    if how == "grey":
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if how == "blurred":
        return cv2.GaussianBlur(image, (0, 0), 5)
    if how == "sunglasses":
        out = image.copy()
        for eye in ((33, 133, 159, 145), (263, 362, 386, 374)):
            x, y = face[list(eye)].mean(0)
            cv2.ellipse(out, (int(x), int(y)), [int(k * person.eye_distance) for k in (0.42, 0.3)], 0, 0, 360, (15, 15, 18), -1)
        return out
    if how == "mask":
        out = image.copy()
        around = face[[234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 5]]
        cv2.fillConvexPoly(out, cv2.convexHull(around.astype(np.int32)), (120, 170, 200))
        return out
    if how == "stretched":
        return cv2.resize(image, None, fx=1.4, fy=0.8, interpolation=cv2.INTER_AREA)
    if how == "night":
        return (image * 0.05).astype(np.uint8)
    return (image.astype(float) * 3 + 150).clip(0, 255).astype(np.uint8)  # overexposed


@pytest.mark.parametrize(
    ("how", "word"), [("dark", "is dark"), ("grey", "no colour"), ("blurred", "blurred"), ("sunglasses", "eyes seem to be covered")]
)
def test_a_poor_photo_is_used_and_its_fault_said(portrait, person, how, word):
    assert not any(word in notice for notice in person.notices)
    assert any(word in notice for notice in detect(worsened(portrait[0], person, how)).notices)


@pytest.mark.parametrize(
    ("how", "word"),
    [("mask", "mouth seems to be covered"), ("night", "too dark"), ("stretched", "stretched"), ("white", "overexposed|No person")],
)
def test_a_hopeless_photo_is_refused(portrait, person, how, word):
    with pytest.raises(InputError, match=word):
        detect(worsened(portrait[0], person, how))


def test_files_that_are_no_photos_are_named(tmp_path):
    for name, data, word in (
        ("a.heic", b"\0\0\0\x18ftypheic" + bytes(500), "HEIC"), ("a.jpg", b"<!DOCTYPE html>", "web page"),
        ("b.jpg", b"%PDF-1.4" + bytes(99), "PDF"), ("c.png", b"\0\0\0\x18ftypisom" + bytes(99), "film"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=word) as error:
            load_image(tmp_path / name)
        assert str(tmp_path) not in str(error.value)
    whole = save(tmp_path, "w.jpg", pattern()).read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        load_image(tmp_path / "half.jpg")


def test_odd_but_readable_photos(tmp_path):
    picture = Image.fromarray(pattern())
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(load_image(tmp_path / "cmyk.jpg").astype(int) - pattern()).mean() < 4
    for name in ("moving.gif", "moving.webp"):
        picture.save(tmp_path / name, save_all=True, append_images=[Image.fromarray(pattern()[::-1])], duration=100)
        photo = load_photo(tmp_path / name)
        assert "2 pictures" in photo.notices[0]
        assert np.abs(photo.image.astype(int) - pattern()).mean() < 8
    large = picture.resize((5200, 6000))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("large.jpg", "large.png"):
        large.save(tmp_path / name, exif=exif, **({"compress_level": 1} if name.endswith("png") else {}))
        photo = load_photo(tmp_path / name)
        assert photo.image.shape[1] == 1536
        assert photo.scale == pytest.approx(1536 / 6000)
        turned = cv2.resize(np.rot90(pattern(), -1), photo.image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        assert np.abs(photo.image.astype(int) - turned).mean() < 3
    with pytest.raises(InputError, match="transparent all over"):
        load_image(np.dstack([pattern(), np.zeros_like(pattern()[..., 0])]))
