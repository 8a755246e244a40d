"""The particles of an avatar in the geometry of its photo: the shared layout, finer ones where it is coarse, and a loose fringe."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from scipy.spatial import cKDTree

from aa.align import solid_faces
from aa.body import REGIONS, Body, matrix_to_quat, quat_multiply
from aa.gaussians import Gaussians, Layout
from aa.paint import MATERIALS, View, paint, sample, spread, visible

THIN = 0.15  # thickness of a surface particle over its radius
COVER = 0.62  # radius (standard deviation) over spacing
LIFT = 0.0008  # m by which detail particles lie above the layout's
NO_DETAIL = ("eye", "mouth", "teeth", "tongue", "eye_cavity")


@dataclass(frozen=True)
class Particles:
    """N particles and what they hang on, see aa.canonical.Avatar."""

    corners: torch.Tensor  # (N, 3)
    bary: torch.Tensor  # (N, 3)
    loose: torch.Tensor  # (N,) bool
    means: torch.Tensor  # (N, 3) m
    quats: torch.Tensor  # (N, 4)
    scales: torch.Tensor  # (N, 3) m
    opacities: torch.Tensor  # (N,)
    colors: torch.Tensor  # (N, 3)
    seen: torch.Tensor  # (N,) bool, shown by the photo

    def __len__(self) -> int:
        return len(self.means)


def join(parts: list[Particles]) -> Particles:
    """All of them in one, in order."""
    return Particles(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Particles)))


def cover(body: Body, layout: Layout, view: View, person, vertices, settings, scale_px: float) -> Particles:
    """Particles for the mesh (V, 3) seen in the view: the layout's first."""
    from aa.fringe import fringe

    base = on_layout(body, layout, view, person, vertices, scale_px)
    loose = fringe(body, view, vertices, person.eye_distance * scale_px)
    room = settings.most - len(base) - len(loose)
    parts = [base]
    if settings.detail_px > 0 and room > 0:
        parts.append(detail(body, layout, view, vertices, settings.detail_px, room))
    return join([*parts, loose])


def vertex_normals(faces, vertices) -> torch.Tensor:
    """Unit normals (V, 3), weighted by area."""
    a, b, c = vertices[faces].unbind(1)
    flat = torch.linalg.cross(b - a, c - a)
    out = torch.zeros_like(vertices)
    for k in range(3):
        out.index_add_(0, faces[:, k], flat)
    return torch.nn.functional.normalize(out, dim=1)


def metres_per_pixel(view: View, points) -> torch.Tensor:
    """Size (n,) of a pixel at the depth of points (n, 3)."""
    z = points @ view.viewmat[2, :3] + view.viewmat[2, 3]
    return z / view.K[0, 0]


def triangle_frames(corners, vertices) -> torch.Tensor:
    """Frames (n, 3, 3), columns (along an edge, across, normal)."""
    a, b, c = vertices[corners].unbind(1)
    t = torch.nn.functional.normalize(b - a, dim=-1)
    n = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)
    return torch.stack([t, torch.linalg.cross(n, t), n], -1)


def to_vertices(g: Gaussians, corners, bary, loose, before, after) -> Gaussians:
    """Gaussians on a mesh (V, 3) carried to another shape of it: with their triangle, or shifted if loose."""
    carry = lambda v: (v[corners] * bary[..., None]).sum(1)  # noqa: E731
    turn = triangle_frames(corners, after) @ triangle_frames(corners, before).mT
    turn[loose] = torch.eye(3, device=turn.device)
    arm = (turn @ (g.means - carry(before))[..., None])[..., 0]
    return replace(g, means=carry(after) + arm, quats=quat_multiply(matrix_to_quat(turn), g.quats))


def _stretched(body: Body, corners, vertices) -> torch.Tensor:
    """Square root of the area (n,) of triangles over that on the mean body, within bounds."""
    area = lambda v: torch.linalg.cross(v[:, 1] - v[:, 0], v[:, 2] - v[:, 0]).norm(dim=1)  # noqa: E731
    return (area(vertices[corners]) / area(body.v_template[corners]).clamp_min(1e-12)).sqrt().clamp(0.6, 2.0)


def on_layout(body: Body, layout: Layout, view: View, person, vertices, scale_px: float) -> Particles:
    """The layout's particles with their colours."""
    faces = solid_faces(body)[0]
    means = layout.place(vertices)
    normals = torch.nn.functional.normalize(layout.place(vertex_normals(faces, vertices)), dim=1)
    radius = COVER * layout.spacing * _stretched(body, layout.corners, vertices)
    radius_px = (radius / metres_per_pixel(view, means)).numpy()
    rest = layout.place(body.v_template).numpy()
    colors, seen = paint(
        body, view, person, vertices, means, normals, 0.7 * radius_px, rest, layout.region.numpy(), scale_px
    )  # fmt: skip
    scales = radius[:, None] * torch.tensor([1, 1, THIN / COVER * 0.6])
    n = len(means)
    return Particles(
        layout.corners, layout.bary, torch.zeros(n, dtype=torch.bool), means, matrix_to_quat(layout.frames(vertices)),
        scales, torch.full((n,), 0.97), torch.from_numpy(colors).float(), torch.from_numpy(seen),
    )  # fmt: skip


def grid(where: np.ndarray, spacing: float) -> np.ndarray:
    """Pixels (n, 2) as (x, y) integers on a hexagonal grid of `spacing` px inside `where` (H, W)."""
    h, w = where.shape
    rows = np.arange(spacing / 2, h, spacing * 0.866)
    points = [np.stack([x := np.arange(spacing / 2 * (1 + k % 2), w, spacing), np.full(len(x), y)], 1) for k, y in enumerate(rows)]
    at = np.concatenate(points).astype(int)
    return at[where[at[:, 1], at[:, 0]]]


def detail(body: Body, layout: Layout, view: View, vertices, spacing: float, room: int) -> Particles:
    """Particles on a pixel grid over visible surface where the layout is coarser than that, at most `room` of them."""
    faces, which = solid_faces(body)
    rest = body.v_template
    centre = rest[faces].mean(1)
    gap = layout.spacing[torch.as_tensor(cKDTree(layout.place(rest).numpy()).query(centre.numpy())[1])]
    gap = gap * _stretched(body, faces, vertices)
    allowed = ~torch.isin(body.face_region[which], torch.tensor([REGIONS.index(n) for n in NO_DETAIL]))
    px = metres_per_pixel(view, vertices[faces].mean(1))
    wanted = allowed & (gap / px > 1.4 * spacing)
    where = (view.tri >= 0) & (view.mask > 0.6) & ~view.behind & wanted.numpy()[view.tri]
    at = grid(where, spacing)
    while len(at) > room:
        spacing *= 1.05
        at = grid(where, spacing)
    tri = torch.from_numpy(view.tri[at[:, 1], at[:, 0]])
    bary = torch.from_numpy(view.bary[at[:, 1], at[:, 0]]).float()
    corners = faces[tri]
    read = lambda v: (v[corners] * bary[..., None]).sum(1)  # noqa: E731
    means = read(vertices)
    normals = torch.nn.functional.normalize(read(vertex_normals(faces, vertices)), dim=1)
    radius = COVER * spacing * metres_per_pixel(view, means)
    eye = -view.viewmat[:3, :3].T @ view.viewmat[:3, 3]
    ray = torch.nn.functional.normalize(eye - means, dim=1)
    cosine = (ray * normals).sum(1).clamp_min(0.3)
    along = torch.nn.functional.normalize(ray - (ray * normals).sum(1, keepdim=True) * normals + 1e-6, dim=1)
    frames = torch.stack([along, torch.linalg.cross(normals, along), normals], -1)
    scales = torch.stack([radius / cosine, radius, THIN * radius], 1)
    colors = sample(view.front, at + 0.5, np.full(len(at), 0.5 * spacing))
    seen, _, _ = visible(view, means, normals)
    names = body.face_region[which][tri].numpy()
    colors = spread(colors, seen, read(rest).numpy(), np.array([MATERIALS.get(n, -1) for n in REGIONS])[names])
    n = len(at)
    return Particles(
        corners, bary, torch.zeros(n, dtype=torch.bool), means + LIFT * normals, matrix_to_quat(frames), scales,
        torch.full((n,), 0.9), torch.from_numpy(colors).float().clamp(0, 1), torch.from_numpy(seen),
    )  # fmt: skip
