"""From one photo to a canonical Gaussian avatar on the shared particle layout (the single-image start of the paper's Sec. 3).

Landmarks and mask (aa.detect) -> body fit (aa.photofit) -> outline (aa.align) -> colours (aa.paint) -> loose particles for hair and
clothes (aa.fringe) -> photometric refinement of what the photo shows. Hidden particles keep their inferred colours.
"""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from aa.align import align, solid_faces
from aa.body import load_body, matrix_to_rotvec, quat_multiply, rotvec_to_matrix, rotvec_to_quat
from aa.detect import detect
from aa.fringe import parts_of_vertices
from aa.gaussians import Gaussians, load_layout
from aa.landmarks import load_landmarks
from aa.lips import close_lips
from aa.particles import cover, to_vertices
from aa.performer import at_ease
from aa.photofit import fit_body, skin
from aa.plate import clean_plate
from aa.pseudo import pseudo_views
from aa.refine import refine
from aa.transfer import Deformation
from aa.view import make_view, project

UPPER_TEETH = 0.003  # m
TENSORS = ("corners", "bary", "loose", "vertices", "photo_vertices", "turn", "K", "viewmat")


@dataclass(frozen=True)
class Settings:
    """How much work the photo fit does."""

    fit_iterations: int = 300  # gradient steps on camera, shape, posture and expression
    align_rounds: int = 4  # rounds of outline matching
    detail_px: float = 2.7  # spacing in px of the extra particles where the layout is coarser; 0 leaves them out
    most: int = 74_000  # Gaussians in all
    refine_iterations: int = 50  # photometric steps


SMOKE = Settings(fit_iterations=60, align_rounds=2, detail_px=5.0, refine_iterations=10)


@dataclass(frozen=True)
class Avatar:
    """A person's Gaussians in the posture of the photo with a closed mouth, and how they hang on the body mesh.

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
    means[:, ~free] += _rotate(quats[:, ~free], arm) - arm
    arms = g.means[free][:, None] - avatar.vertices[corners[free]]  # (n, 3, 3) from each corner
    turns = rotvec_to_quat(motion.rotvecs)[:, corners[free]]  # (T, n, 3, 4)
    means[:, free] += ((_rotate(turns, arms) - arms) * bary[free][..., None]).sum(2)
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

    Args: particles of the shared layout; size, px of the longer side at which the avatar is made and rendered.
    Raises: aa.errors.InputError when the photo holds no usable person. Deterministic for a given seed.
    """
    settings = settings or Settings()
    watch, seconds = time.perf_counter, {}
    bar = tqdm(total=5, desc="photo", disable=not progress, bar_format="{desc}: {bar:20} {n_fmt}/{total_fmt} [{elapsed}]")

    def done(name, since):
        seconds[name] = round(watch() - since, 2)
        bar.update()
        return watch()

    body, start = load_body(), watch()
    bar.set_description("photo: find the person")
    person = detect(image)
    t = done("detect", start)
    bar.set_description("photo: fit the body")
    fit = fit_body(body, person, settings.fit_iterations)
    t = done("fit", t)
    with torch.no_grad():
        posed = skin(body, fit.betas, fit.rotvecs, fit.actions, fit.stretch)[1]
        photo_vertices = align(body, posed, fit.viewmat, fit.K, person, settings.align_rounds)
        _, rest, rotations = skin(body, fit.betas, fit.rotvecs, torch.zeros_like(fit.actions), fit.stretch)
        vertices = close_lips(body, rest + (photo_vertices - posed), rotations)
        for v in (photo_vertices, vertices):
            _lower_teeth(body, v, rotations)
        t = done("outline", t)
        bar.set_description("photo: colours")
        K, width, height = scaled_camera(fit.K, person.image.shape, size)
        picture = cv2.resize(person.image, (width, height), interpolation=cv2.INTER_AREA)
        mask = cv2.resize(person.mask, (width, height), interpolation=cv2.INTER_AREA)
        faces = solid_faces(body)[0]
        view = make_view(picture, mask, photo_vertices, faces, fit.viewmat, K, parts_of_vertices(body, stiff=False)[faces[:, 0]])
        layout = load_layout(body, particles)
        cloud = cover(body, layout, view, person, photo_vertices, settings, width / person.image.shape[1])
        background = clean_plate(picture, mask)
        others = pseudo_views(body, cloud, view, photo_vertices, rotations) if settings.refine_iterations else []
        t = done("colours", t)
    bar.set_description("photo: refine")
    gaussians = refine(cloud, view, background, settings.refine_iterations, seed, others)
    done("refine", t)
    bar.close()
    with torch.no_grad():
        gaussians = to_vertices(gaussians, cloud.corners, cloud.bary, cloud.loose, photo_vertices, vertices)
        ease = body.pose(rotvecs=at_ease(body))[1]
        turn = rotvec_to_matrix(matrix_to_rotvec(rotations @ torch.linalg.inv(ease)))
    report = {
        "eyes_px": person.eye_distance * width / person.image.shape[1],
        "face_px_before": fit.face_error,
        "seconds": seconds,
        "notices": list(person.notices),
        "gaussians": len(gaussians),
    }
    avatar = Avatar(
        gaussians, layout.name, cloud.corners, cloud.bary, cloud.loose, vertices, photo_vertices, turn, K, fit.viewmat,
        width, height, torch.from_numpy(background), report,
    )  # fmt: skip
    report |= measure(avatar, body, person, view)
    report["seconds"]["total"] = round(watch() - start, 2)
    return avatar


def scaled_camera(K, shape, size: int):
    """K for the image reduced so that its longer side is `size`, and its even width and height."""
    height, width = shape[:2]
    factor = size / max(height, width)
    w, h = (2 * max(1, round(x * factor / 2)) for x in (width, height))
    return torch.diag(torch.tensor([w / width, h / height, 1.0])) @ K, w, h


def measure(avatar: Avatar, body, person, view) -> dict:
    """Landmark error, silhouette and picture quality of the avatar against its photo."""
    g = avatar.on_photo()
    behind = avatar.background.float() / 255
    image, alpha, _ = g.render(avatar.viewmat[None], avatar.K[None], avatar.width, avatar.height)
    picture = (image[0] + (1 - alpha[0]) * behind).clamp(0, 1).numpy()
    person_px, ours = view.mask > 0.5, alpha[0, ..., 0].numpy() > 0.5
    error = ((picture - view.image) ** 2).mean(-1)
    scale = avatar.width / person.image.shape[1]
    marks = load_landmarks(body)
    keep = marks.reliable.numpy() & (np.arange(478) < 468)
    pixels = project(marks.face(avatar.photo_vertices), avatar.viewmat, avatar.K)[0] / scale
    low, high = (person.face.min(0) * scale).astype(int), (person.face.max(0) * scale).astype(int)
    box = np.zeros_like(person_px)
    box[max(low[1], 0) : high[1], max(low[0], 0) : high[0]] = True
    psnr = lambda where: float(-10 * np.log10(error[where].mean())) if where.any() else 0.0  # noqa: E731
    return {
        "face_px_after": float(np.linalg.norm(pixels - person.face, axis=1)[keep].mean() * 100 / person.eye_distance),
        "mask_iou": float((person_px & ours).sum() / (person_px | ours).sum()),
        "psnr_mask": psnr(person_px), "psnr_face": psnr(box & person_px),
    }  # fmt: skip


def _lower_teeth(body, vertices, rotations) -> None:
    """Lower the upper teeth, which the mean body hides behind the lip, to where they show when people speak. In place."""
    teeth = body.region_vertices("teeth")
    upper = teeth[body.action_dirs[body.action("jawOpen"), teeth].norm(dim=1) < 1e-3]
    vertices[upper] += rotations[upper] @ torch.tensor([0, 0, -UPPER_TEETH])


def _rotate(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Vectors v (..., 3) turned by unit quaternions q (..., 4)."""
    v = v.expand(*q.shape[:-1], 3)
    t = 2 * torch.linalg.cross(q[..., 1:], v)
    return v + q[..., :1] * t + torch.linalg.cross(q[..., 1:], t)
