"""From one photo to a canonical Gaussian avatar on the shared particle layout (the single-image start of the paper's Sec. 3).

Landmarks and mask (aa.detect) -> body fit (aa.photofit) -> outline (aa.align) -> colours (aa.paint) -> loose particles for hair and
clothes (aa.fringe) -> photometric refinement of what the photo shows. Hidden particles keep their inferred colours.
"""

import json
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import cv2
import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from aa.align import align, solid_faces
from aa.body import load_body, quat_multiply, quat_to_rotvec, rotvec_to_matrix, rotvec_to_quat
from aa.cover import cover
from aa.detect import detect
from aa.fit_report import measure, missing, remarks
from aa.gaussians import Gaussians, load_layout
from aa.gestures import at_ease
from aa.lids import open_lids
from aa.lips import close_lips
from aa.ownership import parts_of_vertices
from aa.particles import moved, to_vertices
from aa.photofit import fit_body
from aa.plate import clean_plate
from aa.posing import inverse, rigid_motions, rotate, shaped, skin
from aa.pseudo import pseudo_views
from aa.refine import refine
from aa.transfer import Deformation
from aa.view import make_view

UPPER_TEETH = 0.003  # m
TENSORS = (
    "corners", "bary", "loose", "vertices", "photo_vertices", "turn", "posture", "joints", "stretch", "K", "viewmat",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How much work the photo fit does."""

    fit_iterations: int = 300  # gradient steps on camera, shape, posture and expression
    align_rounds: int = 4  # rounds of outline matching
    detail_px: float = 1.6  # least spacing in px of the extra particles where the layout is coarser; 0 leaves them out
    most: int = 80_000  # Gaussians in all
    refine_iterations: int = 50  # photometric steps


SMOKE = Settings(fit_iterations=120, align_rounds=2, detail_px=5.0, refine_iterations=10)


@dataclass(frozen=True)
class Avatar:
    """A person's Gaussians in the posture of the photo with a closed mouth, and how they hang on the body mesh.

    `aa.posing.unpose` takes the mesh back to the rest pose that all people share, `repose` to any posture.

    World: metres, z up, the root upright and facing -y. The first particles are the layout's, in its order; then come detail
    particles on the surface and loose ones (hair, clothes).
    """

    gaussians: Gaussians
    layout_name: str
    corners: torch.Tensor  # (N, 3) vertices that carry each Gaussian: a triangle, or for loose ones any three
    bary: torch.Tensor  # (N, 3) their weights, rows sum to 1
    loose: torch.Tensor  # (N,) bool, carried rigidly by each corner and blended, not laid on a triangle
    vertices: torch.Tensor  # (V, 3) the canonical rest
    photo_vertices: torch.Tensor  # (V, 3) with the photo's expression
    turn: torch.Tensor  # (V, 3, 3) rotation of the canonical rest relative to the posture at ease
    posture: torch.Tensor  # (J, 3) rad, the joint rotations of the photo; aa.posing.repose leads to others, unpose to none
    joints: torch.Tensor  # (J, 3) m, the person's joints in the rest pose
    stretch: torch.Tensor  # (J, 3) m, how much longer the person's bones are than between these
    K: torch.Tensor  # (3, 3) px of the render
    viewmat: torch.Tensor  # (4, 4) the photo's camera
    width: int
    height: int
    background: torch.Tensor  # (H, W, 3) uint8, the photo without the person
    report: dict

    def save(self, folder) -> None:
        """Write a folder: gaussians.safetensors, avatar.safetensors, background.png, avatar.json."""
        folder = Path(folder)
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        self.gaussians.save(part / "gaussians.safetensors")
        save_file({k: getattr(self, k).detach().cpu().contiguous() for k in TENSORS}, part / "avatar.safetensors")
        cv2.imwrite(str(part / "background.png"), self.background.cpu().numpy()[..., ::-1])
        meta = {"layout_name": self.layout_name, "width": self.width, "height": self.height, "report": self.report}
        (part / "avatar.json").write_text(json.dumps(meta, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)

    @classmethod
    def load(cls, folder, device="cpu") -> "Avatar":
        """Read what `save` wrote."""
        folder = Path(folder)
        meta = json.loads((folder / "avatar.json").read_text())
        tensors = load_file(folder / "avatar.safetensors", device=str(device))
        background = torch.from_numpy(cv2.imread(str(folder / "background.png"))[..., ::-1].copy()).to(device)
        return cls(gaussians=Gaussians.load(folder / "gaussians.safetensors", device), background=background, **tensors, **meta)

    def to(self, device) -> "Avatar":
        """The same avatar on another device."""
        move = lambda x: x.to(device) if torch.is_tensor(x) else x  # noqa: E731
        moved = {f.name: move(getattr(self, f.name)) for f in fields(self)}
        moved["gaussians"] = Gaussians(**{name: move(value) for name, value in vars(self.gaussians).items()})
        return replace(self, **moved)

    def on_photo(self) -> Gaussians:
        """The Gaussians with the expression of the photo, to be compared with it."""
        return to_vertices(self.gaussians, self.corners, self.bary, self.loose, self.vertices, self.photo_vertices)


def animate(avatar: Avatar, motion: Deformation) -> tuple[torch.Tensor, torch.Tensor]:
    """Means (T, N, 3) m and quats (T, N, 4) of the avatar's Gaussians under motion of its vertices, (T, V, 3)."""
    g, corners, bary = avatar.gaussians, avatar.corners, avatar.bary
    read = lambda x: (x[:, corners.flatten()].unflatten(1, (-1, 3)) * bary[..., None]).sum(2)  # noqa: E731
    quats = rotvec_to_quat(read(motion.rotvecs))
    means = g.means + read(motion.means)
    free = avatar.loose
    arm = (g.means - (avatar.vertices[corners] * bary[..., None]).sum(1))[~free]  # (n, 3) off the surface
    means[:, ~free] += rotate(quats[:, ~free], arm) - arm
    arms = g.means[free][:, None] - avatar.vertices[corners[free]]  # (n, 3, 3) from each corner
    turns = rotvec_to_quat(motion.rotvecs)[:, corners[free]]  # (T, n, 3, 4)
    means[:, free] += ((rotate(turns, arms) - arms) * bary[free][..., None]).sum(2)
    return means, quat_multiply(quats, g.quats.expand(len(quats), -1, -1))


def render(avatar: Avatar, means, quats, background=None) -> torch.Tensor:
    """Images (T, H, W, 3) in [0, 1] of means (T, N, 3), quats (T, N, 4) over `background` (H, W, 3) (default: the photo's)."""
    from aa.raster import rasterize

    g, frames = avatar.gaussians, []
    behind = avatar.background.float() / 255 if background is None else background
    for m, q in zip(means, quats):
        image, alpha, _ = rasterize(
            m, q, g.scales, g.opacities, g.colors, avatar.viewmat[None], avatar.K[None], avatar.width, avatar.height
        )
        frames.append(image[0] + (1 - alpha[0]) * behind)
    return torch.stack(frames).clamp(0, 1)


@torch.enable_grad()  # it optimises, wherever it is called from
def fit_photo(
    image, *, particles=40_000, size=768, seed=0, device="cpu", progress=True, settings: Settings | None = None
) -> Avatar:
    """Fit an avatar to a photo: (H, W, 3) uint8 or a path.

    Args: particles of the shared layout; size, px of the longer side at which the avatar is made and rendered; device of the
        avatar that is returned (the fit itself is small serial work, and runs on the CPU whatever the device).
    Raises: aa.errors.InputError when the photo holds no usable person. Deterministic for a given seed.
    """
    settings = settings or Settings()
    body, bar = load_body(), Progress(progress)
    with bar("detect", "find the person", 10):
        person = detect(image)
    with bar("fit", "fit the body", 50, settings.fit_iterations):
        fit = fit_body(body, person, settings.fit_iterations, bar.tick)
    with torch.no_grad():
        with bar("outline", "outline", 10):
            vertices, photo_vertices, turn = shape_of(body, fit, person, settings.align_rounds)
            joints = shaped(body, fit.betas, None, fit.hands)[1]
        with bar("colours", "colours", 15):
            K, width, height = scaled_camera(fit.K, person.image.shape, size)
            picture = cv2.resize(person.image, (width, height), interpolation=cv2.INTER_AREA)
            mask = cv2.resize(person.mask, (width, height), interpolation=cv2.INTER_AREA)
            faces = solid_faces(body)[0]
            part = parts_of_vertices(body, stiff=False)[faces[:, 0]]
            view = make_view(picture, mask, photo_vertices, faces, fit.viewmat, K, part)
            layout = load_layout(body, particles)
            cloud = cover(body, layout, view, person, photo_vertices, settings, width / person.image.shape[1])
            background = clean_plate(picture, mask)
            cloud = moved(cloud, photo_vertices, photo_vertices + open_lids(body, view, photo_vertices, turn))
            others = pseudo_views(body, cloud, view, photo_vertices, turn) if settings.refine_iterations else []
    with bar("refine", "refine", 15):
        gaussians = refine(cloud, view, background, settings.refine_iterations, seed, others)
    with torch.no_grad():
        gaussians = to_vertices(gaussians, cloud.corners, cloud.bary, cloud.loose, photo_vertices, vertices)
    report = {
        "eyes_px": person.eye_distance * width / person.image.shape[1],
        "face_px_before": fit.face_error,
        "seconds": bar.close(),
        "missing": missing(person),
        "notices": [*person.notices, *remarks(person)],
        "gaussians": len(gaussians),
    }
    avatar = Avatar(
        gaussians, layout.name, cloud.corners, cloud.bary, cloud.loose, vertices, photo_vertices, turn, fit.rotvecs, joints,
        fit.stretch, K, fit.viewmat, width, height, torch.from_numpy(background), report,
    )  # fmt: skip
    report |= measure(avatar, body, person)
    return avatar if str(device) == "cpu" else avatar.to(device)


def shape_of(body, fit, person, rounds: int):
    """Canonical vertices (V, 3), those with the photo's expression (V, 3), and their turn (V, 3, 3) from the posture at ease."""
    posed = skin(body, fit.betas, fit.rotvecs, fit.actions, fit.stretch, fit.hands)[1]
    photo_vertices = align(body, posed, fit.viewmat, fit.K, person, rounds)
    joints, rest, quats = skin(body, fit.betas, fit.rotvecs, None, fit.stretch, fit.hands)
    matrices = rotvec_to_matrix(quat_to_rotvec(quats))
    vertices = close_lips(body, rest + (photo_vertices - posed), matrices)
    for v in (photo_vertices, vertices):
        _lower_teeth(body, v, matrices)
    ease = rigid_motions(body, body.joint_template, torch.zeros_like(joints), at_ease(body))[0]
    return vertices, photo_vertices, rotvec_to_matrix(quat_to_rotvec(quat_multiply(quats, inverse(ease))))


class Progress:
    """A progress bar over steps of known weight, and the seconds that each took."""

    def __init__(self, shown: bool):
        form = "{desc}: {bar:20} {percentage:3.0f}% [{elapsed}]"
        self.bar = tqdm(total=100, desc="photo", disable=not shown, bar_format=form)
        self.seconds, self.since = {}, time.perf_counter()
        self.done = self.step = 0.0

    @contextmanager
    def __call__(self, name: str, text: str, weight: float, ticks: int = 1):
        """One step around a block; `tick` may be called `ticks` times within."""
        self.bar.set_description_str(f"photo: {text}")
        since, self.step, end = time.perf_counter(), weight / ticks, self.done + weight
        yield
        self.done = end
        self.bar.update(end - self.bar.n)
        self.seconds[name] = round(time.perf_counter() - since, 2)

    def tick(self) -> None:
        """A part of the step is done."""
        self.done += self.step
        self.bar.update(min(self.done, 99) - self.bar.n)

    def close(self) -> dict[str, float]:
        """Seconds by step and in total."""
        self.bar.close()
        return {**self.seconds, "total": round(time.perf_counter() - self.since, 2)}


def scaled_camera(K, shape, size: int):
    """K for the image reduced so that its longer side is `size`, and its even width and height."""
    height, width = shape[:2]
    factor = size / max(height, width)
    w, h = (2 * max(1, round(x * factor / 2)) for x in (width, height))
    return torch.diag(torch.tensor([w / width, h / height, 1.0])) @ K, w, h


def _lower_teeth(body, vertices, rotations) -> None:
    """Lower the upper teeth, which the mean body hides behind the lip, to where they show when people speak. In place."""
    teeth = body.region_vertices("teeth")
    upper = teeth[body.action_dirs[body.action("jawOpen"), teeth].norm(dim=1) < 1e-3]
    vertices[upper] += rotations[upper] @ torch.tensor([0, 0, -UPPER_TEETH])
