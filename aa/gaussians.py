"""Gaussians, the particle layout that every identity shares, and deformations dG of them (Problem Setting of the paper)."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from aa.body import ASSETS, HELPERS, REGIONS, Body, matrix_to_quat

SH_C0 = 0.28209479177387814  # zeroth spherical harmonic: 3DGS .ply files store colour by it
PARTS = ("body", "face", "hand")
# Particles per unit area relative to the torso: dense where speech is read, sparse elsewhere (Sec. 3).
DENSITY = {
    "torso": 1.0, "neck": 2.5, "upperarm": 1.0, "forearm": 1.5, "hand": 5.0, "leg": 0.7, "foot": 0.8, "face": 16.0, "scalp": 5.0,
    "ear": 8.0, "lips": 50.0, "mouth": 5.0, "eyelid": 40.0, "eye_cavity": 0.5, "eye": 20.0, "tongue": 6.0, "teeth": 14.0,
    "nail": 6.0,
}  # fmt: skip
FACE_REGIONS = ("face", "lips", "mouth", "eyelid", "eye_cavity", "eye", "tongue", "teeth")
HAND_REGIONS = ("hand", "nail")


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians: means (N, 3) m, quats (N, 4) wxyz, log_scales (N, 3) of metres, opacity_logits (N,), colors (N, 3) in [0, 1]."""

    means: torch.Tensor
    quats: torch.Tensor
    log_scales: torch.Tensor
    opacity_logits: torch.Tensor
    colors: torch.Tensor

    def __len__(self) -> int:
        return len(self.means)

    @property
    def scales(self) -> torch.Tensor:
        return self.log_scales.exp()

    @property
    def opacities(self) -> torch.Tensor:
        return self.opacity_logits.sigmoid()

    def render(self, viewmats, Ks, width: int, height: int, background=None, render_mode: str = "RGB"):
        """Images (C, H, W, D), alphas (C, H, W, 1) and meta from `aa.raster.rasterize`; viewmats (C, 4, 4), Ks (C, 3, 3)."""
        from aa.raster import rasterize

        return rasterize(
            self.means, self.quats, self.scales, self.opacities, self.colors, viewmats, Ks, width, height,
            render_mode=render_mode, backgrounds=background,
        )  # fmt: skip

    def save(self, path) -> None:
        """Write safetensors (to a temporary name, then renamed)."""
        part = f"{path}.part"
        save_file({k: v.detach().contiguous() for k, v in vars(self).items()}, part)
        os.replace(part, path)

    @classmethod
    def load(cls, path, device="cpu") -> "Gaussians":
        with safe_open(path, "pt", device=str(device)) as f:
            return cls(**{k: f.get_tensor(k) for k in f.keys()})  # noqa: SIM118

    def save_ply(self, path) -> None:
        """Write the standard binary 3DGS .ply that public viewers open."""
        names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
        names += ["rot_0", "rot_1", "rot_2", "rot_3"]
        columns = [self.means, torch.zeros_like(self.means), (self.colors - 0.5) / SH_C0, self.opacity_logits[:, None]]
        columns += [self.log_scales, torch.nn.functional.normalize(self.quats, dim=1)]
        table = torch.cat([c.detach().float().cpu() for c in columns], 1).numpy().astype("<f4")
        head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(self)}\n"
        head += "".join(f"property float {n}\n" for n in names) + "end_header\n"
        part = Path(f"{path}.part")
        part.write_bytes(head.encode() + table.tobytes())
        os.replace(part, path)


@dataclass(frozen=True)
class Layout:
    """A fixed list of N samples on the body surface: the same particles, in the same order, for every identity."""

    tri: torch.Tensor  # (N,) index into body.faces
    corners: torch.Tensor  # (N, 3) the vertices of that triangle
    bary: torch.Tensor  # (N, 3) barycentric weights, rows sum to 1
    part: torch.Tensor  # (N,) index into PARTS
    region: torch.Tensor  # (N,) index into aa.body.REGIONS
    spacing: torch.Tensor  # (N,) m, distance to the next particles on the mean body
    name: str  # "n-seed", identifies the layout in files

    def __len__(self) -> int:
        return len(self.tri)

    def place(self, vertices: torch.Tensor) -> torch.Tensor:
        """Barycentric read of any per-vertex field: (..., V, C) -> (..., N, C); of vertices it gives particle means."""
        picked = vertices[..., self.corners.flatten(), :].unflatten(-2, (-1, 3))
        return (picked * self.bary[..., None]).sum(-2)

    def frames(self, vertices: torch.Tensor) -> torch.Tensor:
        """Tangent frames (..., N, 3, 3), columns (along an edge, across, outward normal), of a posed body (..., V, 3)."""
        a, b, c = vertices[..., self.corners.flatten(), :].unflatten(-2, (-1, 3)).unbind(-2)
        t = torch.nn.functional.normalize(b - a, dim=-1)
        n = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)
        return torch.stack([t, torch.linalg.cross(n, t), n], -1)

    def gaussians(self, vertices: torch.Tensor, colors: torch.Tensor, opacity: float = 0.95) -> Gaussians:
        """Flat discs on the surface: tangential radius from the spacing, a fifth of it across (anisotropic start)."""
        flat = torch.tensor([0.62, 0.62, 0.15], device=vertices.device)
        logit = math.log(opacity / (1 - opacity))
        return Gaussians(
            self.place(vertices), matrix_to_quat(self.frames(vertices)), (self.spacing[:, None] * flat).log(),
            torch.full((len(self),), logit, device=vertices.device), colors,
        )  # fmt: skip

    def to(self, device) -> "Layout":
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if torch.is_tensor(v)})


def make_layout(body: Body, n: int, seed: int = 0) -> Layout:
    """Blue-noise particles on the body: Poisson-disk elimination with a radius per region, then exactly `n` of them.

    Random placement leaves holes through which hidden layers leak. Helper geometry carries none; inner mouth, teeth, tongue
    and eyeballs do.
    """
    if n < 500:
        raise ValueError(f"a layout needs at least 500 particles to cover a body, got {n}")
    rng = np.random.default_rng(seed)
    v, f = body.v_template.cpu().double().numpy(), body.faces.cpu().numpy()
    region = body.face_region.cpu().numpy()
    density = np.array([DENSITY.get(name, 0.0) for name in REGIONS])[region]
    cross = np.cross(v[f[:, 1]] - v[f[:, 0]], v[f[:, 2]] - v[f[:, 0]])
    area = 0.5 * np.linalg.norm(cross, axis=1)
    density = density * _near_features(body, v[f].mean(1))
    weight = area * density
    tri = rng.choice(len(f), size=8 * n, p=weight / weight.sum())
    u = np.sqrt(rng.random(8 * n))
    w = rng.random(8 * n)
    bary = np.stack([1 - u, u * (1 - w), u * w], 1)
    points = (v[f[tri]] * bary[..., None]).sum(1)
    # A maximal Poisson-disk set holds about 0.75 points per squared radius; aim a little above n and thin out.
    radius = np.sqrt(0.75 * weight.sum() / n / density[tri])
    kept = _poisson_disk(points, cross[tri] / np.linalg.norm(cross[tri], axis=1, keepdims=True), radius, n, rng)
    tri, bary, radius = tri[kept], bary[kept], radius[kept]
    part = np.zeros(len(kept), int)
    part[np.isin(region[tri], [REGIONS.index(r) for r in FACE_REGIONS])] = 1
    part[np.isin(region[tri], [REGIONS.index(r) for r in HAND_REGIONS])] = 2
    t = torch.as_tensor
    return Layout(
        t(tri), t(f[tri]), t(bary).float(), t(part), t(region[tri]), t(radius * 1.05).float(), f"{n}-{seed}"
    ).to(body.device)  # fmt: skip


def load_layout(body: Body, n: int = 40_000, path: Path | None = None) -> Layout:
    """The shipped layout of 10 000 or 40 000 particles (assets/layouts.safetensors); any other size is made anew."""
    with safe_open(path or ASSETS / "layouts.safetensors", "pt") as f:
        if f"{n}.tri" not in f.keys():  # noqa: SIM118
            return make_layout(body, n)
        tri, bary, part, spacing = (f.get_tensor(f"{n}.{k}") for k in ("tri", "bary", "part", "spacing"))
    tri, two = tri.long(), bary.float()
    bary = torch.cat([two, 1 - two.sum(1, keepdim=True)], 1)
    layout = Layout(tri, body.faces.cpu()[tri], bary, part.long(), body.face_region.cpu()[tri], spacing.float(), f"{n}-0")
    return layout.to(body.device)


def save_layouts(layouts: list[Layout], path: Path) -> None:
    """Write layouts compactly: triangle, two barycentric weights, part and spacing."""
    tensors = {}
    for layout in layouts:
        n = len(layout)
        tensors |= {f"{n}.tri": layout.tri.int(), f"{n}.bary": layout.bary[:, :2].half().contiguous()}
        tensors |= {f"{n}.part": layout.part.to(torch.uint8), f"{n}.spacing": layout.spacing.half()}
    save_file(tensors, f"{path}.part")
    os.replace(f"{path}.part", path)


def _near_features(body: Body, centres: np.ndarray) -> np.ndarray:
    """Density multiplier (F,): twice as many particles within 2.5 cm of eyes and mouth."""
    v = body.v_template.cpu().double().numpy()
    from scipy.spatial import cKDTree

    features = v[torch.cat([body.region_vertices("eye"), body.region_vertices("lips")]).cpu().numpy()]
    distance = cKDTree(features).query(centres)[0]
    face = np.isin(body.face_region.cpu().numpy(), [REGIONS.index("face")])
    return np.where(face & (distance < 0.025), 2.0, 1.0)


def _poisson_disk(points, normals, radius, n, rng) -> np.ndarray:
    """Indices (n,) of a Poisson-disk subset: rounds of "keep whoever comes first among its neighbours"."""
    from scipy.spatial import cKDTree

    order = rng.permutation(len(points))
    rank = np.empty(len(points), int)
    rank[order] = np.arange(len(points))
    pairs = _close_pairs(cKDTree(points), points, normals, radius)
    alive, kept = np.ones(len(points), bool), np.zeros(len(points), bool)
    while len(pairs):
        first = np.where(rank[pairs[:, 0]] < rank[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
        second = pairs.sum(1) - first
        loses = np.zeros(len(points), bool)
        loses[second] = True
        winners = alive & ~loses
        kept |= winners
        alive &= ~winners
        alive[second[winners[first]]] = False
        pairs = pairs[alive[pairs[:, 0]] & alive[pairs[:, 1]]]
    kept |= alive
    chosen = np.flatnonzero(kept)
    gap = cKDTree(points[chosen]).query(points[chosen], k=2)[0][:, 1] / radius[chosen]
    if len(chosen) >= n:
        return np.sort(chosen[np.argsort(-gap)[:n]])
    rest = np.flatnonzero(~kept)
    gap = cKDTree(points[chosen]).query(points[rest])[0] / radius[rest]
    return np.sort(np.concatenate([chosen, rest[np.argsort(-gap)[: n - len(chosen)]]]))


def _close_pairs(tree, points, normals, radius) -> np.ndarray:
    """Pairs (m, 2) nearer than their mean radius on surfaces that face the same way (closed lips are two surfaces)."""
    chunks = []
    for low, high in [(q, q + 0.1) for q in np.arange(0, 1, 0.1)]:
        lo, hi = np.quantile(radius, [low, high])
        mine = np.flatnonzero((radius >= lo) & ((radius < hi) | (high > 0.99)))
        from scipy.spatial import cKDTree

        near = cKDTree(points[mine]).sparse_distance_matrix(tree, hi, output_type="coo_matrix")
        i, j = mine[near.row], near.col
        keep = (near.data < np.minimum(radius[i], radius[j])) & (i != j) & ((normals[i] * normals[j]).sum(1) > 0.2)
        chunks.append(np.stack([i[keep], j[keep]], 1))
    pairs = np.sort(np.concatenate(chunks), 1)
    return np.unique(pairs, axis=0)


def look_at(eye, target, up=(0.0, 0.0, 1.0), device="cpu") -> torch.Tensor:
    """World-to-camera matrix (4, 4), OpenCV axes, of a camera at `eye` (3,) m that looks at `target` (3,) m."""
    eye, target, up = (torch.as_tensor(x, dtype=torch.float32, device=device) for x in (eye, target, up))
    forward = torch.nn.functional.normalize(target - eye, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=0)
    viewmat = torch.eye(4, device=device)
    viewmat[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    viewmat[:3, 3] = -viewmat[:3, :3] @ eye
    return viewmat


def intrinsics(focal: float, width: int, height: int, device="cpu") -> torch.Tensor:
    """Pinhole K (3, 3) with the principal point in the middle; focal in pixels."""
    return torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]], device=device)


def project(points: torch.Tensor, viewmat: torch.Tensor, K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (..., 2) and depths (...,) m of world points (..., 3); viewmat (4, 4), K (3, 3)."""
    camera = points @ viewmat[:3, :3].T + viewmat[:3, 3]
    image = camera @ K.T
    return image[..., :2] / image[..., 2:3].clamp_min(1e-6), camera[..., 2]


assert set(DENSITY) | set(HELPERS) == set(REGIONS)
