"""From a photo and a recording to a talking video: fit the avatar (or take it from the cache), generate motion, render, write."""

import hashlib
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from tqdm.auto import tqdm

from aa.body import load_body
from aa.errors import InputError
from aa.media import FPS, MIN_SECONDS, SAMPLE_RATE, VideoWriter, check_writable, load_audio
from aa.retarget import retarget
from aa.transfer import Deformation, Transfer

FIT_VERSION = 7  # raise it when the photo fit changes, so that cached avatars are made anew
CHUNK = 25  # frames animated at once: memory does not grow with the length of the recording
SILENT_DB = -60.0  # the loudest frame of a recording below this is taken as silence
BROKEN = (OSError, ValueError, KeyError, TypeError, SafetensorError)  # what reading a damaged cache entry raises


@dataclass(frozen=True)
class TalkResult:
    """What `talk` made: the video's path, its number of frames, seconds per step, and notices for the user."""

    path: Path
    frames: int
    seconds: dict[str, float]
    notices: tuple[str, ...] = field(default=())


# ---------------------------------------------------------------- avatars, kept by content


def cache_folder() -> Path:
    """Where fitted avatars are kept: $AA_CACHE, or ~/.cache/audioavatar."""
    return Path(os.environ.get("AA_CACHE") or Path.home() / ".cache" / "audioavatar")


def avatar_key(image, *how) -> str:
    """Name of a photo's cache entry: its content and whatever changes the fit (`how`, anything with a fixed repr)."""
    if isinstance(image, (str, Path)):
        try:
            content = Path(image).read_bytes()
        except OSError as error:
            raise InputError(f"{image} cannot be read ({error.strerror}): give the path of a jpg, png or webp photo.") from error
    else:
        content = np.ascontiguousarray(image).tobytes()
    digest = hashlib.sha256(content)
    digest.update(f"{FIT_VERSION} {how} {getattr(image, 'shape', '')}".encode())
    return digest.hexdigest()[:20]


def get_avatar(
    image, size: int = 768, seed: int = 0, device="cpu", cache: bool = True, progress: bool = True, *, particles: int = 40_000,
    settings=None,
):  # fmt: skip
    """The avatar of a photo (a path or an (H, W, 3) uint8 array), fitted once and kept by content.

    Args: size, px of the longer side; particles and settings (aa.canonical.Settings) say how fine the fit is.
    Raises: InputError when the photo holds no usable person. An entry of the cache that cannot be read is made anew; a cache
        that cannot be written does not stop anything. Both are said in `report["notices"]`.
    """
    from aa.canonical import Avatar, Settings, fit_photo

    settings = settings or Settings()
    folder = cache_folder() / avatar_key(image, size, seed, particles, settings)
    remarks = []
    if cache and folder.exists():
        try:
            return Avatar.load(folder, device)
        except BROKEN:
            remarks.append("the avatar kept for this photo was damaged: it was fitted anew.")
            shutil.rmtree(folder, ignore_errors=True)
    avatar = fit_photo(image, particles=particles, size=size, seed=seed, progress=progress, settings=settings)
    if cache:
        try:
            keep(avatar, folder)
        except (OSError, SafetensorError) as error:  # the disk is full, say: the video may still be made
            remarks.append(f"the avatar could not be kept in {folder.parent} ({error}): it will be fitted again next time.")
    report = {**avatar.report, "notices": [*avatar.report.get("notices", ()), *remarks]}
    return replace(avatar, report=report).to(device)


def keep(avatar, folder: Path) -> None:
    """Save an avatar as `folder` in one step: an interrupt leaves nothing, and of several writers the first one stands."""
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        avatar.save(part)
        try:
            os.replace(part, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same avatar
                raise
    finally:
        for left in folder.parent.glob(f"{part.name}*"):
            shutil.rmtree(left, ignore_errors=True)


# ---------------------------------------------------------------- motion and pictures


def backdrop(avatar, background: str) -> torch.Tensor:
    """The picture (H, W, 3) in [0, 1] behind the avatar: its photo's background, or a colour by name or #rrggbb."""
    if background == "photo":
        return avatar.background.float() / 255 if avatar.background.dtype == torch.uint8 else avatar.background
    plain = torch.tensor(colour(background), dtype=torch.float32, device=avatar.vertices.device) / 255
    return plain.expand(avatar.height, avatar.width, 3)


def colour(name: str) -> tuple[int, int, int]:
    """Red, green, blue in 0..255 of a colour name or #rrggbb; InputError if it is neither."""
    from PIL import ImageColor

    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise InputError(f'background "{name}" is not known: give photo, a colour name or #rrggbb.') from error


def frames_of(avatar, chunks: Iterator[Deformation], transfer: Transfer, behind: torch.Tensor) -> Iterator[np.ndarray]:
    """Rendered frames (H, W, 3) uint8 of motion that arrives in chunks (T, V, 3) on the template body."""
    from aa.playback import Player

    return Player(avatar, transfer, behind).frames(chunks)


def talk(
    image, audio, out, *, text: str | None = None, voice: str = "joe", size: int = 768, seed: int = 0, device: str | None = None,
    background: str = "photo", cache: bool = True, progress: bool = True, particles: int = 40_000, settings=None,
) -> TalkResult:  # fmt: skip
    """Make a talking video. Use a person's image and voice only with their consent; the file says that it is synthetic.

    Args: image, path of a photo; audio, path of a recording, or None with `text` to be spoken by `voice`; out, the mp4 to write;
        size, px of the longer side; background, "photo" or a colour; particles, settings: see `get_avatar`.
    Raises: InputError with one sentence when something given cannot be used; nothing is left behind then.
    """
    from aa.motion import MotionModel

    device = check(out, device, background)
    watch, notices = Stopwatch(), []
    with bar("sound", progress):
        sound = hear(audio, text, voice, seed, notices)
    watch("sound")
    avatar = get_avatar(image, size, seed, device, cache, progress, particles=particles, settings=settings)
    notices += avatar.report.get("notices", ())
    watch("avatar")
    with bar("motion model", progress), torch.no_grad():
        model, behind = MotionModel.load(device=device), backdrop(avatar, background)
        transfer = retarget(load_body(device), avatar)
    watch("motion model")
    frames = max(1, round(FPS * len(sound) / SAMPLE_RATE))
    pictures = frames_of(avatar, model.stream(sound, seed=seed, chunk=CHUNK), transfer, behind)
    with VideoWriter(out, audio=sound, fps=FPS, title="AudioAvatar") as video:
        for picture in tqdm(pictures, total=frames, desc="motion and frames", unit="frame", disable=not progress):
            video.write(picture)
    watch("render")
    return TalkResult(Path(out), video.count, watch.seconds, tuple(notices))


def check(out, device: str | None, background: str) -> str:
    """What can be refused before any work is: the output's place, a colour, a device. Returns the device to use."""
    check_writable(out)
    if Path(out).suffix.lower() != ".mp4":
        raise InputError(f"{Path(out).name} does not end in .mp4: videos are written as mp4 only.")
    if background != "photo":
        colour(background)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is visible to torch: use --device cpu, or leave it out.")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def hear(audio, text: str | None, voice: str, seed: int, notices: list[str]) -> np.ndarray:
    """The sound (n,) float32 at 16 kHz, of a file or spoken by an offline voice; remarks on it are added to `notices`."""
    from aa.audio import loudness

    if text is not None:
        from aa.speech import speak

        sound = speak(text, voice=voice, seed=seed).audio
        if len(sound) < MIN_SECONDS * SAMPLE_RATE:
            raise InputError(f'"{text}" holds nothing to speak: give at least one word.')
    else:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            sound = load_audio(audio)
        notices += [f"{w.message}." for w in caught if w.category is UserWarning]
    if float(np.max(loudness(sound))) < SILENT_DB:
        notices.append("the recording is silent: the avatar rests, breathes and blinks.")
    return sound


# ---------------------------------------------------------------- watching


@contextmanager
def bar(name: str, progress: bool):
    """A progress bar of one step around a block."""
    with tqdm(total=1, desc=name, disable=not progress, bar_format="{desc}: {bar:20} {n_fmt}/{total_fmt} [{elapsed}]") as shown:
        yield
        shown.update()


class Stopwatch:
    """Seconds per named step."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now
