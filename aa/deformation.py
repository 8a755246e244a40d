"""4D Gaussians: a clip of one person to per-particle deformations dG_t (Problem Setting and [89] of the paper).

A HexPlane and a small MLP give every Gaussian an offset at every time. One camera leaves depth open, so tracks (Eq. 3) and a
distance-preserving prior between neighbours (ARAP, Sec. 3.3) are on from the start; before it, the two alone lift the tracks to a
coarse motion (`aa.lifting`) that the field refines.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from aa.body import matrix_to_quat, quat_multiply, rotvec_to_matrix
from aa.gaussians import Gaussians, project
from aa.hexplane import DeformationField, FitSettings, HexPlane
from aa.lifting import lift_tracks, make_graph
from aa.raster import rasterize

__all__ = ["DeformationField", "Fit", "FitSettings", "Footage", "HexPlane", "fit_clip"]


@dataclass(frozen=True)
class Base:
    """The coarse motion that a field refines: means (T, N, 3) m and turns (T, N, 4) wxyz relative to the canonical Gaussians."""

    means: torch.Tensor
    turns: torch.Tensor


def deform(gaussians: Gaussians, offsets: dict[str, torch.Tensor], base: Base | None = None) -> list[torch.Tensor]:
    """G_t = G + dG_t: means, quats, scales, colours of B deformed copies, each (B, N, .); `base` holds B frames or is None."""
    turn = matrix_to_quat(rotvec_to_matrix(offsets["rot"]))
    quats = gaussians.quats.expand(len(turn), -1, -1)
    return [
        (gaussians.means if base is None else base.means) + offsets["mean"],
        quat_multiply(turn, quats if base is None else quat_multiply(base.turns, quats)),
        (gaussians.log_scales + offsets["scale"]).exp(),
        gaussians.colors + offsets["color"],
    ]


def trajectory_loss(pixels, tracks, visible, larger_side: int, robust: bool = False) -> torch.Tensor:
    """Eq. 3, masked and divided by the larger image side so that its weight does not depend on resolution.

    Args: pixels, tracks (..., P, 2); visible (..., P) bool; robust: L1 instead of squares (as in Shape of Motion).
    """
    error = (pixels - tracks) / larger_side
    error = error.abs().sum(-1) if robust else error.square().sum(-1)
    return (error * visible).sum() / visible.sum().clamp_min(1)


def edge_lengths(points, pairs) -> torch.Tensor:
    """Distances (..., M) between pairs (M, 2) of points (..., N, 3)."""
    return (points[..., pairs[:, 0], :] - points[..., pairs[:, 1], :]).square().sum(-1).add(1e-12).sqrt()


def isometry_loss(now, then, pairs, weight) -> torch.Tensor:
    """Distance-preserving prior between neighbours at two moments: mean of w | ||x_i - x_j||_t - ||x_i - x_j||_t' |.

    Args: now, then (..., N, 3) m; pairs (M, 2); weight (M,). Source: Dynamic 3D Gaussians (`iso`), the paper's ARAP prior.
    """
    return (weight * (edge_lengths(now, pairs) - edge_lengths(then, pairs)).abs()).mean()


def neighbour_pairs(points: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs (M, 2) of k nearest neighbours, each once, and weights (M,) that fall with the distance relative to its mean."""
    from scipy.spatial import cKDTree

    x = points.detach().cpu().numpy()
    index = cKDTree(x).query(x, k=k + 1)[1]
    pairs = np.stack([np.repeat(np.arange(len(index)), k), index[:, 1:].ravel()], 1)
    pairs = np.unique(np.sort(pairs, 1), axis=0)
    distance = np.linalg.norm(x[pairs[:, 0]] - x[pairs[:, 1]], axis=1)
    weight = np.exp(-((distance / distance.mean()) ** 2) / 4)
    return torch.as_tensor(pairs, device=points.device), torch.as_tensor(weight, dtype=points.dtype, device=points.device)


def crop_camera(K: torch.Tensor, box: tuple[int, int, int, int], size: int) -> torch.Tensor:
    """Intrinsics of the crop (left, top, right, bottom) resampled to size x size: a crop is only another K."""
    left, top, right, bottom = box
    scale = torch.tensor([size / (right - left), size / (bottom - top), 1.0], device=K.device)
    shift = torch.eye(3, device=K.device)
    shift[0, 2], shift[1, 2] = -left, -top
    return torch.diag(scale) @ shift @ K


@dataclass(frozen=True)
class Footage:
    """What the fit sees of a clip: frames (T, H, W, 3) float in [0, 1], K, viewmat, background, tracks and a face box."""

    frames: torch.Tensor
    K: torch.Tensor
    viewmat: torch.Tensor
    background: torch.Tensor  # (H, W, 3) or one colour (3,)
    tracks: torch.Tensor  # (T, P, 2) px
    visible: torch.Tensor  # (T, P) bool
    particle: torch.Tensor  # (P,) which Gaussian each track follows
    face_box: tuple[int, int, int, int] | None = None  # left, top, right, bottom, square

    @classmethod
    def of(cls, clip, background, face_box=None, device="cpu") -> "Footage":
        """From a `Clip` with tracks and an empty picture of the place, (H, W, 3) in [0, 1] or one colour (3,)."""
        f = lambda x: torch.as_tensor(np.asarray(x), dtype=torch.float32, device=device)  # noqa: E731
        tracks = f(clip.tracks).transpose(0, 1), torch.as_tensor(clip.visibility, device=device).T
        particle = torch.as_tensor(clip.particle, device=device)
        return cls(f(clip.load_frames()) / 255, f(clip.K), f(clip.viewmat), f(background), *tracks, particle, face_box)

    def views(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(pictures (T, h, w, 3), K, background (h, w, 3)) of the frame and, if given, of the face box at twice its size."""
        behind = self.background.expand(*self.frames.shape[1:])
        whole = [(self.frames, self.K, behind)]
        if self.face_box is None:
            return whole
        left, top, right, bottom = self.face_box
        size = 2 * (right - left)
        stack = torch.cat([self.frames, behind[None]])[:, top:bottom, left:right].permute(0, 3, 1, 2)
        large = nn.functional.interpolate(stack, (size, size), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).clamp(0, 1)
        return [*whole, (large[:-1].contiguous(), crop_camera(self.K, self.face_box, size), large[-1])]


@dataclass(frozen=True)
class Fit:
    """A fitted clip: canonical Gaussians with their final appearance, the field, the motion it refines, and the loss curves."""

    gaussians: Gaussians
    field: DeformationField
    base: Base | None
    history: dict[str, list[float]]

    @torch.no_grad()
    def at(self, t: int) -> list[torch.Tensor]:
        """Means (N, 3), quats, scales and colours at frame t."""
        return [x[0] for x in deform(self.gaussians, *_moments(self.field, self.base, [t]))]

    @torch.no_grad()
    def render(self, t: int, viewmat, K, width: int, height: int, background, means=None, quats=None) -> torch.Tensor:
        """The picture (H, W, 3) of frame t from any camera; other means and quats show another motion in the same colours."""
        own, turned, scales, colors = self.at(t)
        look = (own if means is None else means, turned if quats is None else quats, scales, self.gaussians.opacities, colors)
        image, alpha, _ = rasterize(*look, viewmat[None], K[None], width, height)
        return (image[0] + (1 - alpha[0]) * background).clamp(0, 1)


def _moments(field: DeformationField, base: Base | None, times: list[int]):
    """Arguments of `deform` at some frames."""
    t = torch.tensor(times, device=field.order.device)
    return field(t.float()), None if base is None else Base(base.means[t], base.turns[t])


def fit_clip(
    gaussians: Gaussians, part: torch.Tensor, footage: Footage, settings=None, seed: int = 0, progress=True, apart=None, base=None
) -> Fit:
    """Fit dG_t of `gaussians` (N) with part labels (N,) to a clip: L1 + L_traj + isometry + plane smoothness.

    Args: apart (N, 3): the particles in a posture with the limbs apart, in which neighbours are looked up (default: the canonical
        means); base: a coarse motion, by default the lifted tracks if there are tracks and both priors are on.
    Appearance (colours, scales) is refined along with the motion. Deterministic for a seed on one machine.
    """
    settings = settings or FitSettings()
    T = len(footage.frames)
    apart = gaussians.means if apart is None else apart
    if base is None and settings.nodes and settings.w_traj and settings.w_iso and len(footage.particle):
        base = Base(*lift_tracks(gaussians.means, make_graph(apart, part, settings.nodes), footage))
    field = DeformationField(gaussians, part, T, settings, seed)
    free = {k: getattr(gaussians, k).detach().clone().requires_grad_() for k in ("colors", "log_scales")}
    optimizer = torch.optim.Adam(
        [
            {"params": field.planes.parameters(), "lr": settings.lr_planes},
            {"params": field.trunk.parameters(), "lr": settings.lr_mlp},
            {"params": [free["colors"]], "lr": settings.lr_colors},
            {"params": [free["log_scales"]], "lr": settings.lr_scales},
        ],
        eps=1e-15,
    )
    rate = lambda n: min(1.0, (n + 1) / 20) * settings.decay ** (n / settings.steps)  # noqa: E731, first steps must not undo the base
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    rng = np.random.default_rng(seed)
    pairs, weight = neighbour_pairs(apart, settings.neighbours)
    edges = (pairs, weight, edge_lengths(gaussians.means, pairs))
    views, history = footage.views(), {}
    for _ in tqdm(range(settings.steps), desc="4DGS", disable=not progress):
        t = int(rng.integers(T))
        other = min(t + 1, T - 1) if rng.random() < 0.5 else int(rng.integers(T))
        terms = _losses(replace(gaussians, **free), field, base, footage, views, [t, other], edges, settings)
        terms["look"] = settings.w_look * sum((v - getattr(gaussians, k)).square().mean() for k, v in free.items())
        loss = sum(terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        for k, v in terms.items():
            history.setdefault(k, []).append(float(v.detach()))
    return Fit(replace(gaussians, **{k: v.detach() for k, v in free.items()}), field, base, history)


def _losses(canonical, field, base, footage, views, times, edges, s: FitSettings) -> dict[str, torch.Tensor]:
    """The weighted terms of one step at two moments: pictures of frame and face, tracks, isometry, smoothness of the planes."""
    means, quats, scales, colors = deform(canonical, *_moments(field, base, times))
    look = (means, quats, scales, canonical.opacities, colors)
    terms = {}
    for name, factor, (frames, K, behind) in zip(("l1", "l1 face"), (1.0, s.w_face), views):
        cameras = footage.viewmat.expand(2, 4, 4).contiguous(), K.expand(2, 3, 3).contiguous()
        image, alpha, _ = rasterize(*look, *cameras, frames.shape[2], frames.shape[1])
        terms[name] = factor * (image + (1 - alpha) * behind - frames[times]).abs().mean()
    tv, bend = (sum(x) for x in zip(*(p.smoothness() for p in field.planes)))
    terms |= {"tv": s.w_tv * tv, "time": s.w_time * bend}
    if s.w_traj:
        pixels, _ = project(means[:, footage.particle], footage.viewmat, footage.K)
        side = max(footage.frames.shape[1:3])
        terms["traj"] = s.w_traj * trajectory_loss(pixels, footage.tracks[times], footage.visible[times], side)
    if s.w_iso:
        pairs, weight, rest = edges
        length = edge_lengths(means, pairs)  # (2, M)
        change = (length[0] - length[1]).abs() + (length - rest).abs().mean(0)
        terms["iso"] = s.w_iso * (weight * change).mean()
    return terms
