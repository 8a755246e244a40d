"""From a photo and a recording to a talking video: fit the avatar (or take it from the cache), generate motion, render, write."""

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from aa.body import Body, load_body, matrix_to_quat, quat_to_rotvec
from aa.errors import InputError
from aa.media import FPS, VideoWriter, check_writable, load_audio
from aa.transfer import Deformation, Transfer

FIT_VERSION = 1  # raise it when the photo fit changes, so that cached avatars are made anew
CHUNK = 25  # frames animated at once: memory does not grow with the length of the recording
SILENT_DB = -60.0  # the loudest frame of a recording below this is taken as silence
FREE_ARM, LEAST_GAIN = 0.6, 0.25  # radians an arm may already be raised before gestures shrink, and to what share at most


@dataclass(frozen=True)
class TalkResult:
    """What `talk` made: the video's path, its number of frames, seconds per step, and notices for the user."""

    path: Path
    frames: int
    seconds: dict[str, float]
    notices: tuple[str, ...] = field(default=())


def cache_folder() -> Path:
    """Where fitted avatars are kept: $AA_CACHE, or ~/.cache/audioavatar."""
    return Path(os.environ.get("AA_CACHE") or Path.home() / ".cache" / "audioavatar")


def avatar_key(image, size: int, seed: int) -> str:
    """Name of a photo's cache entry: its content and whatever changes the fit."""
    content = Path(image).read_bytes() if isinstance(image, (str, Path)) else np.ascontiguousarray(image).tobytes()
    digest = hashlib.sha256(content)
    digest.update(f"{FIT_VERSION} {size} {seed} {getattr(image, 'shape', '')}".encode())
    return digest.hexdigest()[:20]


def get_avatar(image, size: int = 768, seed: int = 0, device="cpu", cache: bool = True, progress: bool = True):
    """The avatar of a photo (a path or an (H, W, 3) uint8 array), fitted once and kept by content."""
    from aa.canonical import Avatar, fit_photo

    folder = cache_folder() / avatar_key(image, size, seed)
    if cache and (folder / "avatar.json").is_file():
        return Avatar.load(folder, device)
    avatar = fit_photo(image, size=size, seed=seed, device=device, progress=progress)
    if cache:
        folder.parent.mkdir(parents=True, exist_ok=True)
        avatar.save(folder)
    return avatar


def retarget(body: Body, avatar) -> Transfer:
    """The transfer of motion from the template body at ease to an avatar in the posture of its photo."""
    from aa.performer import at_ease

    with torch.no_grad():
        source, _ = body.pose(rotvecs=torch.as_tensor(at_ease(body), dtype=torch.float32, device=body.device))
    return Transfer(body, source, avatar.vertices, avatar.turn, gesture_gain(body, avatar))


def gesture_gain(body: Body, avatar) -> torch.Tensor:
    """Share (V,) of arm rotations to keep: gestures start from arms at ease, so arms already raised in the photo get less."""

    gain = torch.ones(len(avatar.vertices), device=avatar.vertices.device)
    angle = quat_to_rotvec(matrix_to_quat(avatar.turn)).norm(dim=1)
    for side in (-1, 1):
        mine = body.v_template[:, 0] * side > 0
        forearm = torch.zeros_like(mine)
        forearm[body.region_vertices("forearm")] = True
        raised = float(angle[forearm & mine].median())
        arm = torch.stack([body.weights[:, j] for j, n in enumerate(body.joint_names) if _on_arm(n, side)]).sum(0)
        keep = max(LEAST_GAIN, 1 - max(0.0, raised - FREE_ARM))
        gain = gain - arm * (1 - keep)
    return gain


def _on_arm(joint: str, side: int) -> bool:
    """Whether a joint belongs to the left (+1) or right (-1) arm or hand."""
    arm = ("clavicle", "shoulder", "upperarm", "lowerarm", "wrist", "finger", "metacarpal")
    return joint.startswith(arm) and joint.endswith(".L" if side > 0 else ".R")


def backdrop(avatar, background: str) -> torch.Tensor:
    """The picture (H, W, 3) in [0, 1] behind the avatar: its photo's background, or a colour by name or #rrggbb."""
    if background == "photo":
        return avatar.background.float() / 255 if avatar.background.dtype == torch.uint8 else avatar.background
    from PIL import ImageColor

    try:
        color = ImageColor.getrgb(background)[:3]
    except ValueError as error:
        raise InputError(f'background "{background}" is not known: give photo, a colour name or #rrggbb.') from error
    plain = torch.tensor(color, dtype=torch.float32, device=avatar.vertices.device) / 255
    return plain.expand(avatar.height, avatar.width, 3)


@torch.no_grad()
def frames_of(avatar, chunks: Iterator[Deformation], transfer: Transfer, behind: torch.Tensor) -> Iterator[np.ndarray]:
    """Rendered frames (H, W, 3) uint8 of motion that arrives in chunks (T, V, 3) on the template body."""
    from aa.canonical import animate

    g = avatar.gaussians
    K, viewmat = avatar.K[None], avatar.viewmat[None]
    scales, opacities = g.scales, g.opacities
    from aa.raster import rasterize

    for chunk in chunks:
        means, quats = animate(avatar, transfer(chunk))
        for m, q in zip(means, quats):
            image, alpha, _ = rasterize(m, q, scales, opacities, g.colors, viewmat, K, avatar.width, avatar.height)
            picture = image[0] + (1 - alpha[0]) * behind
            yield (picture.clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()


def talk(
    image, audio, out, *, text: str | None = None, voice: str = "joe", size: int = 768, seed: int = 0, device: str | None = None,
    background: str = "photo", cache: bool = True, progress: bool = True,
) -> TalkResult:  # fmt: skip
    """Make a talking video. Use a person's image and voice only with their consent; the file says that it is synthetic.

    Args: image, path of a photo; audio, path of a recording, or None with `text` to be spoken by `voice`; out, the mp4 to write;
        size, px of the longer side; background, "photo" or a colour.
    Raises: InputError with one sentence when something given cannot be used; nothing is left behind then.
    """
    from aa.motion import MotionModel

    check_writable(out)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    watch, notices = Stopwatch(), []
    sound = spoken(text, voice, seed) if text is not None else load_audio(audio)
    watch("sound")
    if is_silent(sound):
        notices.append("the recording is silent: the avatar rests, breathes and blinks.")
    avatar = get_avatar(image, size, seed, device, cache, progress)
    notices += avatar.report.get("notices", ())
    behind = backdrop(avatar, background)
    watch("avatar")
    body = load_body(device)
    model = MotionModel.load(device=device)
    transfer = retarget(body, avatar)
    watch("motion")
    frames = max(1, round(FPS * len(sound) / 16000))
    pictures = frames_of(avatar, model.stream(sound, seed=seed, chunk=CHUNK), transfer, behind)
    with VideoWriter(out, audio=sound, fps=FPS, title="AudioAvatar") as video:
        for picture in tqdm(pictures, total=frames, desc="render", unit="frame", disable=not progress):
            video.write(picture)
    watch("render")
    return TalkResult(Path(out), frames, watch.seconds, tuple(notices))


def spoken(text: str, voice: str, seed: int) -> np.ndarray:
    """Speech (n,) float32 at 16 kHz of a text by the offline voices."""
    from aa.speech import speak

    return speak(text, voice=voice, seed=seed).audio


def is_silent(sound: np.ndarray) -> bool:
    """Whether nothing in a recording is loud enough to be speech."""
    from aa.audio import loudness

    return float(np.max(loudness(sound))) < SILENT_DB


class Stopwatch:
    """Seconds per named step."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now
