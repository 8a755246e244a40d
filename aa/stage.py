"""The studio's stage: cameras, a dressed person on a device, and photographs of it by ray casting."""

import math

import numpy as np
import torch
import warp as wp

from aa.body import HELPERS, REGIONS, Body, vertex_normals
from aa.identities import PATTERNS, Identity
from aa.materials import Look
from aa.shader import Surface, occlusion, shade
from aa.wardrobe import NECKLINES, Figure, dress

wp.config.log_level = wp.LOG_WARNING  # no greeting
BACKDROP = ((0.80, 0.81, 0.82), (0.62, 0.64, 0.67))  # display colour at the centre and in the corners


LIPS = (520, 540)  # inner lips, upper and lower, at the centre


def camera(kind: str = "portrait", width: int = 512, height: int = 512, azimuth: float = 0.0, person: Body | None = None):
    """Intrinsics (3, 3) in pixels and world -> camera matrix (4, 4), OpenCV axes, framing `person` or else the mean body.

    kind: "portrait" (head to hips, both hands), "upper" (the same for square pictures), "full" or "face"; azimuth in radians,
    positive shows the person's left side (+x).
    """
    spots = {"portrait": (0.60, 1.02, 3.2), "upper": (0.58, 1.0, 3.0), "full": (0.10, 2.1, 5.0), "face": (0.895, 0.36, 1.5)}
    if kind not in spots:
        raise ValueError(f"camera kind must be one of {tuple(spots)}, got {kind!r}")
    z, extent, distance = spots[kind]
    if person is not None and kind == "full":
        low, high = person.v_template[:, 2].aminmax()
        z, extent = float(low + high) / 2, 1.12 * float(high - low)
    elif person is not None:  # same framing on another height: heads are alike, legs and trunks differ
        z += float(person.joint_template[person.joint("head"), 2]) - 0.859
    focal = height * distance / extent
    if width < height * 0.66:
        focal *= width / (height * 0.66)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    target = torch.tensor([0.0, -0.06, z])
    back = torch.tensor([-math.sin(azimuth), math.cos(azimuth), 0.0])  # the camera's forward axis
    right = torch.linalg.cross(back, torch.tensor([0.0, 0.0, 1.0]))
    R = torch.stack([right, torch.tensor([0.0, 0.0, -1.0]), back])
    view = torch.eye(4)
    view[:3, :3], view[:3, 3] = R, -R @ (target - distance * back)
    return K, view


def linear(colour) -> wp.vec3:
    """sRGB in [0, 1] to linear RGB."""
    return wp.vec3(*[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour])


def look_of(identity: Identity) -> Look:
    """The shader's numbers for an identity."""
    pole = {"side": (0.35, -0.75, 0.55), "swept": (0.0, -0.9, 0.45), "bun": (0.0, 0.62, 0.78)}.get(
        identity.hair_style, (0.0, 0.35, 0.94)
    )
    if identity.hair_style in ("bob", "long"):
        pole = (0.12, -0.30, 0.94)
    pole = torch.nn.functional.normalize(torch.tensor(pole), dim=0)
    u = torch.nn.functional.normalize(torch.linalg.cross(pole, torch.tensor([1.0, 0.0, 0.0])), dim=0)
    look = Look()
    for name in ("skin", "lips", "iris", "brow", "hair", "shirt", "shirt2", "trousers"):
        setattr(look, name, linear(getattr(identity, name)))
    look.tips = linear([min(1.0, c * 1.55 + 0.02) for c in identity.hair])
    look.shoe = linear(identity.shoes)
    look.pole, look.pole_u = wp.vec3(*pole.tolist()), wp.vec3(*u.tolist())
    look.pole_v = wp.vec3(*torch.linalg.cross(pole, u).tolist())
    look.parallels = 0
    look.curl, look.beard, look.freckles, look.age = identity.curl, identity.beard, identity.freckles, identity.age
    look.brow_width = 0.0048 if identity.sex == "male" else 0.0036
    look.pattern = PATTERNS.index(identity.pattern)
    look.placket = int(identity.neckline == "collar")
    look.neck = wp.vec3(*NECKLINES[identity.neckline])
    look.trim = 0.6 if identity.neckline == "crew" and identity.seed % 2 else 0.0
    look.seed = identity.seed
    return look


class Stage:
    """A dressed person on a device, ready to be posed and photographed."""

    def __init__(self, body: Body, identity: Identity, device: str = "cpu"):
        self.device = str(device)
        self.figure: Figure = dress(body, identity)
        self.body = self.figure.body.to(device)
        self.drawn = ~torch.isin(body.face_region, torch.tensor([REGIONS.index(n) for n in HELPERS], device=body.device))
        self.look = look_of(identity)
        self.head = self.body.joint("head")
        self.lip_gap = float((self.body.v_template[LIPS[0]] - self.body.v_template[LIPS[1]]).norm())
        self.surface = Surface()
        faces = self.figure.body.faces.int().numpy()
        n = self.figure.first_shell
        rest = self.figure.body.v_template
        array = lambda x, kind: wp.array(np.ascontiguousarray(x), dtype=kind, device=self.device)  # noqa: E731
        self.points = array(rest.numpy(), wp.vec3)
        self.solid = wp.Mesh(self.points, array(faces[:n].ravel(), int))
        self.shells = wp.Mesh(self.points, array(faces[n:].ravel() if n < len(faces) else faces[:1].ravel(), int))
        s = self.surface
        s.solid, s.shells, s.first_shell = self.solid.id, self.shells.id, n
        s.verts, s.canon = self.points, array(self.figure.canon.numpy(), wp.vec3)
        s.tri, s.kind = array(faces, wp.vec3i), array(self.figure.kind.int().numpy(), int)
        s.normals = array(vertex_normals(rest, self.figure.body.faces).numpy(), wp.vec3)
        s.mask = array(self.bake().numpy(), wp.vec4)

    def bake(self) -> torch.Tensor:
        """The figure's mask (M, 4) with ambient occlusion; lids count as open when they are so in a blink."""
        g = torch.Generator().manual_seed(0)
        rays = torch.nn.functional.normalize(torch.randn(28, 3, generator=g), dim=-1)
        actions = torch.zeros(2, len(self.body.action_names), device=self.device)
        actions[1, [self.body.action("eyeBlinkLeft"), self.body.action("eyeBlinkRight")]] = 1.0
        values = []
        for a in actions:
            self.pose(None, a, None)
            out = wp.zeros(len(self.figure.canon), dtype=float, device=self.device)
            inputs = [
                self.solid.id,
                self.points,
                self.surface.normals,
                wp.array(rays.numpy(), dtype=wp.vec3, device=self.device),
                out,
            ]
            wp.launch(occlusion, len(self.figure.canon), inputs, device=self.device)
            values.append(torch.from_numpy(out.numpy()))
        mask = self.figure.mask.clone()
        mask[:, 0] = torch.maximum(*values)
        return mask

    def pose(self, rotvecs, actions, translation):
        """Move the figure; returns its vertices (M, 3)."""
        vertices, _ = self.body.pose(None, rotvecs, actions, translation)
        self.set_vertices(vertices)
        gap = float((vertices[LIPS[0]] - vertices[LIPS[1]]).norm()) - self.lip_gap
        self.surface.gape = min(max(gap / 0.006, 0.0), 1.0)
        rotations = torch.eye(3)
        if rotvecs is not None:
            rotations = self.body.joint_transforms(None, rotvecs)[0][self.head]
        self.surface.head = wp.mat33(*rotations.flatten().tolist())
        return vertices

    def set_vertices(self, vertices: torch.Tensor):
        """Upload vertices (M, 3) and refit the ray-casting trees."""
        normals = vertex_normals(vertices, self.body.faces)
        for target, value in ((self.points, vertices), (self.surface.normals, normals)):
            target.assign(value.detach().cpu().contiguous().numpy())
        self.solid.refit()
        self.shells.refit()

    def shoot(self, K, viewmat, width: int, height: int, samples: int = 1, soft: float = 0.16, backdrop=None):
        """Photograph the current pose: picture (H, W, 3) float in [0, 1] and coverage (H, W) in [0, 1]."""
        K, view = (torch.as_tensor(x).double().cpu() for x in (K, viewmat))
        R, t = view[:3, :3], view[:3, 3]
        back = default_backdrop(width, height) if backdrop is None else backdrop
        rgb = np.array(back, dtype=np.float32)
        alpha = np.zeros((height, width), np.float32)
        points = torch.from_numpy(self.points.numpy()).double() @ R.T + t
        uv = (points @ K.T)[:, :2] / points[:, 2:].clamp_min(1e-3)
        x0, y0 = (uv.amin(0) - 1).floor().clamp_min(0).int().tolist()
        x1, y1 = torch.minimum(uv.amax(0).ceil() + 1, torch.tensor([width, height])).int().tolist()
        if x1 <= x0 or y1 <= y0:
            return rgb, alpha
        array = lambda x, kind: wp.array(x, dtype=kind, device=self.device)  # noqa: E731
        rgb_wp, alpha_wp = array(rgb, wp.vec3), array(alpha, float)
        cam = (-R.T @ t).tolist()
        inputs = [
            self.surface, self.look, wp.vec3(*cam), wp.mat33(*R.T.flatten().tolist()), wp.vec2(float(K[0, 0]), float(K[1, 1])),
            wp.vec2(float(K[0, 2]), float(K[1, 2])), wp.vec4i(x0, y0, x1, y1), samples, soft, array(rgb, wp.vec3), rgb_wp, alpha_wp,
        ]  # fmt: skip
        wp.launch(shade, (y1 - y0, x1 - x0), inputs, device=self.device)
        return rgb_wp.numpy(), alpha_wp.numpy()


def default_backdrop(width: int, height: int) -> np.ndarray:
    """Soft grey gradient (H, W, 3), display colour."""
    y, x = np.mgrid[:height, :width]
    r = np.hypot(x / width - 0.5, (y / height - 0.42) * 0.9) / 0.75
    t = np.clip(r, 0, 1)[..., None] ** 2
    return (np.array(BACKDROP[0]) * (1 - t) + np.array(BACKDROP[1]) * t).astype(np.float32)
