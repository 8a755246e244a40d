"""HexPlane deformation field (4D Gaussian Splatting, [89] of the paper): features of fixed canonical points over time.

Six planes (xy, xz, yz, xt, yt, zt) are read bilinearly and multiplied; a small MLP turns the features into dG_t.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import nn

from aa.gaussians import Gaussians

SPACE, TIME = ((0, 1), (0, 2), (1, 2)), (0, 1, 2)


@dataclass(frozen=True)
class FitSettings:
    """Settings of the 4DGS fit; sizes and rates after [89], scaled to a laptop (weights found at 256 px)."""

    resolution: int = 32  # cells of a plane along space at scale 1; each part's box has planes of its own
    channels: int = 16  # features per plane
    scales: tuple[int, ...] = (1, 2)  # multi-resolution factors in space
    width: int = 64  # of the MLP
    steps: int = 400  # each looks at two moments
    lr_planes: float = 2e-2  # Adam; relative to colours in [0, 1], log-scales and metres
    lr_mlp: float = 2e-3
    lr_colors: float = 2e-2
    lr_scales: float = 1.5e-2
    decay: float = 0.05  # learning rates end at this share of their start
    w_traj: float = 1000.0  # on (px / larger side)^2; 50 is invisible beside L1
    w_iso: float = 40.0  # on relative changes of neighbour distances, in metres
    w_tv: float = 1e-3  # total variation of the space planes
    w_time: float = 1e-2  # squared second differences of the time planes
    w_look: float = 1.0  # keeps colours and log-scales near their start, which decides for what is hardly seen
    neighbours: int = 8  # of each Gaussian in the isometry term
    w_face: float = 1.0  # of the L1 in the crop of the face, beside that of the whole frame
    w_hand: float = 0.0  # of the L1 in crops of the hands, which take the face's place in a third of the steps
    w_ssim: float = 0.0  # D-SSIM of the same pictures
    w_hold: float = 0.0  # keeps means near the coarse motion, where that is good; squared, in units of `hold`
    hold: float = 0.002  # m
    robust: bool = False  # L_traj with absolute values instead of Eq. 3's squares
    patience: int = 3  # windows of 50 steps without a gain after which the fit stops; 0: never
    save_every: int = 50  # steps between checkpoints
    nodes: int = 500  # of the graph that lifts the tracks to 3D before the fit; 0 starts from a body that stands still

    @classmethod
    def preset(cls, name: str) -> "FitSettings":
        """`smoke` for tests, `quick` for a laptop, `full` for one GPU."""
        refine = {  # a coarse motion that is good to millimetres: looks are free, places hardly
            "w_hold": 0.01, "hold": 0.006, "w_look": 0.003, "w_hand": 0.5, "w_face": 1.5, "w_iso": 20.0, "lr_planes": 0.03,
            "lr_scales": 0.03, "robust": True,
        }  # fmt: skip
        size = {"steps": 14_000, "resolution": 64, "channels": 32, "scales": (1, 2, 4), "neighbours": 20, "nodes": 700}
        sizes = {
            "smoke": {"steps": 40, "resolution": 16, "scales": (1,), "nodes": 200},
            "quick": refine,
            "full": refine | size,
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
    """dG of N Gaussians at time t: one HexPlane and one MLP per part, for means, rotations, log-scales and colours.

    The last layers start at zero, so an untrained field is the identity.
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
            self.trunk = nn.ModuleList(
                nn.Sequential(nn.Linear(p.width, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 4 * 3))
                for p in self.planes
            )
        for mlp in self.trunk:
            nn.init.zeros_(mlp[-1].weight)
            nn.init.zeros_(mlp[-1].bias)
        self.to(points.device)

    def forward(self, t: torch.Tensor) -> dict[str, torch.Tensor]:
        """Offsets mean (B, N, 3) m, rot (B, N, 3) rad, scale (B, N, 3) log, color (B, N, 3) at frame numbers t (B,)."""
        out = torch.cat([trunk(plane(t)) for trunk, plane in zip(self.trunk, self.planes)], 1)[:, self.order]
        return dict(zip(("mean", "rot", "scale", "color"), out.split(3, -1)))
