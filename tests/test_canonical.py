"""The avatar from one photo: fit, colours, binding, motion, files. One small fit of a shipped portrait serves all tests."""

from dataclasses import fields, replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from aa.body import ASSETS, REGIONS, load_body
from aa.canonical import TENSORS, Avatar, Settings, animate, fit_photo, missing, remarks, render
from aa.gaussians import load_layout
from aa.gestures import at_ease
from aa.posing import repose, unpose
from aa.refine import refine
from aa.transfer import Deformation
from aa.zbuffer import zbuffer

TINY = Settings(fit_iterations=120, align_rounds=3, detail_px=4.0, refine_iterations=12)
PORTRAIT = ASSETS / "portraits" / "ada.png"


@pytest.fixture(scope="module")
def body():
    return load_body()


@pytest.fixture(scope="module")
def avatar():
    return fit_photo(PORTRAIT, particles=10_000, size=320, progress=False, settings=TINY)


def still(body, frames=1):
    zero = torch.zeros(frames, len(body.v_template), 3)
    return Deformation(zero, zero.clone())


def actions(body, avatar, **coefficients):
    """Motion of the avatar's vertices by facial actions alone."""
    a = torch.zeros(len(body.action_names))
    for name, value in coefficients.items():
        a[body.action(name)] = value
    move = body.rest(actions=a) - body.v_template
    return Deformation(move[None], torch.zeros_like(move)[None])


def test_fit_meets_the_photo(avatar):
    r = avatar.report
    assert r["face_px_after"] < 1.5
    assert r["face_px_after"] <= r["face_px_before"]
    assert r["mask_iou"] > 0.9
    assert r["psnr_mask"] > 20
    assert r["psnr_face"] > 20
    assert set(r["seconds"]) >= {"detect", "fit", "outline", "colours", "refine", "total"}


def test_shapes_and_frame(avatar, body):
    n = len(avatar.gaussians)
    assert avatar.corners.shape == avatar.bary.shape == (n, 3)
    assert torch.allclose(avatar.bary.sum(1), torch.ones(n), atol=1e-4)
    assert max(avatar.width, avatar.height) == 320
    assert avatar.width % 2 == avatar.height % 2 == 0
    assert avatar.background.shape == (avatar.height, avatar.width, 3)
    assert avatar.background.dtype == torch.uint8
    layout = load_layout(body, 10_000)
    assert torch.equal(avatar.corners[: len(layout)], layout.corners)
    assert avatar.layout_name == layout.name
    identity = avatar.turn @ avatar.turn.mT
    assert torch.allclose(identity, torch.eye(3).expand_as(identity), atol=1e-4)
    face = avatar.vertices[body.region_vertices("face")].mean(0)
    back = avatar.vertices[body.region_vertices("scalp")].mean(0)
    assert face[1] < back[1]  # the face looks towards -y
    for x in vars(avatar.gaussians).values():
        assert torch.isfinite(x).all()


def test_no_motion_is_the_canonical_picture(avatar, body):
    means, quats = animate(avatar, still(body, 2))
    assert torch.allclose(means[1], avatar.gaussians.means, atol=1e-6)
    frames = render(avatar, means, quats)
    behind = avatar.background.float() / 255
    image, alpha, _ = avatar.gaussians.render(avatar.viewmat[None], avatar.K[None], avatar.width, avatar.height)
    assert frames.shape == (2, avatar.height, avatar.width, 3)
    assert torch.allclose(frames[0], (image[0] + (1 - alpha[0]) * behind).clamp(0, 1), atol=1e-4)


def test_jaw_moves_lips_and_not_the_scalp(avatar, body):
    moved, _ = animate(avatar, actions(body, avatar, jawOpen=1.0))
    shift = (moved[0] - avatar.gaussians.means).norm(dim=1)
    layout = load_layout(body, 10_000)
    region = lambda name: layout.region == REGIONS.index(name)  # noqa: E731
    n = len(layout)
    assert shift[:n][region("lips")].max() > 0.01
    assert shift[:n][region("scalp")].max() < 0.002
    assert shift[avatar.loose].numel() == 0 or shift[avatar.loose].max() < 0.004  # hair does not hang on the jaw


def test_rigid_motion_carries_everything(avatar, body):
    """Turned and shifted as a whole, every Gaussian keeps its place relative to the body."""
    axis = torch.tensor([0.0, 0.0, 0.4])
    c, s = torch.cos(axis[2]), torch.sin(axis[2])
    R = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    shift = torch.tensor([0.1, -0.2, 0.05])
    v = avatar.vertices
    means, _ = animate(avatar, Deformation((v @ R.T + shift - v)[None], axis.expand(1, len(v), 3)))
    assert torch.allclose(means[0], avatar.gaussians.means @ R.T + shift, atol=1e-4)


def test_postures(avatar, body):
    """The photo's own posture changes nothing; at ease the hands hang beside the hips, and their particles with them."""
    means, _ = animate(avatar, repose(avatar, body, avatar.posture))
    assert torch.allclose(means[0], avatar.gaussians.means, atol=1e-4)
    means, _ = animate(avatar, repose(avatar, body, at_ease(body)))
    layout = load_layout(body, 10_000)
    hand = (layout.region == REGIONS.index("hand")).nonzero()[:, 0]
    hips = float((means[0][: len(layout)][layout.region == REGIONS.index("leg")])[:, 2].max())
    assert means[0][hand, 2].mean() < hips
    assert unpose(avatar, body).shape == avatar.vertices.shape


def test_report_says_what_is_missing(avatar):
    assert "legs" in avatar.report["missing"]
    assert "left hand" not in avatar.report["missing"]
    assert avatar.report["notices"] == []  # nobody misses the legs of a half-body photo
    visible = np.ones(33)
    person = SimpleNamespace(hands={"left": None, "right": (None, None)}, pose_visibility=visible)
    assert missing(person) == ["left hand"]
    assert "left" in remarks(person)[0]
    visible[15] = 0
    assert remarks(person) == []


def test_device(avatar):
    moved = avatar.to("meta")
    assert moved.vertices.device.type == moved.gaussians.means.device.type == "meta"


def test_blink_shows_skin(avatar, body):
    """Where the eyes were, the closed lids have a colour near that of the cheeks."""
    means, quats = animate(avatar, actions(body, avatar, eyeBlinkLeft=1.0, eyeBlinkRight=1.0))
    picture = render(avatar, means, quats)[0]
    eyes = avatar.vertices[body.region_vertices("eye")]
    x = body.v_template[body.region_vertices("eye"), 0]
    skin = body.v_template[body.region_vertices("face")]

    def colour(point):
        camera = avatar.viewmat[:3, :3] @ point + avatar.viewmat[:3, 3]
        u, v = (int(i) for i in (avatar.K @ camera)[:2] / camera[2])
        return picture[v - 1 : v + 2, u - 1 : u + 2].mean((0, 1))

    for side in (-1, 1):
        centre = eyes[x * side > 0].mean(0)
        below = avatar.vertices[body.region_vertices("face")][
            (skin - torch.tensor([0.035 * side, -0.13, 0.865])).norm(dim=1).argmin()
        ]
        assert (colour(centre) - colour(below)).abs().max() < 0.35


def test_open_mouth_shows_teeth_above_dark(avatar, body):
    """Seen large, an open mouth is bright at the upper teeth, dark behind them, and darker than the lips in the middle."""
    means, quats = animate(avatar, actions(body, avatar, jawOpen=0.8))
    lips = means[0][: len(load_layout(body, 10_000))][load_layout(body, 10_000).region == REGIONS.index("lips")]
    camera = lips @ avatar.viewmat[:3, :3].T + avatar.viewmat[:3, 3]
    pixels = (camera @ avatar.K.T)[:, :2] / camera[:, 2:]
    low, high = pixels.amin(0), pixels.amax(0)
    K, zoom = avatar.K.clone(), 6.0
    K[:2, 2] -= low
    K[:2] *= zoom
    w, h = (int(x) for x in (high - low) * zoom)
    g = avatar.gaussians
    from aa.raster import rasterize

    picture, _, _ = rasterize(means[0], quats[0], g.scales, g.opacities, g.colors, avatar.viewmat[None], K[None], w, h)
    column = picture[0, :, w // 2 - w // 12 : w // 2 + w // 12].mean((1, 2)).numpy()
    inside = column[h // 6 : -h // 6]
    dark = inside.argmin()
    teeth = picture[0, : h // 6 + dark, w // 3 : -w // 3]
    white = teeth.min(-1).values > 0.6 * teeth.max(-1).values  # hardly any colour
    assert white.float().mean() > 0.02
    assert teeth[white].mean() > 1.5 * inside[dark]
    assert inside[dark] < 0.35


def test_save_and_load(avatar, tmp_path):
    avatar.save(tmp_path / "someone")
    again = Avatar.load(tmp_path / "someone")
    assert again.report == avatar.report
    assert again.layout_name == avatar.layout_name
    for name in (*TENSORS, "background"):
        assert torch.equal(getattr(again, name), getattr(avatar, name)), name
    for name, x in vars(avatar.gaussians).items():
        assert torch.equal(getattr(again.gaussians, name), x), name
    assert [p.name for p in tmp_path.iterdir()] == ["someone"]
    avatar.save(tmp_path / "someone")  # over an older one


def test_hidden_particles_are_left_alone(body):
    """Refinement changes what the photo shows and nothing else."""
    from aa.particles import Particles
    from aa.view import View

    rng = torch.Generator().manual_seed(0)
    n, size = 200, 32
    means = torch.cat([torch.rand(n, 2, generator=rng) - 0.5, torch.full((n, 1), 2.0)], 1)
    seen = torch.arange(n) % 2 == 0
    cloud = Particles(
        torch.zeros(n, 3, dtype=torch.long), torch.full((n, 3), 1 / 3), torch.zeros(n, dtype=torch.bool), means,
        torch.tensor([1.0, 0, 0, 0]).repeat(n, 1), torch.full((n, 3), 0.05), torch.full((n,), 0.8),
        torch.rand(n, 3, generator=rng), seen,
    )  # fmt: skip
    flat = np.full((size, size, 3), 0.5, np.float32)
    mask = np.ones((size, size), np.float32)
    no = np.zeros((size, size), bool)
    K = torch.tensor([[60.0, 0, 16], [0, 60, 16], [0, 0, 1]])
    given = {"image": flat, "front": flat, "lit": flat, "mask": mask, "viewmat": torch.eye(4), "K": K}
    given |= {"depth": np.full((size, size), 2.0), "bary": np.zeros((size, size, 3)), "claimed": no, "stray": no, "edge": no}
    rest = {f.name for f in fields(View)} - set(given)
    view = View(**given, **{name: np.zeros((size, size), int) for name in rest})
    g = refine(cloud, view, np.zeros((size, size, 3), np.uint8), 5)
    assert torch.equal(g.colors[~seen], cloud.colors[~seen])
    assert torch.equal(g.means[~seen], cloud.means[~seen])
    assert not torch.equal(g.colors[seen], cloud.colors[seen])


def test_same_seed_same_avatar():
    few = replace(TINY, fit_iterations=5, align_rounds=1, refine_iterations=2)
    one, two = (fit_photo(PORTRAIT, particles=10_000, size=128, progress=False, settings=few) for _ in range(2))
    for name, x in vars(one.gaussians).items():
        assert torch.equal(getattr(two.gaussians, name), x), name
    assert torch.equal(one.vertices, two.vertices)


def test_fits_where_gradients_are_switched_off():
    few = replace(TINY, fit_iterations=2, align_rounds=1, refine_iterations=1)
    with torch.no_grad():
        avatar = fit_photo(PORTRAIT, particles=10_000, size=128, progress=False, settings=few)
    assert not avatar.gaussians.colors.requires_grad
    assert not avatar.vertices.requires_grad


def test_zbuffer_sees_the_nearer_triangle():
    v = torch.tensor([[-1.0, -1, 2], [1, -1, 2], [0, 1, 2], [-1, -1, 3], [1, -1, 3], [0, 1, 3]])
    K = torch.tensor([[20.0, 0, 16], [0, 20, 16], [0, 0, 1]])
    depth, tri, bary = zbuffer(v, torch.tensor([[3, 4, 5], [0, 1, 2]]), torch.eye(4), K, 32, 32)
    assert tri[16, 16] == 1
    assert depth[16, 16] == pytest.approx(2.0)
    assert np.isinf(depth[0, 0])
    assert tri[0, 0] == -1
    point = bary[18, 14] @ v.numpy()[[0, 1, 2]].astype(float)
    assert point[:2] / point[2] * 20 + 16 == pytest.approx([14.5, 18.5])


def test_no_person_is_refused():
    from aa.errors import InputError

    with pytest.raises(InputError):
        fit_photo(cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8), (0, 0), 5), progress=False)
