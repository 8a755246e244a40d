"""What the end-to-end fine-tuning learns from: a person seen close, their motion and sound, and what a camera saw of them."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from aa.body import Body
from aa.canonical import animate
from aa.closeup import EPS2D, CloseUp, Person
from aa.errors import InputError
from aa.fit_footage import Footage, enlarge
from aa.gaussians import Layout, load_layout, project
from aa.lifting import colors_from_tracks
from aa.media import FPS, SAMPLE_RATE
from aa.motion import MotionModel
from aa.motion_data import Recipe, sound_of
from aa.motion_data import Stage as Template
from aa.performer import Style, perform
from aa.raster import rasterize
from aa.retarget import retarget
from aa.teacher_data import close_up, crop_camera
from aa.transfer import Transfer

NODES = 300  # of the transfer to a person seen close: a third of those of `Transfer`, 0.1 mm worse, twice as fast


@dataclass(frozen=True)
class Scene:
    """T frames at 25 fps of one person. What is None is not known, and the terms of the loss that need it are left out."""

    closeup: CloseUp
    coordinates: Tensor  # (T, K) of the motion basis: performed, fitted to the clip, or drawn by the model itself as an anchor
    features: Tensor  # (T, F) what the motion model hears
    audio: np.ndarray  # (n,) float32 at 16 kHz, for the teacher
    image: Tensor  # (size, size, 3) in [0, 1], the person as the teacher sees them
    frames: Tensor | None = None  # (T, size, size, 3) in [0, 1]
    tracks: Tensor | None = None  # (T, P, 2) px of the crop
    visible: Tensor | None = None  # (T, P) bool
    particle: Tensor | None = None  # (P,) particles of the close-up that the tracks follow
    points: Tensor | None = None  # (T, P, 3) m, where they truly are; only the studio knows, and only for measuring

    @classmethod
    def of_clip(cls, model: MotionModel, closeup: CloseUp, clip, coordinates: Tensor, box=None) -> "Scene":
        """From a `Clip` of the person whose tracks belong to the particles of `closeup`'s person.

        Args: coordinates (T, K); box (left, top, right, bottom) px of the clip that the close-up shows, None: all of it.
        Raises: InputError: no sound in the clip, coordinates of another length.
        """
        pictures = torch.as_tensor(np.asarray(clip.load_frames()), dtype=torch.float32, device=model.device) / 255
        T, height, width = pictures.shape[:3]
        if clip.audio is None:
            raise InputError("the clip has no sound: distillation needs what the person says; give one with sound.")
        if len(coordinates) != T:
            raise InputError(f"the clip has {T} frames but its motion has {len(coordinates)}: give the motion of this clip.")
        left, top, right, bottom = box = (0, 0, width, height) if box is None else box
        same = (right - left, bottom - top) == (closeup.size, closeup.size)
        frames = pictures[:, top:bottom, left:right] if same else enlarge(pictures, box, closeup.size)
        seen = {}
        if clip.tracks is not None and clip.particle is not None:
            as_tensor = lambda x: torch.as_tensor(np.asarray(x), device=model.device)  # noqa: E731
            kept, particle = closeup.track(as_tensor(clip.particle))
            shrink = torch.tensor([closeup.size / (right - left), closeup.size / (bottom - top)], device=model.device)
            corner = torch.tensor([left, top], dtype=torch.float32, device=model.device)
            tracks = (as_tensor(clip.tracks).float().transpose(0, 1)[:, kept] - corner) * shrink
            seen = {"tracks": tracks, "visible": as_tensor(clip.visibility).T[:, kept], "particle": particle}
        return cls(closeup, coordinates, model.features(clip.audio, T), clip.audio, frames[0], frames, **seen)

    @torch.no_grad()
    def fit(self, motion: Tensor) -> dict[str, float]:
        """How far coordinates (T, K) are from what was seen: mean distance of the tracks in px of the crop and in mm."""
        means, _ = self.closeup.pose(motion)
        off = (self.closeup.pixels(means)[:, self.particle] - self.tracks).norm(dim=-1)
        out = {"track_px": float((off * self.visible).sum() / self.visible.sum().clamp_min(1))}
        if self.points is not None:
            out["track_mm"] = 1000 * float((means[:, self.particle] - self.points).norm(dim=-1).mean())
        return out


def studio_scene(
    model: MotionModel, template: Template, recipe: Recipe, stage, size: int = 64, frames: int | None = None,
    layout: Layout | None = None, kind: str = "face",
) -> Scene:  # fmt: skip
    """A scene of a studio person (`aa.studio.Stage`) who performs a recipe, seen as close as the tiny teacher sees people.

    Args: frames: the first so many, None: all; layout, by default the small one; kind of `aa.teacher_data.close_up`.
    """
    from aa.studio import camera, film

    body, layout = template.body, layout or load_layout(template.body, 10_000)
    V, recipe = len(body.v_template), replace(recipe, person=False)
    rest = stage.pose(template.ease, None, None)[:V]
    K, viewmat = camera(kind, size, size, person=stage.body)
    K = crop_camera(K, close_up(project(layout.place(rest)[layout.part == 1], viewmat, K)[0], kind), size)
    speech = sound_of(recipe)
    style = replace(Style.sample(torch.Generator().manual_seed(recipe.seed)), expressiveness=1.0)  # as `Template.motion`
    played = perform(body, speech, recipe.seed, style)
    T = min(len(played.actions), frames or len(played.actions))
    played = replace(played, actions=played.actions[:T], rotvecs=played.rotvecs[:T], translation=played.translation[:T])
    clip = film(body, stage, played, layout, K, viewmat, size, size, supersample=2, speech=speech)
    posed = (stage.pose(played.rotvecs[t], played.actions[t], played.translation[t])[:V] for t in range(T))
    points = torch.stack([layout.place(v) for v in posed])
    behind = torch.from_numpy(stage.backdrop(size, size).copy())
    colors = colors_from_tracks(Footage.of(clip, behind), layout.place(rest))
    closeup = CloseUp(
        body, model.basis, Person.of_layout(layout, rest, colors), Transfer(body, template.rest, rest, nodes=NODES),
        viewmat, K, size, behind,
    )  # fmt: skip
    coordinates = model.basis.encode(template.motion(recipe, speech)[:T])
    scene = Scene.of_clip(model, closeup, replace(clip, audio=speech.audio[: round(T * SAMPLE_RATE / FPS)]), coordinates)
    closeup.polish(scene.frames, coordinates)
    return replace(scene, points=points[:, closeup.rows[scene.particle]])


def avatar_scene(
    model: MotionModel, body: Body, avatar, audio: np.ndarray, seed: int = 0, size: int = 64, most: int = 2500
) -> Scene:
    """A scene of a fitted avatar (`aa.canonical.Avatar`) that nobody filmed: sound and teacher are all there is.

    Its motion is what the model itself makes of the sound (n,), 16 kHz: the anchor that L_simple holds on to.
    """
    transfer = retarget(body, avatar)
    face = project(avatar.vertices[body.region_vertices("face")], avatar.viewmat, avatar.K)[0]
    box = close_up(face)
    K, behind = crop_camera(avatar.K, box, size), _behind(avatar.background, box, size)
    closeup = CloseUp(body, model.basis, Person.of_avatar(avatar), transfer, avatar.viewmat, K, size, behind, most)
    with torch.no_grad():
        x = torch.cat(list(model.stream_latents(audio, seed)))
        coordinates = model.embedding.decoder(x * model.scale)
        some = torch.linspace(0, len(x) - 1, 9).long()
        means, quats = animate(avatar, transfer(model.basis.decode(coordinates[some])))
        g, views, Ks = avatar.gaussians, avatar.viewmat.expand(9, 4, 4).contiguous(), K.expand(9, 3, 3).contiguous()
        image, alpha, _ = rasterize(means, quats, g.scales, g.opacities, g.colors, views, Ks, size, size, eps2d=EPS2D)
        pictures = image + (1 - alpha) * behind
    closeup.polish(pictures, coordinates[some])
    return Scene(closeup, coordinates, model.features(audio, len(x)), audio, pictures[0].clamp(0, 1))


def _behind(background: Tensor, box: Tensor, size: int) -> Tensor:
    """What a square box (centre x, y, side; px) shows of a picture (H, W, 3) uint8: (size, size, 3) in [0, 1], edges drawn out."""
    at = (torch.arange(size, device=box.device) + 0.5) / size - 0.5
    x, y = (2 * (box[k] + box[2] * at) / background.shape[1 - k] - 1 for k in (0, 1))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    picture = background.permute(2, 0, 1)[None].float() / 255
    return F.grid_sample(picture, grid, padding_mode="border", align_corners=False)[0].permute(1, 2, 0)
