"""From a user's own talking video to an avatar and its motion dG_t (the paper's Problem Setting on real footage).

A good frame gives the canonical avatar (aa.canonical). The avatar's puppet is fitted to the landmarks of every frame (aa.capture),
then found again in every frame by optical flow (aa.follow): tracks that belong to particles, and a coarse motion. The 4DGS field
(aa.deformation) refines it against the pictures, and colours over time (aa.recolour) take up what is left. Steps are kept in a
folder; what is there is not done again.
"""

import hashlib
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from aa.body import load_body, rotvec_to_matrix
from aa.canonical import Avatar, Settings
from aa.clips import Clip, intact
from aa.deformation import Base, DeformationField, Fit, FitSettings, deform, fit_clip
from aa.media import FPS, VideoWriter, replacing, save_json
from aa.own_scene import Scene, capture, first_avatar, lip_correlation, own_plate, still_plate
from aa.own_video import clip_from_video
from aa.raster import rasterize
from aa.recolour import Shots, recolour

GREY = 0.5
FILES = (
    "avatar",
    "pose.safetensors",
    "follow.safetensors",
    "fit.checkpoint",
    "field.safetensors",
    "colours.safetensors",
    "report.json",
)


@dataclass(frozen=True)
class VideoSettings:
    """How much work the fit of a video does."""

    longest: int = 512  # px of the clip's longer side
    particles: int = 10_000  # of the shared layout; the photo's detail comes on top
    photo: Settings = field(default_factory=lambda: Settings(detail_px=2.7, most=60_000, refine_iterations=60))
    colours: int = 4  # rounds of colours over time (aa.recolour); 0: only the field's
    capture: int = 120  # gradient steps on the puppet's postures, all frames at once
    rounds: int = 2  # of optical flow from the avatar to each frame
    fit: FitSettings = field(default_factory=lambda: FitSettings(steps=100, nodes=0))
    hold: int = 10  # every so many frames one is kept out of the 4DGS fit, to be measured; 0: none


@dataclass(frozen=True)
class VideoFit:
    """A person's own video as an avatar that moves."""

    clip: Clip
    avatar: Avatar
    fit: Fit
    base: Base  # of all T frames
    moments: np.ndarray  # (T,) the frame's number within those that were fitted, fractions for the others
    held: np.ndarray  # (T,) bool, frames that the 4DGS fit did not see
    plate: np.ndarray | None  # (H, W, 3) in [0, 1] behind the person; None when the camera moves: each frame has its own
    shown: np.ndarray  # (T,) bool, frames with the person
    report: dict
    tint: torch.Tensor | None = None  # (T, N, 3) colours on top of the field's, see aa.recolour

    def __len__(self) -> int:
        return len(self.moments)

    @torch.no_grad()
    def at(self, t: int) -> list[torch.Tensor]:
        """Means (N, 3), quats, scales and colours of frame t."""
        base = Base(self.base.means[t : t + 1], self.base.turns[t : t + 1])
        offsets = self.fit.field(torch.tensor([float(self.moments[t])]))
        means, quats, scales, colors = (x[0] for x in deform(self.fit.gaussians, offsets, base))
        return [means, quats, scales, colors if self.tint is None else colors + self.tint[t].float()]

    def target(self, t: int) -> torch.Tensor:
        """Frame t as it was filmed, (H, W, 3) in [0, 1]."""
        return torch.from_numpy(self.clip.frames[t]).float() / 255

    def behind(self, t: int) -> torch.Tensor:
        """What is behind the person in frame t, (H, W, 3)."""
        plate = self.plate if self.plate is not None else own_plate(self.clip, t)
        return torch.as_tensor(plate, dtype=torch.float32)

    @torch.no_grad()
    def picture(self, t: int, degrees: float = 0.0, background: torch.Tensor | None = None) -> np.ndarray:
        """Frame t (H, W, 3) uint8, from a camera that goes `degrees` around the person, to their left; grey behind unless at 0."""
        height, width = self.clip.frames.shape[1:3]
        if background is None:
            background = self.behind(t) if degrees == 0 else torch.full((height, width, 3), GREY)
        image = background
        if self.shown[t]:
            means, quats, scales, colors = self.at(t)
            view = around(self.avatar, degrees)[None]
            rgb, alpha, _ = rasterize(
                means, quats, scales, self.fit.gaussians.opacities, colors, view, self.avatar.K[None], width, height
            )
            image = rgb[0] + (1 - alpha[0]) * background
        return (image.clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()

    def write(self, path, degrees: float = 0.0, progress: bool = True) -> Path:
        """The motion as an mp4 with the video's sound."""
        with VideoWriter(path, self.clip.audio, FPS, "AudioAvatar") as video:
            for t in tqdm(range(len(self)), desc="write", disable=not progress):
                video.write(self.picture(t, degrees))
        return Path(path)


def around(avatar: Avatar, degrees: float) -> torch.Tensor:
    """The photo's camera (4, 4) moved about the vertical through the avatar's middle."""
    angle = torch.tensor([0.0, 0.0, float(np.radians(degrees))])
    seen = avatar.gaussians.means[avatar.gaussians.opacities > 0.5]
    middle, M = seen.median(0).values, torch.eye(4)
    M[:3, :3] = rotvec_to_matrix(angle)
    M[:3, 3] = middle - M[:3, :3] @ middle
    return avatar.viewmat @ M


def fit_video(video, folder, settings: VideoSettings | None = None, seed: int = 0, progress: bool = True) -> VideoFit:
    """Fit an avatar and its motion to a video of one talking person.

    Args: video, a path, or a `Clip` with frames, mask and landmarks; folder, where the steps are kept: the same call goes on where
        it was stopped, other settings or another video start anew.
    Returns: `VideoFit`; its report holds PSNR, correlation of lip apertures, seconds per step, and notices for the user.
    Raises: InputError: see `aa.own_video.clip_from_video`; or when no frame shows the face well enough for an avatar.
    """
    settings, watch, kept = settings or VideoSettings(), Watch(), Kept(folder, video, settings or VideoSettings(), seed)
    with watch("video"):
        clip = kept.clip(video, lambda: clip_from_video(video, settings.longest, progress=progress, tracks=False, crop=True))
        plate = still_plate(clip)
    with watch("avatar"):
        avatar = kept.avatar(lambda: first_avatar(clip, settings, seed, progress))
    key, body = avatar.report["key"], load_body()
    with watch("capture"):
        pose = kept.tensors("pose", lambda: capture(body, avatar, clip, key, settings.capture, progress))
    scene = Scene(body, avatar, clip, plate, pose, key)
    with watch("follow"):
        found = kept.tensors("follow", lambda: scene.follow(settings.rounds, progress))
        base = scene.base(found["nodes"])
    with watch("fit"):
        fitted = _fit(kept, scene, base, found, settings, seed, progress)
    if settings.colours:
        with watch("colours"):
            fitted = replace(fitted, tint=kept.tensors("colours", lambda: _tint(fitted, settings.colours, progress))["tint"])
    notices = [*clip.seeds.get("notices", ()), *avatar.report.get("notices", ())]
    if plate is None:
        notices.append("The camera or what is behind moves: the avatar is shown over each frame's own background.")
    with watch("measure"):
        report = measure(fitted, settings.hold, progress) | {"key": key, "gaussians": len(avatar.gaussians), "notices": notices}
    report["seconds"] = watch.seconds | {"total": round(sum(watch.seconds.values()), 1)}
    save_json(kept.folder / "report.json", report)
    return replace(fitted, report=report)


def _fit(kept, scene: Scene, base: Base, found, settings: VideoSettings, seed: int, progress: bool) -> VideoFit:
    """The 4DGS fit, or the one that is kept."""
    shown = scene.shown
    held = shown & (np.arange(len(shown)) % settings.hold == settings.hold // 2) if settings.hold else np.zeros_like(shown)
    used = np.flatnonzero(shown & ~held)
    moments = np.interp(np.arange(len(shown)), used, np.arange(len(used)))
    gaussians, halfway = scene.gaussians(base), kept.folder / "fit.checkpoint"

    def make():
        footage, part = scene.footage(found, used), Base(base.means[used], base.turns[used])
        fit = fit_clip(gaussians, scene.part, footage, settings.fit, seed, progress, scene.apart, part, checkpoint=halfway)
        return {"colors": fit.gaussians.colors, "log_scales": fit.gaussians.log_scales, **_state(fit.field)}

    state = kept.tensors("field", make)
    halfway.unlink(missing_ok=True)
    gaussians = replace(gaussians, colors=state.pop("colors"), log_scales=state.pop("log_scales"))
    field = DeformationField(scene.avatar.gaussians, scene.part, len(used), settings.fit, seed)
    field.load_state_dict({k[6:]: v for k, v in state.items()})
    fit = Fit(gaussians, field, None, {})
    return VideoFit(scene.clip, scene.avatar, fit, base, moments, held, scene.plate, shown, {})


def _tint(fitted, rounds: int, progress: bool) -> dict[str, torch.Tensor]:
    used, a = np.flatnonzero(fitted.shown & ~fitted.held), fitted.avatar
    shots = Shots(
        fitted.at, fitted.fit.gaussians.opacities, fitted.target, fitted.behind, a.viewmat, a.K, used, len(fitted)
    )  # fmt: skip
    return {"tint": recolour(shots, rounds, progress=progress).half()}


def _state(field) -> dict[str, torch.Tensor]:
    return {f"field.{k}": v.detach().clone() for k, v in field.state_dict().items()}


def measure(fitted: VideoFit, hold: int, progress: bool = True) -> dict:
    """PSNR of the pictures (dB; whole, person, held-out frames) and how the lips of their faces follow the video's."""
    clip, error, person, pictures = fitted.clip, [], [], {}
    frames = np.flatnonzero(fitted.shown)
    for t in tqdm(frames, desc="measure", disable=not progress):
        pictures[t] = fitted.picture(t)
        off = (pictures[t].astype(np.float32) - clip.frames[t]) ** 2 / 255**2
        error.append(off.mean())
        person.append(off[clip.mask[t]].mean())
    decibel = lambda x: round(float(-10 * np.log10(np.mean(x))), 2)  # noqa: E731
    held = fitted.held[frames]
    report = {"frames": len(clip.frames), "left_out": len(clip.frames) - len(frames), "psnr": decibel(error)}
    report |= {"psnr_person": decibel(person), "lips": round(lip_correlation(clip, pictures), 3)}
    return report | ({"psnr_held_out": decibel(np.array(error)[held])} if held.any() else {})


class Watch:
    """Seconds per named step."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str):
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


class Kept:
    """Steps of a fit in a folder, each written whole; a folder made from something else is emptied of them."""

    def __init__(self, folder, video, settings, seed: int):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        content = Path(video).read_bytes() if not isinstance(video, Clip) and Path(video).is_file() else b""
        content = video.frames.tobytes() if isinstance(video, Clip) else content
        made_of = hashlib.sha256(content + repr((settings, seed)).encode()).hexdigest()
        label = self.folder / "made_of.txt"
        if not label.exists() or label.read_text() != made_of:
            for name in (*FILES, "clip"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
                if (self.folder / name).is_file():
                    (self.folder / name).unlink()
            label.write_text(made_of)

    def clip(self, video, make) -> Clip:
        """The clip given, kept or made."""
        if isinstance(video, Clip):
            return replace(video, frames=video.load_frames())
        folder = self.folder / "clip"
        if not intact(folder):
            make().save(folder, crf=4)
        return Clip.load(folder)  # also when just made: the same pictures, whether it goes on or starts again

    def avatar(self, make) -> Avatar:
        """The avatar kept or made."""
        folder = self.folder / "avatar"
        if not (folder / "avatar.json").is_file():
            make().save(folder)
        return Avatar.load(folder)

    def tensors(self, name: str, make) -> dict[str, torch.Tensor]:
        """Named tensors kept or made."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            made = {k: torch.as_tensor(v).contiguous() for k, v in make().items()}
            with replacing(path) as part:
                save_file(made, part)
        return load_file(path)
