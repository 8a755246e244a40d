"""The studio's stage: cameras, a dressed person on a device, and photographs of it by ray casting."""

import math
from typing import NamedTuple

import numpy as np
import torch
import warp as wp

from aa.backdrops import backdrop_of, make_backdrop
from aa.body import HELPERS, REGIONS, Body
from aa.clips import LABELS
from aa.gaussians import FACE_REGIONS, HAND_REGIONS
from aa.identities import Identity
from aa.look import look_of
from aa.shader import Surface, first_hit, occlusion, shade
from aa.skinning import TILE, Skin, cover_kernel
from aa.threads import cores, run_parallel
from aa.wardrobe import KINDS, Figure, dress

wp.config.log_level = wp.LOG_WARNING  # no greeting


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


class Shot(NamedTuple):
    """A photograph: what each pixel shows."""

    rgb: np.ndarray  # (H, W, 3) float32 display colour in [0, 1]
    alpha: np.ndarray  # (H, W) float32 coverage in [0, 1]
    part: np.ndarray  # (H, W) uint8 index into aa.clips.LABELS, 0 where alpha < 0.5
    depth: np.ndarray  # (H, W) float32 m along the camera's axis, 0 where alpha < 0.5


class Stage:
    """A dressed person on a device, ready to be posed and photographed; making one takes seconds, so use it for many films.

    `threads`: how many share the rays of a picture on the CPU (None: all cores); the picture does not depend on it.
    """

    def __init__(self, body: Body, identity: Identity, device: str = "cpu", threads: int | None = None):
        self.device = str(device)
        self.threads = cores() if threads is None else max(1, int(threads))
        self.behind = None
        self.figure: Figure = dress(body, identity)
        self.body = self.figure.body.to(device)
        self.drawn = ~torch.isin(body.face_region, torch.tensor([REGIONS.index(n) for n in HELPERS], device=body.device))
        self.look = look_of(identity)
        self.head = self.body.joint("head")
        self.lip_gap = float((self.body.v_template[LIPS[0]] - self.body.v_template[LIPS[1]]).norm())
        self.surface = Surface()
        faces = self.figure.body.faces.int().numpy()
        n = self.figure.first_shell
        self.skin = Skin(self.figure.body, faces, self.device, self.launch)
        array = self.skin.array
        self.points = array(self.figure.body.v_template.numpy(), wp.vec3)
        self.solid = wp.Mesh(self.points, array(faces[:n].ravel(), int))
        self.shells = wp.Mesh(self.points, array(faces[n:].ravel() if n < len(faces) else faces[:1].ravel(), int))
        s = self.surface
        s.solid, s.shells, s.first_shell = self.solid.id, self.shells.id, n
        s.verts, s.canon = self.points, array(self.figure.canon.numpy(), wp.vec3)
        s.tri, s.kind = array(faces, wp.vec3i), array(self.figure.kind.int().numpy(), int)
        s.part = array(part_of_triangles(self.figure, body), int)
        s.normals = array(np.zeros((self.skin.count, 3)), wp.vec3)
        s.mask = array(self.bake().numpy(), wp.vec4)

    def launch(self, kernel, count: int, inputs: list):
        """Run a kernel of `count` threads."""
        wp.launch(kernel, count, inputs, device=self.device)

    def share(self, kernel, count: int, inputs: list, width: int = 1):
        """Run a kernel whose first input is the first of its `count` items, `width` threads each, shared among CPU threads."""
        pieces = 1 if self.threads == 1 or self.device != "cpu" else min(4 * self.threads, max(1, count * width // 2000))
        edges = [count * k // pieces for k in range(pieces + 1)]

        def run(k):
            wp.launch(kernel, (edges[k + 1] - edges[k]) * width, [edges[k], *inputs], device=self.device)

        run_parallel(run, pieces, self.threads)

    def bake(self) -> torch.Tensor:
        """The figure's mask (M, 4) with ambient occlusion; lids count as open when they are so in a blink."""
        g = torch.Generator().manual_seed(0)
        rays = torch.nn.functional.normalize(torch.randn(28, 3, generator=g), dim=-1)
        actions = torch.zeros(2, len(self.body.action_names))
        actions[1, [self.body.action("eyeBlinkLeft"), self.body.action("eyeBlinkRight")]] = 1.0
        values = []
        for a in actions:
            self.pose(None, a, None)
            out = wp.zeros(len(self.figure.canon), dtype=float, device=self.device)
            inputs = [self.solid.id, self.points, self.surface.normals, self.skin.array(rays.numpy(), wp.vec3), out]
            self.share(occlusion, len(self.figure.canon), inputs)
            values.append(torch.from_numpy(out.numpy()))
        mask = self.figure.mask.clone()
        mask[:, 0] = torch.maximum(*values)
        return mask

    def pose(self, rotvecs, actions, translation) -> torch.Tensor:
        """Move the figure; returns its vertices (M, 3). rotvecs (J, 3), actions (A,), translation (3,) as `Body.pose`, or None."""
        world = self.skin.pose(rotvecs, actions, translation, self.points)
        vertices = torch.from_numpy(self.points.numpy().copy()).to(self.body.device)
        gap = float((vertices[LIPS[0]] - vertices[LIPS[1]]).norm()) - self.lip_gap
        self.surface.gape = min(max(gap / 0.006, 0.0), 1.0)
        self.surface.head = wp.mat33(*world[self.head].flatten().tolist())
        self.refit()
        return vertices

    def set_vertices(self, vertices: torch.Tensor):
        """Put the vertices (M, 3) anywhere."""
        self.points.assign(vertices.detach().cpu().contiguous().numpy())
        self.refit()

    def refit(self):
        """Normals and ray-casting trees of the current vertices."""
        self.skin.normals(self.points, self.surface.tri, self.surface.normals)
        self.solid.refit()
        self.shells.refit()

    def tiles(self, K, R, t, width: int, height: int) -> tuple[np.ndarray, int]:
        """Tiles of the picture that the person may cover, (n, 2): number of the tile and 1 | 2 for matter and hair; columns."""
        columns, rows = -(-width // TILE), -(-height // TILE)
        marks = wp.zeros((2, rows * columns), dtype=int, device=self.device)
        f, c = wp.vec2(float(K[0, 0]), float(K[1, 1])), wp.vec2(float(K[0, 2]), float(K[1, 2]))
        place = [wp.mat33(*R.flatten().tolist()), wp.vec3(*t.tolist()), f, c]
        s = self.surface
        self.launch(cover_kernel, len(s.tri), [self.points, s.tri, s.first_shell, *place, columns, rows, marks])
        solid, hair = marks.numpy()
        which = np.flatnonzero(solid | hair)
        return np.stack([which, solid[which] + 2 * hair[which]], 1), columns

    def expose(self, K, viewmat, width: int, height: int, samples: int = 1, soft: float = 0.16, backdrop=None) -> Shot:
        """Photograph the current pose: samples^2 rays a pixel; backdrop (H, W, 3) in [0, 1], None: the person's own."""
        K, view = (torch.as_tensor(x).double().cpu().numpy() for x in (K, viewmat))
        R, t = view[:3, :3], view[:3, 3]
        back = self.backdrop(width, height) if backdrop is None else backdrop
        array = lambda x, kind: wp.array(x, dtype=kind, device=self.device)  # noqa: E731
        rgb = array(np.array(back, dtype=np.float32), wp.vec3)
        alpha, depth = (wp.zeros((height, width), dtype=float, device=self.device) for _ in range(2))
        part = wp.zeros((height, width), dtype=wp.uint8, device=self.device)
        tiles, columns = self.tiles(K, R, t, width, height)
        if len(tiles):
            inputs = [
                self.surface, self.look, wp.vec3(*(-R.T @ t).tolist()), wp.mat33(*R.T.flatten().tolist()),
                wp.vec2(float(K[0, 0]), float(K[1, 1])), wp.vec2(float(K[0, 2]), float(K[1, 2])), self.skin.array(tiles, wp.vec2i),
                columns, samples, soft, rgb, alpha, part, depth,
            ]  # fmt: skip
            self.share(shade, len(tiles), inputs, TILE * TILE)
        return Shot(rgb.numpy(), alpha.numpy(), part.numpy(), depth.numpy())

    def shoot(self, K, viewmat, width: int, height: int, samples: int = 1, soft: float = 0.16, backdrop=None):
        """Photograph the current pose: picture (H, W, 3) float in [0, 1] and coverage (H, W) in [0, 1]; see `expose`."""
        return self.expose(K, viewmat, width, height, samples, soft, backdrop)[:2]

    def backdrop(self, width: int, height: int) -> np.ndarray:
        """What is behind the person, (H, W, 3) float32 display colour."""
        if self.behind is None or self.behind.shape != (height, width, 3):
            self.behind = backdrop_of(self.figure.identity, width, height)
        return self.behind

    def probe(self, K, viewmat, pixels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What rays through pixels (n, 2) meet: distance (n,) m or -1, triangle (n,) of `figure.body.faces`, weights (n, 3)."""
        K, view = (np.asarray(x, np.float64) for x in (K, viewmat))
        ray = np.concatenate([(np.asarray(pixels) - K[:2, 2]) / K[[0, 1], [0, 1]], np.ones((len(pixels), 1))], 1)
        ray = ray / np.linalg.norm(ray, axis=1, keepdims=True) @ view[:3, :3]
        out = wp.zeros(len(ray), dtype=wp.vec4, device=self.device)
        cam = wp.vec3(*(-view[:3, :3].T @ view[:3, 3]).tolist())
        self.share(first_hit, len(ray), [self.surface, self.look, cam, self.skin.array(ray, wp.vec3), out])
        hit = out.numpy()
        u, v = hit[:, 2], hit[:, 3]
        return hit[:, 0], hit[:, 1].astype(int), np.stack([u, v, 1 - u - v], 1)


def part_of_triangles(figure: Figure, body: Body) -> np.ndarray:
    """(F,) index into aa.clips.LABELS of a figure's triangles: what they are made of, and for skin where on the body they are."""
    label = {name: LABELS.index("clothes") for name in KINDS}
    label |= dict.fromkeys(("eye", "mouth", "tongue", "teeth", "lash"), LABELS.index("face"))
    label |= dict.fromkeys(("hair", "shell"), LABELS.index("hair")) | {"nail": LABELS.index("hand")}
    part = torch.tensor([label[name] for name in KINDS])[figure.kind]
    where = {**dict.fromkeys(FACE_REGIONS, LABELS.index("face")), **dict.fromkeys(HAND_REGIONS, LABELS.index("hand"))}
    region = torch.tensor([where.get(name, LABELS.index("body")) for name in REGIONS])[body.face_region.cpu()]
    key = lambda faces: (faces[:, 0] * figure.n_body + faces[:, 1]) * figure.n_body + faces[:, 2]  # noqa: E731
    known, order = key(body.faces.cpu()).sort()
    skin = ((figure.kind == KINDS.index("skin")) & (figure.body.faces < figure.n_body).all(1)).nonzero()[:, 0]
    wanted = key(figure.body.faces[skin])
    at = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    part[skin] = torch.where(known[at] == wanted, region[order[at]], LABELS.index("body"))
    return part.numpy()


def default_backdrop(width: int, height: int) -> np.ndarray:
    """Soft grey gradient (H, W, 3), display colour."""
    return make_backdrop("grey", width, height)
