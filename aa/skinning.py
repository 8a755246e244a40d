# ruff: noqa: UP018, RUF046 (in warp, float(0.0) makes a variable that a loop may change)
"""Moving a figure on the studio's device: skinning, vertex normals, and which tiles of a picture it may cover (warp kernels)."""

import numpy as np
import torch
import warp as wp

from aa.body import Body

wp.set_module_options({"enable_backward": False})

TILE = 8  # px: rays are cast tile by tile, and only in tiles that some triangle may cover


@wp.kernel
def skin_kernel(
    rest: wp.array(dtype=wp.vec3), action_start: wp.array(dtype=int), action: wp.array(dtype=int),
    step: wp.array(dtype=wp.vec3), value: wp.array(dtype=float), bone_start: wp.array(dtype=int), bone: wp.array(dtype=int),
    weight: wp.array(dtype=float), rotation: wp.array(dtype=wp.mat33), offset: wp.array(dtype=wp.vec3), shift: wp.vec3,
    out: wp.array(dtype=wp.vec3),
):  # fmt: skip
    """Facial actions, then linear blend skinning, as `Body.pose`; only the non-zero directions and weights are stored."""
    i = wp.tid()
    p = rest[i]
    for k in range(action_start[i], action_start[i + 1]):
        p = p + step[k] * value[action[k]]
    q = shift
    for k in range(bone_start[i], bone_start[i + 1]):
        q = q + (rotation[bone[k]] * p + offset[bone[k]]) * weight[k]
    out[i] = q


@wp.kernel
def normal_kernel(
    points: wp.array(dtype=wp.vec3), tri: wp.array(dtype=wp.vec3i), start: wp.array(dtype=int), around: wp.array(dtype=int),
    out: wp.array(dtype=wp.vec3),
):  # fmt: skip
    """Area-weighted mean normal of the triangles around each vertex, as `aa.body.vertex_normals`."""
    i = wp.tid()
    n = wp.vec3(0.0, 0.0, 0.0)
    for k in range(start[i], start[i + 1]):
        t = tri[around[k]]
        a = points[t[0]]
        n = n + wp.cross(points[t[1]] - a, points[t[2]] - a)
    out[i] = wp.normalize(n)


@wp.kernel
def cover_kernel(
    points: wp.array(dtype=wp.vec3), tri: wp.array(dtype=wp.vec3i), first_shell: int, R: wp.mat33, t: wp.vec3, f: wp.vec2,
    c: wp.vec2, columns: int, rows: int, tiles: wp.array2d(dtype=int),
):  # fmt: skip
    """Mark the tiles that the box around each projected triangle touches: row 0 for matter, row 1 for translucent hair."""
    k = wp.tid()
    x0, y0 = float(1.0e9), float(1.0e9)
    x1, y1 = float(-1.0e9), float(-1.0e9)
    near, far = float(1.0e9), float(-1.0e9)
    for j in range(3):
        p = R * points[tri[k][j]] + t
        near, far = wp.min(near, p[2]), wp.max(far, p[2])
        z = wp.max(p[2], 1.0e-3)
        x, y = p[0] / z * f[0] + c[0], p[1] / z * f[1] + c[1]
        x0, x1 = wp.min(x0, x), wp.max(x1, x)
        y0, y1 = wp.min(y0, y), wp.max(y1, y)
    if far <= 0.0:
        return
    size = float(8.0)  # TILE
    limit = float(1.0e6)
    i0, i1 = int(wp.clamp(x0 - 0.05, -limit, limit) / size), int(wp.clamp(x1 + 0.05, -limit, limit) / size)
    j0, j1 = int(wp.clamp(y0 - 0.05, -limit, limit) / size), int(wp.clamp(y1 + 0.05, -limit, limit) / size)
    if near <= 1.0e-3:  # around the camera: anywhere
        i0, j0, i1, j1 = 0, 0, columns, rows
    layer = int(0)
    if k >= first_shell:
        layer = 1
    for j in range(wp.max(j0, 0), wp.min(j1 + 1, rows)):
        for i in range(wp.max(i0, 0), wp.min(i1 + 1, columns)):
            tiles[layer, j * columns + i] = 1


def compressed(owner: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Order that sorts `owner` (n,), and where each of `count` owners' entries start in it (count + 1,), both int32."""
    order = np.argsort(owner, kind="stable")
    return order.astype(np.int32), np.searchsorted(owner[order], np.arange(count + 1)).astype(np.int32)


def forward_kinematics(parents, joints: np.ndarray, rotvecs: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """World rotations (J, 3, 3) and offsets (J, 3), float64, as `Body.joint_transforms`; joints (J, 3), rotvecs (J, 3) rad."""
    from scipy.spatial.transform import Rotation

    if rotvecs is None:
        return np.tile(np.eye(3), (len(joints), 1, 1)), np.zeros((len(joints), 3))
    local = Rotation.from_rotvec(rotvecs).as_matrix()
    world, place = local.copy(), joints.astype(np.float64)
    for j, parent in enumerate(parents):  # a parent stands before its children
        if parent >= 0:
            world[j] = world[parent] @ local[j]
            place[j] = place[parent] + world[parent] @ (joints[j] - joints[parent])
    return world, place - (world @ joints[..., None])[..., 0]


class Skin:
    """A figure's vertices, posed on the device into given arrays."""

    def __init__(self, body: Body, faces: np.ndarray, device: str, launch):
        """`body`: the dressed figure, with its shape baked in; faces (F, 3); launch(kernel, count, inputs) runs a kernel."""
        self.device, self.launch, self.parents = device, launch, body.parents
        self.joints, self.rest = body.joint_template.cpu().double().numpy(), None
        weights, dirs = body.weights.cpu().numpy(), body.action_dirs.cpu().numpy()
        row, bone = weights.nonzero()
        moved = np.abs(dirs).max(2).T.nonzero()  # (vertex, action), sorted by vertex
        M = len(weights)
        order, start = compressed(faces.ravel(), M)
        a = self.array
        self.bones = [a(compressed(row, M)[1], int), a(bone, int), a(weights[row, bone], float)]
        self.actions = [a(compressed(moved[0], M)[1], int), a(moved[1], int), a(dirs[moved[1], moved[0]], wp.vec3)]
        self.ring = [a(start, int), a(order // 3, int)]
        self.count, self.silent = M, a(np.zeros(len(dirs)), float)
        self.set_rest(body.v_template.cpu().numpy())

    def array(self, values, kind):
        """A warp array of numpy values."""
        flat = {int: np.int32, wp.vec3i: np.int32}.get(kind, np.float32)
        return wp.array(np.ascontiguousarray(values, dtype=flat), dtype=kind, device=self.device)

    def set_rest(self, vertices: np.ndarray, joints: np.ndarray | None = None):
        """Give the figure another shape: vertices (M, 3) and joints (J, 3) in the rest pose."""
        self.rest = self.array(vertices, wp.vec3)
        self.joints = self.joints if joints is None else np.asarray(joints, np.float64)

    def pose(self, rotvecs, actions, translation, points) -> np.ndarray:
        """Write the vertices of a pose into `points` (M,); arguments as `Body.pose`, or None. Returns joint rotations (J, 3, 3)."""
        numbers = lambda x: None if x is None else torch.as_tensor(x).detach().cpu().double().numpy()  # noqa: E731
        world, offset = forward_kinematics(self.parents, self.joints, numbers(rotvecs))
        value = self.silent if actions is None else self.array(numbers(actions), float)
        shift = wp.vec3(0.0, 0.0, 0.0) if translation is None else wp.vec3(*numbers(translation).tolist())
        pose = [self.array(world, wp.mat33), self.array(offset, wp.vec3), shift]
        self.launch(skin_kernel, self.count, [self.rest, *self.actions, value, *self.bones, *pose, points])
        return world

    def normals(self, points, tri, out):
        """Write vertex normals of `points` into `out` (M,)."""
        self.launch(normal_kernel, self.count, [points, tri, *self.ring, out])
