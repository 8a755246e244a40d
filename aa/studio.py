"""The studio (3.3): a ray-cast stand-in for the video diffusion models, with exact masks, part maps, depth and tracks.

Everybody shown is generated. The hybrid strategy of the paper: `studio-hq` is a clean picture whose motion is not synchronised
to the sound at hand, `studio-sync` is synchronised and carries the artefacts of audio-driven video models. `aa.footage` makes
whole sets of both.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import warp as wp

from aa.body import Body, load_body, vertex_normals
from aa.clips import Clip
from aa.gestures import posture
from aa.identities import Identity, sample_identity
from aa.shader import dressed, see
from aa.stage import Stage, camera

__all__ = ["SYNC", "Artefacts", "Drift", "Identity", "Tracker", "camera", "degrade", "film", "portrait", "sample_identity"]


@dataclass(frozen=True)
class Artefacts:
    """What audio-driven video models do to a picture (studio-sync)."""

    blur: float = 0.9  # px at 512, standard deviation
    noise: float = 0.012  # standard deviation of grain that flickers in 4-px blotches
    flicker: float = 0.020  # standard deviation of the brightness, correlated over about 4 frames
    drift: float = 0.035  # slow colour drift at the end of a 10 s clip, of full scale
    identity: float = 0.0  # mm by which the face's shape comes to differ (root mean square); skin, hair and eyes change along


SYNC = Artefacts(identity=1.5)  # as in training sets: the face drifts as well, and its tracks with it


def degrade(frames: np.ndarray, artefacts: Artefacts, seed: int) -> np.ndarray:
    """Blur, blotchy noise, flicker and colour drift on frames (T, H, W, 3) float in [0, 1]; the geometry stays exact."""
    worse = Degradation(artefacts, seed)
    return np.stack([worse(frame) for frame in frames])


class Degradation:
    """`degrade` frame by frame: call it on frames (H, W, 3) float in [0, 1] in their order."""

    def __init__(self, artefacts: Artefacts, seed: int):
        self.artefacts, self.rng, self.t, self.level = artefacts, np.random.default_rng(seed), 0, 0.0
        tint = self.rng.normal(size=3)
        self.tint = tint * artefacts.drift / max(np.abs(tint).max(), 1e-6)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """(H, W, 3) float32 in [0, 1]."""
        import cv2

        a, rng, (H, W, _) = self.artefacts, self.rng, frame.shape
        self.level = 0.75 * self.level + 0.66 * rng.normal()
        sigma = a.blur * H / 512 * (1 + 0.25 * math.sin(0.7 * self.t))
        picture = frame.astype(np.float32)
        if sigma > 0:
            picture = cv2.GaussianBlur(picture, (2 * math.ceil(4 * sigma) + 1,) * 2, sigma, borderType=cv2.BORDER_REFLECT)
        grain = rng.standard_normal((-(-H // 4), -(-W // 4), 3), np.float32).repeat(4, 0).repeat(4, 1)[:H, :W]
        grain = 2.4 * cv2.GaussianBlur(grain, (13, 13), 1.5, borderType=cv2.BORDER_REFLECT)
        grain += 0.4 * rng.standard_normal((H, W, 1), np.float32)
        gain = (1 + a.flicker * self.level) * (1 + self.tint * self.t / 250)
        self.t += 1
        return (picture * gain.astype(np.float32) + np.float32(a.noise) * grain).clip(0, 1)


class Drift:
    """Slow change of identity: the head's shape and the paint leave the first frame's within about 2.5 s, as generated faces do."""

    SECONDS = 2.5

    def __init__(self, body: Body, stage: Stage, millimetres: float, seed: int):
        from scipy.spatial import cKDTree

        self.stage = stage
        rng = np.random.default_rng([seed, 7])
        betas = torch.from_numpy(rng.normal(size=len(body.shape_dirs))).float()
        body = body.to("cpu")
        face = body.region_vertices("face", "lips", "eyelid")
        move, joints = (torch.einsum("s,svc->vc", betas, d) for d in (body.shape_dirs, body.joint_dirs))
        mean = move[face].mean(0)  # where the head stands is not who it is
        head = lambda z: ((z - 0.74) / 0.06).clamp(0, 1)[:, None]  # noqa: E731  0 at the collar, 1 from the chin up
        move, joints = head(body.v_template[:, 2]) * (move - mean), head(body.joint_template[:, 2]) * (joints - mean)
        scale = 1e-3 * millimetres / float(move[face].square().sum(1).mean().sqrt())
        canon = stage.figure.canon.numpy()  # hair and collar move with the skin below them
        distance, near = cKDTree(body.v_template.numpy()).query(canon, k=4)
        weight = 1 / (distance + 1e-4)
        weight /= weight.sum(1, keepdims=True)
        self.move = scale * (weight[..., None] * move.numpy()[near]).sum(1)
        self.joints = scale * joints.numpy()
        self.rest = stage.figure.body.v_template.numpy(), stage.figure.body.joint_template.double().numpy()
        names = ("skin", "lips", "hair", "tips", "iris", "brow")
        self.paint = {n: tuple(getattr(stage.look, n)) for n in names}  # copies: the look itself is changed
        self.tint = {n: 1 + 0.06 * millimetres * rng.normal(size=3).clip(-1.5, 1.5) for n in names}

    def __call__(self, t: int) -> None:
        """Give the stage the shape and paint of frame t (25 fps)."""
        share = 1 - math.exp(-t / (25 * self.SECONDS))
        self.set(share)

    def set(self, share: float) -> None:
        """0: the person; 1: as far as the drift goes."""
        self.stage.skin.set_rest(self.rest[0] + share * self.move, self.rest[1] + share * self.joints)
        for name, colour in self.paint.items():
            there = [min(1.0, c * (1 + share * (f - 1))) for c, f in zip(colour, self.tint[name])]
            setattr(self.stage.look, name, wp.vec3(*there))


def film(
    body: Body, identity: Identity | Stage, performance, layout_points=None, K=None, viewmat=None, width: int = 512,
    height: int = 512, supersample: int = 1, artefacts: Artefacts | None = None, seed: int = 0, particles=None, speech=None,
    framing: str = "upper", azimuth: float = 0.0, seeds: dict | None = None,
) -> Clip:  # fmt: skip
    """Film a performance: frames, mask, part map, depth and exact tracks.

    Args: identity, or the `Stage` of a person to use again (making one takes seconds); performance with actions (T, A), rotvecs
        (T, J, 3), translation (T, 3); layout_points the particle layout to track (tri (N,), bary (N, 3)) or None; particles (P,)
        rows of it to keep, all by default; K (3, 3), viewmat (4, 4), by default `camera(framing, width, height, azimuth)`;
        supersample n: n x n rays a pixel; artefacts: None for studio-hq, else studio-sync; seed of the artefacts; speech: audio,
        phonemes and words to attach; seeds: facts to keep with the clip. The body's device does the work.
    Returns: `Clip`. A particle is visible when it is inside the picture and the ray towards it first meets itself, or the cloth
        or hair over it.
    """
    stage = identity if isinstance(identity, Stage) else Stage(body, identity, body.device)
    if K is None or viewmat is None:
        K, viewmat = camera(framing, width, height, azimuth, person=stage.body)
    tracker = None if layout_points is None else Tracker(body, stage, layout_points, particles, K, viewmat, width, height)
    drift = Drift(body, stage, artefacts.identity, seed) if artefacts is not None and artefacts.identity else None
    worse = None if artefacts is None else Degradation(artefacts, seed)
    shots, tracks = [], []
    for t in range(len(performance.actions)):
        if drift is not None:
            drift(t)
        stage.pose(performance.rotvecs[t], performance.actions[t], performance.translation[t])
        shot = stage.expose(K, viewmat, width, height, supersample)
        rgb = shot.rgb if worse is None else worse(shot.rgb)
        shots.append(((rgb * 255 + 0.5).clip(0, 255).astype(np.uint8), shot.part, shot.depth.astype(np.float32)))
        if tracker is not None:
            tracks.append(tracker.look())
    if drift is not None:
        drift.set(0.0)
    frames, part, depth = (np.stack([s[k] for s in shots]) for k in range(3))
    step = max(1e-4, float(depth.max()) / 65535)
    seen = {}
    if tracker is not None:
        tracks = [np.stack(x, 1) for x in zip(*tracks)]
        seen = {"tracks": tracks[0], "visibility": tracks[1], "particle": tracker.particles}
    facts = {"identity": stage.figure.identity.seed, "artefacts": None if artefacts is None else seed, "framing": framing}
    return Clip(
        frames, K=np.asarray(K, np.float32), viewmat=np.asarray(viewmat, np.float32), mask=part > 0, part=part,
        depth=(depth / step + 0.5).astype(np.uint16), depth_step=step, seeds=facts | (seeds or {}),
        audio=None if speech is None else speech.audio, phonemes=[] if speech is None else list(speech.phonemes),
        words=[] if speech is None else list(getattr(speech, "words", [])),
        source="studio-hq" if artefacts is None else "studio-sync", **seen,
    )  # fmt: skip


class Tracker:
    """Projects particles of a layout and tests on the ray whether they are seen."""

    def __init__(self, body: Body, stage: Stage, layout, particles, K, viewmat, width: int = 1 << 20, height: int = 1 << 20):
        n = len(layout.tri)
        self.particles = np.arange(n) if particles is None else np.asarray(particles, np.int64)
        self.stage, array = stage, stage.skin.array
        kept = torch.from_numpy(self.particles)
        faces = body.faces.cpu()
        corners, bary = faces[layout.tri.cpu()[kept]], layout.bary.cpu()[kept].float()
        self.corners, self.bary = array(corners.numpy(), wp.vec3i), array(bary.numpy(), wp.vec3)
        rest = stage.pose(None, None, None).cpu()
        normals = vertex_normals(rest[: len(body.v_template)], faces[stage.drawn.cpu()])
        place = lambda x: (bary[:, :, None] * x[corners]).sum(1)  # noqa: E731
        points, normals = place(rest), torch.nn.functional.normalize(place(normals), dim=-1)
        self.cover = wp.zeros(len(kept), dtype=float, device=stage.device)
        inputs = [array(points.numpy(), wp.vec3), array(normals.numpy(), wp.vec3), 0.045, self.cover]
        stage.share(dressed, len(kept), [stage.surface, stage.look, *inputs])
        K, view = (np.asarray(x, np.float64) for x in (K, viewmat))
        self.camera = [
            wp.mat33(*view[:3, :3].ravel().tolist()), wp.vec3(*view[:3, 3].tolist()),
            wp.vec2(float(K[0, 0]), float(K[1, 1])), wp.vec2(float(K[0, 2]), float(K[1, 2])),
            wp.vec2(float(width), float(height)),
        ]  # fmt: skip

    def look(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (P, 2) and visibility (P,) in the stage's current pose."""
        s, n = self.stage, len(self.particles)
        pixel = wp.zeros(n, dtype=wp.vec2, device=s.device)
        seen = wp.zeros(n, dtype=int, device=s.device)
        s.share(see, n, [s.surface, s.look, *self.camera, self.corners, self.bary, self.cover, pixel, seen])
        return pixel.numpy().copy(), seen.numpy() > 0


PRESENTING = ((0.22, -0.02, -1.0), (-0.02, -0.85, 0.12), -0.35)  # posture of the arms: forearms raised in front, palms half up
# Facial actions of a portrait; the lips stay closed.
FRIENDLY = {"mouthSmileLeft": 0.35, "mouthSmileRight": 0.35, "cheekSquintLeft": 0.15, "cheekSquintRight": 0.15}


def portrait(
    identity: Identity, width: int = 768, height: int = 1152, body: Body | None = None, device: str = "cpu", samples: int = 3
):
    """A relaxed standing person with both hands in front of the body, mouth closed: (H, W, 3) uint8. The person is generated."""
    body = body or load_body()
    stage = Stage(body, identity, device)
    actions = torch.zeros(len(body.action_names))
    for name, value in FRIENDLY.items():
        actions[body.action(name)] = value
    pose = torch.from_numpy(posture(body, PRESENTING, 0.6)).float()
    stage.pose(pose, actions, None)
    K, view = camera("portrait", width, height, person=stage.body)
    picture, _ = stage.shoot(K, view, width, height, samples)
    return (picture * 255 + 0.5).clip(0, 255).astype(np.uint8)
