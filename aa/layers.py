"""Sheets over the body: layers of vertices that ride on the body's, and the geometry to make them (offset, smooth, subdivide).

Every added vertex has a place on the mean body (for the paint), a rest position on the identity, skinning weights and facial
actions, so that `Body.pose` moves the whole figure.
"""

import torch
import warp as wp

from aa.body import Body, vertex_normals
from aa.shader import inward


class Layers:
    """Collects vertices that ride on body vertices, for the mean body and the identity at once."""

    def __init__(self, body: Body, betas: torch.Tensor):
        self.body, self.rest = body, body.rest(betas)
        self.canon_parts, self.rest_parts, self.weight_parts, self.action_parts = [], [], [], []
        self.mask_parts, self.face_parts, self.kind_parts = [], [], []
        self.count = 0

    def add(self, canon, rest, weights, actions, mask, faces, kind):
        """Append vertices (n, 3) and triangles (m, 3) numbered from 0."""
        self.canon_parts.append(canon), self.rest_parts.append(rest), self.weight_parts.append(weights)
        self.action_parts.append(actions), self.mask_parts.append(mask)
        self.face_parts.append(faces + self.count)
        self.kind_parts.append(torch.full((len(faces),), kind) if isinstance(kind, int) else kind)
        self.count += len(canon)

    def add_on(self, vertices, canon, rest, mask, faces, kind):
        """Append a layer whose vertices move with the body vertices (n,) they were made from."""
        self.add(canon, rest, self.body.weights[vertices], self.body.action_dirs[:, vertices], mask, faces, kind)


def smooth(vertices: torch.Tensor, faces: torch.Tensor, rounds: int) -> torch.Tensor:
    """Laplacian smoothing of (V, 3); vertices on open borders stay."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    pair, times = torch.unique(edges.sort(1).values, dim=0, return_counts=True)
    border = torch.unique(pair[times == 1])
    both = torch.cat([pair, pair.flip(1)])
    degree = torch.bincount(both[:, 0], minlength=len(vertices)).clamp_min(1)[:, None]
    x = vertices.clone()
    for _ in range(rounds):
        y = torch.zeros_like(x).index_add_(0, both[:, 0], x[both[:, 1]]) / degree
        y[border] = vertices[border]
        x = 0.5 * x + 0.5 * y
    return x


def compact(faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertices used (n,) and the triangles renumbered to them."""
    used, index = torch.unique(faces, return_inverse=True)
    return used, index


def subdivide(faces: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each triangle into four: new vertices as pairs (n, 2) of old ones to average (the first `count` are the old), triangles."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(1).values
    pairs, index = torch.unique(edges, dim=0, return_inverse=True)
    ab, bc, ca = (index + count).view(3, -1)
    a, b, c = faces.T
    fine = torch.stack([torch.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))], 1).reshape(-1, 3)
    return torch.cat([torch.arange(count)[:, None].expand(-1, 2), pairs]), fine


def puff(x: torch.Tensor, faces: torch.Tensor, rounds: int, offset, least) -> torch.Tensor:
    """A layer at least `least` metres and about `offset` metres outside (V, 3), smoother than what it covers."""
    normal = vertex_normals(x, faces)
    out = smooth(x, faces, rounds) + normal * offset
    return out + normal * (least - ((out - x) * normal).sum(1, keepdim=True)).clamp_min(0)


def ray_radius(vertices, faces, centre, azimuth, z) -> torch.Tensor:
    """Distance (n,) from the vertical axis through `centre` outwards to the furthest triangle, at azimuths (rad, 0 = -y) and z."""
    d = torch.stack([azimuth.sin(), -azimuth.cos(), torch.zeros_like(z)], -1)
    o = torch.stack([torch.full_like(z, centre[0]), torch.full_like(z, centre[1]), z], -1)
    array = lambda x, kind: wp.array(x.contiguous().numpy(), dtype=kind, device="cpu")  # noqa: E731
    mesh = wp.Mesh(array(vertices, wp.vec3), array(faces.int().flatten(), int))
    out = wp.zeros(len(z), dtype=float, device="cpu")
    wp.launch(inward, len(z), [mesh.id, array(o, wp.vec3), array(d, wp.vec3), 0.4, out], device="cpu")
    return torch.from_numpy(out.numpy())


def grid_faces(rows: int, columns: int, wrap: bool = False) -> torch.Tensor:
    """Triangles of a grid of vertices in row-major order, outside on the side that the rows' downward order shows."""
    n = columns if wrap else columns - 1
    r, c = torch.meshgrid(torch.arange(rows - 1), torch.arange(n), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    quad = torch.stack([a, a + columns, b, b, a + columns, b + columns], -1)
    return quad.reshape(-1, 3)


def blend_weights(body: Body, share: torch.Tensor) -> torch.Tensor:
    """(n, J) weights between the head (share 0) and the upper spine (share 1)."""
    w = torch.zeros(len(share), len(body.joint_names))
    w[:, body.joint("head")], w[:, body.joint("spine01")] = 1 - share, share
    return w


def add_grid(layers: Layers, make, share, mask, faces, kind: int, anchor=None):
    """Append a sheet that no facial action moves; `make(vertices, shift)` places it on a given body, shifted as the body's
    `anchor` vertices are (the scalp's by default)."""
    body = layers.body
    anchor = body.region_vertices("scalp") if anchor is None else anchor
    shift = (layers.rest - body.v_template)[anchor].mean(0)
    places = [make(body.v_template, torch.zeros(3)), make(layers.rest, shift)]
    actions = torch.zeros(len(body.action_names), len(mask), 3)
    layers.add(*places, blend_weights(body, share), actions, mask, faces, kind)
