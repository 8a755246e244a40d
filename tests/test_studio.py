"""The studio: exact tracks, masks and visibility; varied, reproducible people; portraits that the detectors accept."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aa.body import load_body
from aa.clips import LABELS
from aa.gestures import posture
from aa.identities import HAIRS, sample_identity
from aa.stage import Stage, camera
from aa.studio import PRESENTING, SYNC, Artefacts, Drift, Tracker, degrade, film

PORTRAITS = Path(__file__).resolve().parent.parent / "assets" / "portraits"
SIZE = 160


@pytest.fixture(scope="module")
def scene():
    """Two frames of a short-sleeved person and 600 random particles on face, hands and the rest."""
    body = load_body()
    g = torch.Generator().manual_seed(3)
    areas = (("face", "lips", "eyelid"), ("hand",), ("torso", "upperarm", "forearm", "scalp", "ear"))
    tri = torch.cat([f[torch.randint(len(f), (200,), generator=g)] for f in (body.region_faces(*a) for a in areas)])
    weights = torch.rand(600, 3, generator=g) + 0.05
    layout = SimpleNamespace(tri=tri, bary=weights / weights.sum(1, keepdim=True))
    rotvecs = torch.from_numpy(posture(body, PRESENTING, 0.6)).float().repeat(2, 1, 1)
    rotvecs[1, body.joint("head")] += torch.tensor([0.1, 0.0, 0.4])
    actions = torch.zeros(2, len(body.action_names))
    actions[1, body.action("jawOpen")] = 0.5
    performance = SimpleNamespace(actions=actions, rotvecs=rotvecs, translation=torch.tensor([[0.0, 0, 0], [0.02, 0, 0.01]]))
    identity = sample_identity(17)
    K, view = camera("upper", SIZE, SIZE)
    clip = film(body, identity, performance, layout, K, view, SIZE, SIZE)
    return SimpleNamespace(body=body, layout=layout, performance=performance, identity=identity, K=K, view=view, clip=clip)


def positions(s, t):
    """Particles (P, 3) of frame t from the bare body alone."""
    p = s.performance
    v, _ = s.body.pose(torch.tensor(s.identity.betas), p.rotvecs[t], p.actions[t], p.translation[t])
    return (s.layout.bary[:, :, None] * v[s.body.faces[s.layout.tri]]).sum(1)


def test_clip_is_complete(scene):
    c = scene.clip
    assert c.frames.shape == (2, SIZE, SIZE, 3)
    assert c.frames.dtype == np.uint8
    assert c.mask.dtype == bool
    assert c.tracks.shape == (600, 2, 2)
    assert c.visibility.shape == (600, 2)
    assert (c.particle == np.arange(600)).all()
    assert c.source == "studio-hq"


def test_tracks_are_projections(scene):
    """A particle's track is its projection by K and the view matrix."""
    for t in range(2):
        x = positions(scene, t) @ scene.view[:3, :3].T + scene.view[:3, 3]
        x = x @ scene.K.T
        np.testing.assert_allclose(scene.clip.tracks[:, t], (x[:, :2] / x[:, 2:]).numpy(), atol=2e-3)


def nearest(points, cam, triangles):
    """Distance (P,) from cam to the first of the triangles (F, 3, 3) towards each point, by brute force in float64."""
    a, b, c = triangles.double().unbind(1)
    e1, e2, o = b - a, c - a, cam.double() - a
    out = []
    for d in torch.nn.functional.normalize(points.double() - cam.double(), dim=-1):
        p = torch.linalg.cross(d.expand_as(e2), e2)
        det = (p * e1).sum(1)
        u = (o * p).sum(1) / det
        q = torch.linalg.cross(o, e1)
        v = (q @ d) / det
        t = (q * e2).sum(1) / det
        t[(u < 0) | (v < 0) | (u + v > 1) | (t <= 0) | (det.abs() < 1e-14)] = torch.inf
        out.append(t.min())
    return torch.stack(out)


def test_visibility_agrees_with_depth(scene):
    """Against a brute-force depth of the bare face and hands, where neither cloth nor hair lies over the skin."""
    bare = torch.cat([torch.arange(0, 200, 2), torch.arange(200, 400, 2)])
    v, _ = scene.body.pose(torch.tensor(scene.identity.betas), scene.performance.rotvecs[0], scene.performance.actions[0])
    skin = scene.body.region_faces("face", "lips", "eyelid", "ear", "neck", "scalp", "hand", "nail", "forearm", "eye", "eye_cavity")
    cam = -scene.view[:3, :3].T @ scene.view[:3, 3]
    points = positions(scene, 0)[bare]
    clear = (nearest(points, cam, v[scene.body.faces[skin]]) > (points - cam).norm(dim=1) - 0.004).numpy()
    seen = scene.clip.visibility[bare.numpy(), 0]
    assert 0.2 < seen.mean() < 0.9
    assert (clear == seen).mean() > 0.96


def test_visible_particles_lie_on_the_mask(scene):
    c = scene.clip
    for t in range(2):
        xy = np.floor(c.tracks[:, t]).astype(int)
        use = c.visibility[:, t] & ((xy >= 0) & (xy < SIZE)).all(1)
        assert c.mask[t, xy[use, 1], xy[use, 0]].mean() > 0.93  # the rest straddles the silhouette


def test_tracks_lie_on_the_rendered_surface(scene):
    """A ray through a visible bare particle's track meets the surface within 0.05 px of it; visibility agrees with the rays."""
    s, p = scene, scene.performance
    stage = Stage(s.body, s.identity)
    tracker = Tracker(s.body, stage, s.layout, None, s.K, s.view)
    cover = tracker.cover.numpy()
    near, agree = [], []
    for t in range(2):
        vertices = stage.pose(p.rotvecs[t], p.actions[t], p.translation[t])
        distance, triangle, weights = stage.probe(s.K, s.view, s.clip.tracks[:, t])
        corners = vertices[stage.figure.body.faces[torch.from_numpy(triangle)]].numpy()
        hit = (weights[..., None] * corners).sum(1)
        points, cam = positions(s, t).numpy(), (-s.view[:3, :3].T @ s.view[:3, 3]).numpy()
        away = np.linalg.norm(points - cam, axis=1)
        inside = ((s.clip.tracks[:, t] >= 0) & (s.clip.tracks[:, t] < SIZE)).all(1)
        met = (distance >= 0) & (np.abs(distance - away) < 0.004 + 2 * cover) & inside
        agree.append((met == s.clip.visibility[:, t]).mean())
        bare = s.clip.visibility[:, t] & (cover == 0) & (np.abs(distance - away) < 1e-3)  # on this layer, not on one close behind
        pixel = away / float(s.K[0, 0])  # m
        near.append((np.linalg.norm(hit - points, axis=1) / pixel)[bare])
    near = np.concatenate(near)
    assert len(near) > 200
    assert np.percentile(near, 99) < 0.05
    assert min(agree) >= 0.995


def test_part_map_and_depth(scene):
    """Labels say what the visible particles of face and hands lie on; depth is where the ray meets the surface."""
    c, s = scene.clip, scene
    assert c.part.dtype == np.uint8
    assert ((c.part > 0) == c.mask).all()
    assert {LABELS[k] for k in np.unique(c.part)} == set(LABELS)
    for label, rows in (("face", slice(0, 200)), ("hand", slice(200, 400))):
        xy = np.floor(c.tracks[rows, 0]).astype(int)
        use = c.visibility[rows, 0] & ((xy >= 0) & (xy < SIZE)).all(1)
        assert (c.part[0, xy[use, 1], xy[use, 0]] == LABELS.index(label)).mean() > 0.75  # hair and outlines take the rest
    assert ((c.depth > 0) == c.mask).all()
    y, x = np.nonzero(c.mask[1])
    stage = Stage(s.body, s.identity)
    stage.pose(s.performance.rotvecs[1], s.performance.actions[1], s.performance.translation[1])
    distance, _, _ = stage.probe(s.K, s.view, np.stack([x, y], 1) + 0.5)
    slope = np.hypot(np.hypot((x + 0.5 - SIZE / 2) / s.K[0, 0].item(), (y + 0.5 - SIZE / 2) / s.K[1, 1].item()), 1)
    assert np.percentile(np.abs(c.metres(1)[y, x] - distance / slope), 99.5) < 1.5e-4
    assert np.isnan(c.metres(1)[~c.mask[1]]).all()


def test_a_stage_serves_many_films_and_threads_change_nothing(scene):
    """The same bytes from a stage that has filmed before, with drift and damage too, and from one or three threads."""
    s = scene
    stage = Stage(s.body, s.identity, threads=3)
    film(s.body, stage, s.performance, None, s.K, s.view, 64, 64, artefacts=SYNC, seed=4)
    again = film(s.body, stage, s.performance, s.layout, s.K, s.view, SIZE, SIZE)
    for name in ("frames", "part", "depth", "tracks", "visibility"):
        assert (getattr(again, name) == getattr(s.clip, name)).all(), name


def test_identity_drift_moves_face_and_tracks_together(scene):
    """With drift the face slowly changes; its tracks are those of the changed surface, and the stage is as before afterwards."""
    s, stage = scene, Stage(scene.body, scene.identity)
    drift = Drift(s.body, stage, 1.5, seed=2)
    before = stage.pose(None, None, None)
    drift.set(1.0)
    after = stage.pose(None, None, None)
    face = s.body.region_vertices("face", "lips", "eyelid")
    moved = (after - before)[: len(s.body.v_template)].norm(dim=1)
    assert float(moved[face].square().mean().sqrt()) == pytest.approx(1.5e-3, rel=0.02)
    assert float(moved[s.body.region_vertices("hand", "foot", "leg")].max()) < 1e-6
    held = replace_motion(s.performance, [0] * 40)
    clip = film(s.body, stage, held, s.layout, s.K, s.view, 96, 96, artefacts=SYNC, seed=2)
    shift = np.linalg.norm(clip.tracks[:, -1] - clip.tracks[:, 0], axis=1)
    assert shift[:200].max() > 0.05
    assert shift[200:400].max() < 1e-3
    assert np.allclose(stage.pose(None, None, None), before)
    assert clip.source == "studio-sync"


def replace_motion(p, frames):
    return SimpleNamespace(**{n: getattr(p, n)[frames] for n in ("actions", "rotvecs", "translation")})


@pytest.mark.parametrize(
    ("framing", "width", "height"), [("full", 48, 72), ("upper", 64, 64), ("portrait", 40, 60), ("face", 48, 48)]
)
def test_framings_show_what_they_say(scene, framing, width, height):
    stage = scene_stage(scene)
    clip = film(scene.body, stage, replace_motion(scene.performance, [0]), width=width, height=height, framing=framing)
    seen = {LABELS[k] for k in np.unique(clip.part)}
    assert {"face", "clothes"} <= seen
    assert clip.mask[0, 0].mean() == 0  # room above the head
    rows = np.flatnonzero(clip.mask[0].any(1))
    if framing == "full":
        assert rows[-1] < height - 1  # the feet are in
    else:
        assert rows[-1] == height - 1
    assert ("hand" in seen) == (framing != "face")


def scene_stage(scene):
    if not hasattr(scene, "stage"):
        scene.stage = Stage(scene.body, scene.identity)
    return scene.stage


def test_mask_is_the_silhouette(scene):
    """Where the mask is off, the picture is the backdrop; where it is on, it is not."""
    stage = Stage(scene.body, scene.identity)
    p = scene.performance
    stage.pose(p.rotvecs[0], p.actions[0], p.translation[0])
    other = np.full((SIZE, SIZE, 3), (0.0, 1.0, 0.0), np.float32)
    rgb, alpha = stage.shoot(scene.K, scene.view, SIZE, SIZE, backdrop=other)
    green = (rgb == other).all(-1)
    assert (green == ~scene.clip.mask[0]).all()
    assert ((alpha > 0) == scene.clip.mask[0]).all()
    again = (rgb * 255 + 0.5).clip(0, 255).astype(np.uint8)
    assert (again[~green] == scene.clip.frames[0][~green]).all()  # the same person on another day: deterministic
    _, fine = stage.shoot(scene.K, scene.view, SIZE, SIZE, samples=2)
    assert np.abs(fine.mean() - alpha.mean()) < 0.01


def test_mouth_and_head_move_the_picture(scene):
    a, b = scene.clip.frames.astype(int)
    assert np.abs(a - b).max(-1)[scene.clip.mask[0]].mean() > 3


def test_degraded_frames_keep_their_place():
    """studio-sync: reproducible, noisier and softer, not shifted."""
    y, x = np.mgrid[:96, :96] / 96.0
    frames = (
        np.repeat((((x * 6).astype(int) + (y * 6).astype(int)) % 2 * 0.6 + 0.2)[None, ..., None], 5, 0)
        .repeat(3, -1)
        .astype(np.float32)
    )
    a, b, c = (degrade(frames, Artefacts(), s) for s in (1, 1, 2))
    assert (a == b).all()
    assert (a != c).any()
    assert 0.005 < np.abs(a - frames).mean() < 0.1
    assert a.mean((1, 2, 3)).std() > 1e-4  # flicker
    at = lambda d: (np.roll(frames[0], d, 1) * a[0]).mean()  # noqa: E731
    assert max(range(-3, 4), key=at) == 0


def test_people_vary_and_repeat():
    people = [sample_identity(s) for s in range(60)]
    assert people[5] == sample_identity(5)
    assert len({p.betas for p in people}) > 50
    assert 15 < sum(p.sex == "female" for p in people) < 45
    tones = np.array([p.skin for p in people]).mean(1)
    assert tones.min() < 0.3
    assert tones.max() > 0.72
    assert len({p.hair for p in people}) == len(HAIRS)
    assert len({p.hair_style for p in people}) >= 6
    assert {p.pattern for p in people} == {"plain", "stripes", "checks", "pinstripes", "dots"}
    assert {p.neckline for p in people} == {"crew", "v", "collar"}
    assert not any(p.beard for p in people if p.sex == "female")


def test_camera_axes():
    """World up is image up, the person's left (+x) is on the right, and a positive azimuth shows more of that side."""
    K, view = camera("face", 200, 200)
    project = lambda p, v: (lambda x: x[:2] / x[2])(K @ (v[:3, :3] @ torch.tensor(p) + v[:3, 3]))  # noqa: E731
    centre = project([0.0, -0.06, 0.895], view)
    assert torch.allclose(centre, torch.tensor([100.0, 100.0]), atol=1e-3)
    assert project([0.05, -0.06, 0.895], view)[0] > 100
    assert project([0.0, -0.06, 0.95], view)[1] < 100
    _, turned = camera("face", 200, 200, azimuth=0.5)
    assert project([0.0, -0.16, 0.895], turned)[0] < 100  # the nose points to the left of the picture
    assert torch.linalg.det(view[:3, :3]) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="camera kind"):
        camera("moon")


def test_detectors_find_a_portrait():
    """A shipped portrait is a person with a face and two hands."""
    from aa.detect import detect

    person = detect(sorted(PORTRAITS.glob("*.png"))[0])
    assert person.confidence["face"] > 0.7
    assert person.hands["left"] is not None
    assert person.hands["right"] is not None
    assert abs(person.yaw) < 8


def test_drift_leaves_the_stage_as_it_was(scene):
    """A person filmed clean before and after a drifting take is the same person, and the drift repeats."""
    stage = Stage(scene.body, scene.identity)
    take = lambda artefacts: film(scene.body, stage, scene.performance, None, scene.K, scene.view, SIZE, SIZE, artefacts=artefacts)  # noqa: E731
    before, drifted = take(None), take(SYNC)
    assert (take(None).frames == before.frames).all()
    assert (take(SYNC).frames == drifted.frames).all()
    assert (drifted.frames != before.frames).any()
