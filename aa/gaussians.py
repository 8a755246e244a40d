"""Gaussians, the particle layout that every identity shares, and deformations dG of them (Problem Setting of the paper)."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.spatial import cKDTree

from aa.bluenoise import cells, on_triangles, poisson_disk
from aa.body import ASSETS, HELPERS, REGIONS, Body, matrix_to_quat

SH_C0 = 0.28209479177387814  # zeroth spherical harmonic: 3DGS .ply files store colour by it
PARTS = ("body", "face", "hand")
# Particles per unit area relative to the torso: dense where speech is read, sparse elsewhere (Sec. 3).
DENSITY = {
    "torso": 1.0, "neck": 2.5, "upperarm": 1.0, "forearm": 1.5, "hand": 5.0, "leg": 0.7, "foot": 1.5, "face": 16.0, "scalp": 5.0,
    "ear": 12.0, "lips": 50.0, "mouth": 5.0, "eyelid": 40.0, "eye_cavity": 4.0, "eye": 20.0, "tongue": 6.0, "teeth": 14.0,
    "nail": 6.0,
}  # fmt: skip
FACE_REGIONS = ("face", "lips", "mouth", "eyelid", "eye_cavity", "eye", "tongue", "teeth")
HAND_REGIONS = ("hand", "nail")
PER_CELL = 40  # points by which the cell of a particle is measured
LONGEST = {"eye_cavity": 0.002}  # m, reach of cells in regions that are strongly bent
COVER = 2.1  # radius of a disc (standard deviation) over the root of its cell's moment: gaps are closed, edges stay sharp
THIN = 0.25  # thickness of a disc over its smaller radius


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
    spacing: torch.Tensor  # (N,) m, distance to the next particles on the mean body, the same in a region
    name: str  # "n-seed", identifies the layout in files
    # (N, 2, 2) second moments of the surface nearest to each particle, in units of its triangle's edges a-b and a-c
    cell: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.tri)

    def place(self, vertices: torch.Tensor) -> torch.Tensor:
        """Barycentric read of any per-vertex field: (..., V, C) -> (..., N, C); of vertices it gives particle means."""
        picked = vertices[..., self.corners.flatten(), :].unflatten(-2, (-1, 3))
        return (picked * self.bary[..., None]).sum(-2)

    def frames(self, vertices: torch.Tensor) -> torch.Tensor:
        """Tangent frames (..., N, 3, 3), columns (along an edge, across, outward normal), of a posed body (..., V, 3)."""
        return _triangle_frames(self._triangles(vertices))

    def discs(self, vertices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The ellipses that cover a body (V, 3): frames (N, 3, 3), columns (long axis, short axis, normal), and radii (N, 2) m.

        A cell belongs to the triangle it lies on: where a person is broader than the mean, or skin is stretched along one
        direction, the ellipse is as well. Its axes are those of the second moment E M E^T, E the edges of the triangle.
        """
        if self.cell is None:
            raise ValueError(f"layout {self.name} has no cells")
        triangles = self._triangles(vertices)
        edges = _edges(triangles)
        moment, axes = torch.linalg.eigh(edges @ self.cell @ edges.mT)  # ascending
        radii, axes = COVER * moment.clamp_min(1e-12).flip(-1).sqrt(), axes.flip(-1)
        frame = _triangle_frames(triangles)
        along, normal = frame[..., :2] @ axes[..., :1], frame[..., 2]
        across = torch.linalg.cross(normal, along[..., 0])
        return torch.stack([along[..., 0], across, normal], -1), radii

    def gaussians(self, vertices: torch.Tensor, colors: torch.Tensor, opacity: float = 0.95, height=None) -> Gaussians:
        """Flat discs on the surface (V, 3), each as long and wide as the particles around it are far (anisotropic start).

        height (N,) m lifts them off along the normal: hair.
        """
        frames, radii = self.discs(vertices)
        means, scales = self.place(vertices), torch.cat([radii, THIN * radii[:, 1:]], 1)
        if height is not None:
            means = means + height[:, None] * frames[..., 2]
        logits = torch.full_like(means[:, 0], math.log(opacity / (1 - opacity)))
        return Gaussians(means, matrix_to_quat(frames), scales.log(), logits, colors)

    def _triangles(self, vertices: torch.Tensor) -> torch.Tensor:
        """Corners (..., N, 3, 3) of the particles' triangles."""
        return vertices[..., self.corners.flatten(), :].unflatten(-2, (-1, 3))

    def to(self, device) -> "Layout":
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if torch.is_tensor(v)})


def make_layout(body: Body, n: int, seed: int = 0) -> Layout:
    """Blue-noise particles on the body: Poisson-disk elimination with a radius per region, then exactly `n` of them.

    Random placement leaves holes through which hidden layers leak. Helper geometry carries none; inner mouth, teeth, tongue
    and eyeballs do. 60 000 particles take about 20 s.
    """
    if n < 500:
        raise ValueError(f"a layout needs at least 500 particles to cover a body, got {n}")
    density = torch.tensor([DENSITY.get(name, 0.0) for name in REGIONS])[body.face_region.cpu()].numpy()
    return _sample(body, density * _near_features(body), n, seed)


def make_hair(body: Body, n: int, seed: int = 0) -> Layout:
    """Hair as its own `n` particles: samples of the scalp, apart from the skin's there, that a person may lift off the skull.

    `aa.hair.hair_height` says how far for the studio's people, `join_layouts` puts them behind the skin's particles, whose order
    stays. They move with the scalp they stand on, so that any motion of the body is motion of the hair as well.
    """
    scalp = torch.zeros(len(body.faces))
    scalp[body.region_faces("scalp")] = 1
    hair = _sample(body, scalp.numpy(), n, seed)
    return replace(hair, region=torch.full_like(hair.region, REGIONS.index("hair")), name=f"hair{hair.name}")


def join_layouts(*layouts: Layout) -> Layout:
    """All their particles in one layout, in order."""
    names = ("tri", "corners", "bary", "part", "region", "spacing", "cell")
    together = {k: torch.cat([getattr(layout, k) for layout in layouts]) for k in names}
    return Layout(**together, name="+".join(layout.name for layout in layouts))


def _sample(body: Body, density, n: int, seed: int) -> Layout:
    """`n` particles with `density` (F,) per area, relative."""
    rng = np.random.default_rng(seed)
    f, region = body.faces.cpu().numpy(), body.face_region.cpu().numpy()
    corners = body.v_template.cpu().double().numpy()[f]  # (F, 3, 3)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal = cross / np.linalg.norm(cross, axis=1, keepdims=True).clip(1e-15)
    weight = 0.5 * np.linalg.norm(cross, axis=1) * density
    tri, bary, points = on_triangles(corners, weight, 8 * n, rng)
    # A maximal Poisson-disk set holds about 0.75 points per squared radius; aim a little above n and thin out.
    radius = np.sqrt(0.75 * weight.sum() / n / density[tri])
    kept = poisson_disk(points, normal[tri], radius, n, rng)
    tri, bary, points, radius = tri[kept], bary[kept], points[kept], radius[kept]
    seen, _, there = on_triangles(corners, weight, PER_CELL * n, rng)
    frames = _triangle_frames(torch.from_numpy(corners[tri])).numpy()
    cell = _within(cells(points, frames, there, normal[seen], radius), region[tri])
    t = torch.as_tensor
    return Layout(
        t(tri), t(f[tri]), t(bary).float(), _parts(t(region[tri])), t(region[tri]), t(radius * 1.05).float(),
        f"{n}-{seed}", _to_edges(t(cell), t(corners[tri])).float(),
    ).to(body.device)  # fmt: skip


def _within(cell, region) -> np.ndarray:
    """Cells (N, 2, 2) no longer than `LONGEST` allows in their region (N,): large discs in the eye sockets cut through the brow."""
    for name, longest in LONGEST.items():
        mine = region == REGIONS.index(name)
        reach = np.sqrt(np.trace(cell[mine], axis1=1, axis2=2))
        cell[mine] *= np.minimum(1, longest / reach)[:, None, None] ** 2
    return cell


def _triangle_frames(corners: torch.Tensor) -> torch.Tensor:
    """Frames (..., 3, 3), columns (along an edge, across, normal), of triangles (..., 3, 3)."""
    a, b, c = corners.unbind(-2)
    t = torch.nn.functional.normalize(b - a, dim=-1)
    n = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)
    return torch.stack([t, torch.linalg.cross(n, t), n], -1)


def _edges(corners: torch.Tensor) -> torch.Tensor:
    """Edges a-b and a-c (..., 2, 2) of triangles (..., 3, 3) as columns, in the tangents of `_triangle_frames`."""
    edges = (corners[..., 1:, :] - corners[..., :1, :]).mT  # (..., 3, 2)
    return _triangle_frames(corners)[..., :2].mT @ edges


def _to_edges(cell: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """Moments (N, 2, 2) in tangents of triangles (N, 3, 3) as moments in units of their edges: these hold for every person."""
    inverse = torch.linalg.inv(_edges(corners))
    return inverse @ cell @ inverse.mT


def load_layout(body: Body, n: int = 40_000, path: Path | None = None) -> Layout:
    """The shipped layout of 10 000, 40 000 or 60 000 particles (assets/layouts.safetensors); any other size is made anew."""
    with safe_open(path or ASSETS / "layouts.safetensors", "pt") as f:
        if f"{n}.tri" not in f.keys():  # noqa: SIM118
            return make_layout(body, n)
        tri, bary, cell, spacing = (f.get_tensor(f"{n}.{k}") for k in ("tri", "bary", "cell", "spacing"))
    tri = tri.long() + 32768
    bary = torch.cat([bary.float(), 1 - bary.float().sum(1, keepdim=True)], 1)
    corners, region = body.faces.cpu()[tri], body.face_region.cpu()[tri]
    xx, xy, yy = (cell.double() * 1e-6).unbind(1)
    cell = torch.stack([xx, xy, xy, yy], 1).unflatten(1, (2, 2))
    cell = _to_edges(cell, body.v_template.cpu().double()[corners]).float()
    part = _parts(region)
    return Layout(tri, corners, bary, part, region, spacing.float(), f"{n}-0", cell).to(body.device)


def save_layouts(body: Body, layouts: list[Layout], path: Path) -> None:
    """Write layouts compactly, 14 bytes a particle: triangle, two barycentric weights, spacing and cell (mm^2, in tangents)."""
    tensors = {}
    for layout in layouts:
        n, edges = len(layout), _edges(body.v_template.double()[layout.corners])
        cell = (edges @ layout.cell.double() @ edges.mT * 1e6).flatten(1)[:, [0, 1, 3]]
        tensors |= {f"{n}.tri": (layout.tri - 32768).short(), f"{n}.bary": layout.bary[:, :2].half().contiguous()}
        tensors |= {f"{n}.cell": cell.half().contiguous(), f"{n}.spacing": layout.spacing.half()}
    save_file(tensors, f"{path}.part")
    os.replace(f"{path}.part", path)


def _parts(region: torch.Tensor) -> torch.Tensor:
    """Index into PARTS (N,) of regions (N,)."""
    part = torch.zeros_like(region)
    for index, names in ((1, FACE_REGIONS), (2, HAND_REGIONS)):
        part[torch.isin(region, torch.tensor([REGIONS.index(r) for r in names]))] = index
    return part


def _near_features(body: Body) -> np.ndarray:
    """Density multiplier (F,): twice as many particles within 2.5 cm of eyes and mouth."""
    v = body.v_template.cpu().double().numpy()
    features = v[torch.cat([body.region_vertices("eye"), body.region_vertices("lips")]).cpu().numpy()]
    distance = cKDTree(features).query(v[body.faces.cpu().numpy()].mean(1))[0]
    face = np.isin(body.face_region.cpu().numpy(), [REGIONS.index("face")])
    return np.where(face & (distance < 0.025), 2.0, 1.0)


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
