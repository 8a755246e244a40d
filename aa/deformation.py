"""4D Gaussians: a clip of one person to per-particle deformations dG_t (Problem Setting and [89] of the paper).

A HexPlane and a small MLP give every Gaussian an offset at every time. One camera leaves depth open, so tracks (Eq. 3) and a
distance-preserving prior between neighbours (ARAP, Sec. 3.3) are on from the start.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from aa.body import matrix_to_quat, quat_multiply, rotvec_to_matrix
from aa.gaussians import Gaussians, project
from aa.raster import rasterize

SPACE, TIME = ((0, 1), (0, 2), (1, 2)), (0, 1, 2)


@dataclass(frozen=True)
class FitSettings:
    """Settings of the 4DGS fit; sizes and rates after [89], scaled to a laptop (weights: prototype runs at 256 px)."""

    resolution: int = 32  # cells of a plane along space at scale 1; each part's box has planes of its own
    channels: int = 16  # features per plane
    scales: tuple[int, ...] = (1, 2)  # multi-resolution factors in space
    width: int = 64  # of the MLP
    steps: int = 400
    lr_planes: float = 2e-2
    lr_mlp: float = 3e-3
    lr_colors: float = 2e-2
    lr_scales: float = 1.5e-2
    decay: float = 0.05  # learning rates end at this share of their start
    w_traj: float = 1000.0  # on (px / larger side)^2; 50 is invisible beside L1
    w_iso: float = 40.0  # on relative changes of neighbour distances, in metres
    w_tv: float = 1e-3
    w_time: float = 1e-2
    neighbours: int = 12
    face_share: float = 0.5  # steps that look at the crop of the face instead of the whole frame

    @classmethod
    def preset(cls, name: str) -> "FitSettings":
        """`smoke` for tests, `quick` for a laptop, `full` for one GPU."""
        sizes = {
            "smoke": {"steps": 40, "resolution": 16, "scales": (1,)},
            "quick": {},
            "full": {"steps": 14_000, "resolution": 64, "channels": 32, "scales": (1, 2, 4), "neighbours": 20},
        }
        return cls(**sizes[name])


class _FixedSample(torch.autograd.Function):
    """A sparse matrix times a plane. The points never move in canonical space, so the bilinear weights are constants and the
    backward pass is one product with the transposed matrix instead of scattered additions."""

    @staticmethod
    def forward(ctx, plane, S, St):
        ctx.St = St
        return torch.sparse.mm(S, plane)

    @staticmethod
    def backward(ctx, grad):
        return torch.sparse.mm(ctx.St, grad.contiguous()), None, None


class HexPlane(nn.Module):
    """Features of N fixed canonical points over time: products of six planes (xy, xz, yz, xt, yt, zt), concatenated over scales."""

    def __init__(self, points: torch.Tensor, frames: int, settings: FitSettings, generator: torch.Generator):
        super().__init__()
        low, high = points.min(0).values, points.max(0).values
        margin = 0.05 * (high - low).max()
        unit = ((points - low + margin) / (high - low + 2 * margin)).clamp(0, 1)
        self.frames, rows = frames, max(2, (frames + 1) // 2)
        self.space, self.time = nn.ParameterList(), nn.ParameterList()
        self.samplers, self.lines = [], []
        for scale in settings.scales:
            R = settings.resolution * scale
            for a, b in SPACE:
                start = 0.1 + 0.4 * torch.rand(R * R, settings.channels, generator=generator)
                self.space.append(nn.Parameter(start.to(points.device)))
                self.samplers.append(_bilinear(unit[:, a], unit[:, b], R))
            for a in TIME:
                self.time.append(nn.Parameter(torch.ones(rows, R, settings.channels, device=points.device)))
                self.lines.append(_linear(unit[:, a], R))
        self.width = settings.channels * len(settings.scales)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """Features (B, N, width) at frame numbers t (B,), fractions allowed."""
        rows = self.time[0].shape[0]
        u = (t / max(self.frames - 1, 1) * (rows - 1)).clamp(0, rows - 1)
        low = u.floor().long().clamp(max=rows - 2)
        mix = (u - low)[:, None, None]
        features = []
        for s in range(len(self.space) // 3):
            product = 1.0
            for k in range(3 * s, 3 * s + 3):
                product = product * _FixedSample.apply(self.space[k], *self.samplers[k])
                row = (1 - mix) * self.time[k][low] + mix * self.time[k][low + 1]  # (B, R, C)
                product = product * (self.lines[k] @ row)  # (B, N, C)
            features.append(product)
        return torch.cat(features, -1)

    def smoothness(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Total variation of the space planes and squared second differences of the time planes along time."""
        tv = 0.0
        for p in self.space:
            grid = p.view(int(len(p) ** 0.5), -1, p.shape[1])
            tv = tv + grid.diff(dim=0).square().mean() + grid.diff(dim=1).square().mean()
        bend = sum(p.diff(n=2, dim=0).square().mean() for p in self.time if len(p) > 2)
        return tv, bend + 0.0 * tv


def _linear(x: torch.Tensor, R: int) -> torch.Tensor:
    """Dense weights (N, R) that read a line of R cells at x (N,) in [0, 1]."""
    u = x * (R - 1)
    low = u.floor().long().clamp(max=R - 2)
    weights = torch.zeros(len(x), R, device=x.device)
    weights.scatter_(1, low[:, None], (1 - u + low)[:, None])
    return weights.scatter_(1, low[:, None] + 1, (u - low)[:, None])


def _bilinear(x: torch.Tensor, y: torch.Tensor, R: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse weights (N, R * R) that read a plane of R x R cells at (x, y), and their transpose, both CSR."""
    N = torch.arange(len(x), device=x.device)
    index, value = [], []
    ux, uy = x * (R - 1), y * (R - 1)
    lx, ly = ux.floor().long().clamp(max=R - 2), uy.floor().long().clamp(max=R - 2)
    for dx in (0, 1):
        for dy in (0, 1):
            wx = ux - lx if dx else 1 - ux + lx
            wy = uy - ly if dy else 1 - uy + ly
            index.append(torch.stack([N, (lx + dx) * R + ly + dy]))
            value.append(wx * wy)
    shape = (len(x), R * R)
    S = torch.sparse_coo_tensor(torch.cat(index, 1), torch.cat(value), shape, check_invariants=True).coalesce()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")  # products are all that is used
        return S.to_sparse_csr(), S.t().coalesce().to_sparse_csr()


class DeformationField(nn.Module):
    """dG of N Gaussians at time t: one HexPlane per part box, one MLP, heads for means, rotations, log-scales and colours.

    The heads start at zero, so an untrained field is the identity.
    """

    def __init__(self, gaussians: Gaussians, part: torch.Tensor, frames: int, settings: FitSettings, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.groups = [(part == p).nonzero()[:, 0] for p in part.unique()]
        self.order = torch.argsort(torch.cat(self.groups))
        points = gaussians.means.detach()
        self.planes = nn.ModuleList(HexPlane(points[g], frames, settings, generator) for g in self.groups)
        w = settings.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk = nn.ModuleList(nn.Sequential(nn.Linear(p.width, w), nn.ReLU(), nn.Linear(w, w)) for p in self.planes)
            self.heads = nn.ModuleDict(
                {
                    k: nn.Sequential(nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 3))
                    for k in ("mean", "rot", "scale", "color")
                }
            )
        for head in self.heads.values():
            nn.init.zeros_(head[-1].weight)
            nn.init.zeros_(head[-1].bias)
        self.to(points.device)

    def forward(self, t: torch.Tensor) -> dict[str, torch.Tensor]:
        """Offsets mean (B, N, 3) m, rot (B, N, 3) rad, scale (B, N, 3) log, color (B, N, 3) at frame numbers t (B,)."""
        h = torch.cat([trunk(plane(t)) for trunk, plane in zip(self.trunk, self.planes)], 1)[:, self.order]
        return {k: head(h) for k, head in self.heads.items()}


def deform(gaussians: Gaussians, offsets: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Means, quats, scales, colours of B deformed copies, each (B, N, .)."""
    turn = matrix_to_quat(rotvec_to_matrix(offsets["rot"]))
    return [
        gaussians.means + offsets["mean"],
        quat_multiply(turn, gaussians.quats.expand(len(turn), -1, -1)),
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


def isometry_loss(now, then, pairs, weight) -> torch.Tensor:
    """Distance-preserving prior between neighbours at two moments: mean of w | ||x_i - x_j||_t - ||x_i - x_j||_t' |.

    Args: now, then (..., N, 3) m; pairs (M, 2); weight (M,). Source: Dynamic 3D Gaussians (`iso`), the paper's ARAP prior.
    """
    length = lambda x: (x[..., pairs[:, 0], :] - x[..., pairs[:, 1], :]).square().sum(-1).add(1e-12).sqrt()  # noqa: E731
    return (weight * (length(now) - length(then)).abs()).mean()


def neighbour_pairs(points: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs (M, 2) of k nearest neighbours and weights (M,) that fall with the distance relative to its mean."""
    from scipy.spatial import cKDTree

    distance, index = cKDTree(points.detach().cpu().numpy()).query(points.detach().cpu().numpy(), k=k + 1)
    i = np.repeat(np.arange(len(index)), k)
    relative = distance[:, 1:].ravel() / distance[:, 1:].mean()
    pairs = torch.as_tensor(np.stack([i, index[:, 1:].ravel()], 1), device=points.device)
    return pairs, torch.as_tensor(np.exp(-(relative**2) / 4), dtype=points.dtype, device=points.device)


def crop_camera(K: torch.Tensor, box: tuple[int, int, int, int], size: int) -> torch.Tensor:
    """Intrinsics of the crop (left, top, right, bottom) resampled to size x size: a crop is only another K."""
    left, top, right, bottom = box
    scale = torch.tensor([size / (right - left), size / (bottom - top), 1.0], device=K.device)
    shift = torch.eye(3, device=K.device)
    shift[0, 2], shift[1, 2] = -left, -top
    return torch.diag(scale) @ shift @ K


@dataclass(frozen=True)
class Footage:
    """What the fit sees of a clip: frames (T, H, W, 3) float in [0, 1], K, viewmat, background (3,), tracks and a face box."""

    frames: torch.Tensor
    K: torch.Tensor
    viewmat: torch.Tensor
    background: torch.Tensor
    tracks: torch.Tensor  # (T, P, 2) px
    visible: torch.Tensor  # (T, P) bool
    particle: torch.Tensor  # (P,) which Gaussian each track follows
    face_box: tuple[int, int, int, int] | None = None

    def view(self, t: int, face: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Target image (h, w, 3) and intrinsics, of the whole frame or of the face box at twice its resolution."""
        if not face or self.face_box is None:
            return self.frames[t], self.K
        left, top, right, bottom = self.face_box
        crop = self.frames[t, top:bottom, left:right].permute(2, 0, 1)[None]
        size = 2 * (right - left)
        target = nn.functional.interpolate(crop, (size, size), mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
        return target.clamp(0, 1), crop_camera(self.K, self.face_box, size)


@dataclass(frozen=True)
class Fit:
    """A fitted clip: canonical Gaussians with their final appearance, the field, and the loss curves."""

    gaussians: Gaussians
    field: DeformationField
    history: dict[str, list[float]]

    @torch.no_grad()
    def at(self, t: int) -> list[torch.Tensor]:
        """Means (N, 3), quats, scales and colours at frame t."""
        time = torch.tensor([float(t)], device=self.gaussians.means.device)
        return [x[0] for x in deform(self.gaussians, self.field(time))]

    @torch.no_grad()
    def render(self, t: int, viewmat, K, width: int, height: int, background) -> torch.Tensor:
        """The picture (H, W, 3) of frame t from any camera."""
        means, quats, scales, colors = self.at(t)
        opacities = self.gaussians.opacities
        image, _, _ = rasterize(
            means, quats, scales, opacities, colors, viewmat[None], K[None], width, height, backgrounds=background[None]
        )
        return image[0].clamp(0, 1)


def fit_clip(gaussians: Gaussians, part: torch.Tensor, footage: Footage, settings=None, seed: int = 0, progress=True) -> Fit:
    """Fit dG_t of `gaussians` (N) with part labels (N,) to a clip: L1 + L_traj + isometry + plane smoothness.

    Appearance (colours, scales) is refined along with the motion. Deterministic for a seed on one machine.
    """
    settings = settings or FitSettings()
    T = len(footage.frames)
    field = DeformationField(gaussians, part, T, settings, seed)
    free = {k: getattr(gaussians, k).detach().clone().requires_grad_() for k in ("colors", "log_scales")}
    optimizer = torch.optim.Adam(
        [
            {"params": field.planes.parameters(), "lr": settings.lr_planes},
            {"params": [*field.trunk.parameters(), *field.heads.parameters()], "lr": settings.lr_mlp},
            {"params": [free["colors"]], "lr": settings.lr_colors},
            {"params": [free["log_scales"]], "lr": settings.lr_scales},
        ],
        eps=1e-15,
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, settings.decay ** (1 / settings.steps))
    rng = np.random.default_rng(seed)
    pairs, weight = neighbour_pairs(gaussians.means, settings.neighbours)
    history: dict[str, list[float]] = {}
    for _ in tqdm(range(settings.steps), desc="4DGS", disable=not progress):
        t = int(rng.integers(T))
        other = min(t + 1, T - 1) if rng.random() < 0.5 else int(rng.integers(T))
        canonical = Gaussians(gaussians.means, gaussians.quats, free["log_scales"], gaussians.opacity_logits, free["colors"])
        terms = _losses(canonical, field, footage, (t, other), (pairs, weight), rng.random() < settings.face_share, settings)
        loss = sum(terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        for k, v in terms.items():
            history.setdefault(k, []).append(float(v.detach()))
    final = {k: v.detach() for k, v in free.items()}
    return Fit(
        Gaussians(gaussians.means, gaussians.quats, final["log_scales"], gaussians.opacity_logits, final["colors"]), field, history
    )  # fmt: skip


def _losses(canonical, field, footage, times, neighbours, face: bool, s: FitSettings) -> dict[str, torch.Tensor]:
    """The weighted terms of one step at two moments: the picture at the first, tracks and isometry at both."""
    device = canonical.means.device
    means, quats, scales, colors = deform(canonical, field(torch.tensor([float(t) for t in times], device=device)))
    target, K = footage.view(times[0], face)
    height, width = target.shape[:2]
    image, _, _ = rasterize(
        means[0], quats[0], scales[0], canonical.opacities, colors[0], footage.viewmat[None], K[None], width, height,
        backgrounds=footage.background[None],
    )  # fmt: skip
    tv, bend = (sum(x) for x in zip(*(p.smoothness() for p in field.planes)))
    terms = {"l1": (image[0] - target).abs().mean(), "tv": s.w_tv * tv, "time": s.w_time * bend}
    if s.w_traj:
        pixels, _ = project(means[:, footage.particle], footage.viewmat, footage.K)
        index = list(times)
        side = max(footage.frames.shape[1:3])
        terms["traj"] = s.w_traj * trajectory_loss(pixels, footage.tracks[index], footage.visible[index], side)
    if s.w_iso:
        rest = isometry_loss(means, canonical.means, *neighbours)
        terms["iso"] = s.w_iso * (rest + isometry_loss(means[0], means[1], *neighbours))
    return terms
