"""The studio (3.3): a ray-cast stand-in for the video diffusion models, with exact masks and tracks.

Everybody shown is generated. The hybrid strategy of the paper: `studio-hq` is a clean picture whose motion is not synchronised
to the sound at hand, `studio-sync` is synchronised and carries the artefacts of audio-driven video models.
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
from aa.shader import dressed, first_hit
from aa.stage import Stage, camera

__all__ = ["Artefacts", "Identity", "Tracker", "camera", "degrade", "film", "portrait", "sample_identity"]


@dataclass(frozen=True)
class Artefacts:
    """What audio-driven video models do to a picture (studio-sync)."""

    blur: float = 0.9  # px at 512, standard deviation
    noise: float = 0.012  # standard deviation of grain that flickers in 4-px blotches
    flicker: float = 0.020  # standard deviation of the brightness, correlated over about 4 frames
    drift: float = 0.035  # slow colour drift at the end of a 10 s clip, of full scale


def degrade(frames: np.ndarray, artefacts: Artefacts, seed: int) -> np.ndarray:
    """Blur, blotchy noise, flicker and colour drift on frames (T, H, W, 3) float in [0, 1]; the geometry stays exact."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    T, H, W, _ = frames.shape
    flicker, level = np.empty(T), 0.0
    tint = rng.normal(size=3)
    tint *= artefacts.drift / max(np.abs(tint).max(), 1e-6)
    out = np.empty_like(frames)
    for t in range(T):
        level = 0.75 * level + 0.66 * rng.normal()
        flicker[t] = 1 + artefacts.flicker * level
        sigma = artefacts.blur * H / 512 * (1 + 0.25 * math.sin(0.7 * t))
        picture = gaussian_filter(frames[t], (sigma, sigma, 0))
        grain = rng.normal(size=(-(-H // 4), -(-W // 4), 3)).repeat(4, 0).repeat(4, 1)[:H, :W]
        grain = 0.6 * gaussian_filter(grain, (1.5, 1.5, 0)) * 4 + 0.4 * rng.normal(size=(H, W, 1))
        out[t] = picture * flicker[t] * (1 + tint * t / 250) + artefacts.noise * grain
    return out.clip(0, 1)


def film(
    body: Body, identity: Identity, performance, layout_points=None, K=None, viewmat=None, width: int = 512, height: int = 512,
    supersample: int = 1, artefacts: Artefacts | None = None, seed: int = 0, particles=None, speech=None,
) -> Clip:  # fmt: skip
    """Film a performance: frames, mask and exact tracks.

    Args: performance with actions (T, A), rotvecs (T, J, 3), translation (T, 3); layout_points the particle layout to track
        (tri (N,), bary (N, 3)) or None; particles (P,) rows of it to keep, all by default; K (3, 3), viewmat (4, 4), by default
        the half-length camera; supersample n: n x n rays a pixel; artefacts: None for studio-hq, else studio-sync; seed of the
        artefacts; speech: audio and phonemes to attach. The body's device does the work.
    Returns: `Clip`. A particle is visible when the ray towards it first meets itself, or the cloth or hair over it.
    """
    stage = Stage(body, identity, body.device)
    if K is None or viewmat is None:
        K, viewmat = camera("upper", width, height, person=stage.body)
    tracker = None if layout_points is None else Tracker(body, stage, layout_points, particles, K, viewmat)
    frames, masks, tracks = [], [], []
    for t in range(len(performance.actions)):
        motion = (x[t].to(body.device) for x in (performance.rotvecs, performance.actions, performance.translation))
        vertices = stage.pose(*motion)
        rgb, alpha = stage.shoot(K, viewmat, width, height, supersample)
        frames.append(rgb)
        masks.append(alpha >= 0.5)
        if tracker is not None:
            tracks.append(tracker(vertices))
    frames = np.stack(frames)
    if artefacts is not None:
        frames = degrade(frames, artefacts, seed)
    frames = (frames * 255 + 0.5).clip(0, 255).astype(np.uint8)
    seen = {}
    if tracker is not None:
        seen = {
            "tracks": np.stack([p for p, _ in tracks], 1),
            "visibility": np.stack([v for _, v in tracks], 1),
            "particle": tracker.particles,
        }
    return Clip(
        frames, K=np.asarray(K, np.float32), viewmat=np.asarray(viewmat, np.float32), mask=np.stack(masks),
        audio=None if speech is None else speech.audio, phonemes=[] if speech is None else list(speech.phonemes),
        source="studio-hq" if artefacts is None else "studio-sync", **seen,
    )  # fmt: skip


class Tracker:
    """Projects particles of a layout and tests on the ray whether they are seen."""

    def __init__(self, body: Body, stage: Stage, layout, particles, K, viewmat):
        n = len(layout.tri)
        self.particles = np.arange(n) if particles is None else np.asarray(particles, np.int64)
        self.stage, self.K, self.view = stage, torch.as_tensor(K).float(), torch.as_tensor(viewmat).float()
        kept = torch.from_numpy(self.particles)
        self.corners = body.faces.cpu()[layout.tri.cpu()[kept]]
        self.bary = layout.bary.cpu()[kept].float()
        stage.pose(None, None, None)
        rest = stage.body.v_template.cpu()
        normals = vertex_normals(rest[: len(body.v_template)], body.faces[stage.drawn].cpu())
        points, normals = self.place(rest), torch.nn.functional.normalize(self.place(normals), dim=-1)
        self.cover = self.launch(dressed, points, normals, 0.045)

    def place(self, vertices: torch.Tensor) -> torch.Tensor:
        """Particles (P, 3) on vertices (M, 3)."""
        return (self.bary[:, :, None] * vertices[self.corners]).sum(1)

    def launch(self, kernel, *inputs) -> torch.Tensor:
        s = self.stage
        out = wp.zeros(len(self.particles), dtype=float, device=s.device)
        given = [wp.array(x.numpy(), dtype=wp.vec3, device=s.device) if torch.is_tensor(x) else x for x in inputs]
        wp.launch(kernel, len(self.particles), [s.surface, s.look, *given, out], device=s.device)
        return torch.from_numpy(out.numpy())

    def __call__(self, vertices: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (P, 2) and visibility (P,) for the stage's current vertices (M, 3)."""
        points = self.place(vertices.cpu())
        R, t = self.view[:3, :3], self.view[:3, 3]
        local = points @ R.T + t
        pixels = (local @ self.K.T)[:, :2] / local[:, 2:]
        cam = -R.T @ t
        hit = self.launch(first_hit, wp.vec3(*cam.tolist()), points)
        near = (hit - (points - cam).norm(dim=1)).abs() < 0.004 + 2.0 * self.cover
        return pixels.numpy(), (near & (hit >= 0) & (local[:, 2] > 0)).numpy()


PRESENTING = ((0.22, -0.02, -1.0), (-0.02, -0.85, 0.12), -0.35)  # posture of the arms: forearms raised in front, palms half up
FRIENDLY = {"mouthSmileLeft": 0.16, "mouthSmileRight": 0.16, "browInnerUp": 0.10}  # facial actions; the lips stay closed


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
    stage.pose(pose.to(device), actions.to(device), None)
    K, view = camera("portrait", width, height, person=stage.body)
    picture, _ = stage.shoot(K, view, width, height, samples)
    return (picture * 255 + 0.5).clip(0, 255).astype(np.uint8)
