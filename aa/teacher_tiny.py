"""The tiny teacher: video diffusion on 9 close-ups of 64 x 64 px that a CPU can train and ask.

Latents: blocks of 4 x 4 px in their principal components. Network: a UNet over space and time, convolutions in each, attention over
both where the picture is 8 x 8; sound enters every block of the first to the last as in OmniAvatar, added to all places of its
frame, and scales them too (FiLM). It predicts v with the part that is known without looking taken out (Karras et al. 2022).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from aa.dit import time_embedding
from aa.errors import InputError
from aa.media import FPS, replacing
from aa.teacher_data import KINDS, cut_rows
from aa.teachers import Teacher

PATH = Path(__file__).resolve().parents[1] / "assets" / "teacher.safetensors"


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of the tiny teacher."""

    frames: int = 9
    size: int = 64  # px
    stride: int = 2  # frames at 25 fps from one picture to the next: 9 of them span 0.68 s, enough for a word
    block: int = 4  # px, side of the squares that become one place of the latents
    channels: int = 24  # principal components kept of the 48 numbers of a square
    width: int = 48  # channels at 16 x 16; twice as many at 8 x 8
    condition: int = 128  # numbers that say noise level and sound of a frame
    heads: int = 4
    sound: str = "phones"  # kind of `aa.audio.features`
    features: int = 113  # their columns
    context: int = 3  # rows of sound on either side of a frame


class Latent(nn.Module):
    """Frames <-> principal components of their squares, each divided by the root of its deviation: half way to all alike, so that
    what is fine, as lips are, counts, and noise does not rule."""

    def __init__(self, config: TinyConfig):
        super().__init__()
        n = 3 * config.block**2
        self.block = config.block
        self.register_buffer("rows", torch.eye(config.channels, n))
        self.register_buffer("mean", torch.full((n,), 0.5))
        self.register_buffer("scale", torch.full((config.channels,), 0.25))

    def squares(self, frames: Tensor) -> Tensor:
        """(..., H, W, 3) -> (..., h, w, 3 block^2)."""
        b = self.block
        x = frames.unflatten(-3, (-1, b)).unflatten(-2, (-1, b))  # (..., h, b, w, b, 3)
        return x.transpose(-4, -3).flatten(-3)

    @torch.no_grad()
    def fit(self, frames: Tensor) -> None:
        """Take components and deviations from frames (n, H, W, 3)."""
        x = self.squares(frames).flatten(0, -2).double()
        mean = x.mean(0)
        values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
        rows = vectors.T.flip(0)[: len(self.rows)]
        rows = rows * rows.sum(1, keepdim=True).sign().where(rows.sum(1, keepdim=True) != 0, torch.ones(()).double())
        std = values.flip(0)[: len(self.rows)].clamp_min(1e-8).sqrt()
        for name, value in (("rows", rows), ("mean", mean), ("scale", (std * std.mean()).sqrt())):
            getattr(self, name).copy_(value)

    def encode(self, frames: Tensor) -> Tensor:
        """(..., H, W, 3) -> (..., h, w, C)."""
        return (self.squares(frames) - self.mean) @ self.rows.T / self.scale

    def decode(self, z: Tensor) -> Tensor:
        """(..., h, w, C) -> (..., H, W, 3)."""
        x = (z * self.scale) @ self.rows + self.mean
        b = self.block
        return x.unflatten(-1, (b, b, 3)).transpose(-4, -3).flatten(-5, -4).flatten(-3, -2)


class ConvBlock(nn.Module):
    """Residual: a convolution in space behind FiLM, one over time, one in space. x (B, T, C, h, w), condition (B, T, E)."""

    def __init__(self, enter: int, width: int, condition: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, enter), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv2d(enter, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Conv2d(width, width, (3, 1), padding=(1, 0))
        self.film = nn.Linear(condition, 2 * width)
        self.skip = nn.Identity() if enter == width else nn.Conv2d(enter, width, 1)
        for last in (self.time, self.conv2):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        B, T = x.shape[:2]
        x = x.flatten(0, 1)
        h = self.conv1(F.silu(self.norm1(x)))  # (B T, C, h, w)
        along = h.unflatten(0, (B, T)).flatten(3).transpose(1, 2)  # (B, C, T, h w)
        h = h + self.time(F.silu(along)).transpose(1, 2).flatten(0, 1).unflatten(2, h.shape[2:])
        scale, shift = self.film(condition).flatten(0, 1)[..., None, None].chunk(2, 1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return (self.skip(x) + h).unflatten(0, (B, T))


class SpaceTime(nn.Module):
    """Attention of every place in every frame to all others, with learned places. x (B, T, C, h, w)."""

    def __init__(self, width: int, heads: int, frames: int, places: int):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.when, self.where = nn.Parameter(torch.zeros(frames, 1, width)), nn.Parameter(0.02 * torch.randn(places, width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C, h, w = x.shape
        tokens = x.flatten(3).transpose(2, 3)  # (B, T, h w, C)
        at = (self.norm(tokens) + self.when[:T] + self.where).flatten(1, 2)
        q, k, v = self.qkv(at).reshape(B, T * h * w, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        out = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + out.unflatten(1, (T, h * w)).transpose(2, 3).unflatten(3, (h, w))


class VideoUNet(nn.Module):
    """F of the tiny teacher: normalised z_sigma, noise level, sound and image -> what to add to the best blind guess of v."""

    def __init__(self, config: TinyConfig):
        super().__init__()
        c, w, e = config.channels, config.width, config.condition
        self.side = side = config.size // config.block
        places = (side // 2) ** 2
        self.row = nn.Linear(config.features, 64)
        self.listen = nn.Sequential(nn.Linear(64 * (2 * config.context + 1), e), nn.SiLU(), nn.Linear(e, e), nn.LayerNorm(e))
        self.silence = nn.Parameter(torch.zeros(e))  # stands for "no sound given"
        self.nobody = nn.Parameter(torch.zeros(c, 1, 1))  # stands for "no image given"
        self.level = nn.Sequential(nn.Linear(64, e), nn.SiLU(), nn.Linear(e, e))
        self.say = nn.Linear(e, c * side**2)  # the picture's motion as far as the sound alone tells it
        self.enter = nn.Conv2d(3 * c, w, 3, padding=1)
        self.above = nn.ModuleList(ConvBlock(w, w, e) for _ in range(2))
        self.down = nn.Conv2d(w, 2 * w, 3, stride=2, padding=1)
        self.below = nn.ModuleList(ConvBlock(2 * w, 2 * w, e) for _ in range(3))
        self.attend = nn.ModuleList(SpaceTime(2 * w, config.heads, config.frames, places) for _ in range(2))
        self.up = nn.Conv2d(2 * w, w, 3, padding=1)
        self.after = nn.ModuleList([ConvBlock(2 * w, w, e), ConvBlock(w, w, e)])
        self.leave = nn.Sequential(nn.GroupNorm(8, w), nn.SiLU(), nn.Conv2d(w, c, 3, padding=1))
        nn.init.zeros_(self.leave[-1].weight)
        nn.init.zeros_(self.leave[-1].bias)

    def hear(self, rows: Tensor) -> Tensor:
        """Normalised rows (B, T, 2 context + 1, F) -> (B, T, E)."""
        return self.listen(F.silu(self.row(rows)).flatten(2))

    def told(self, heard: Tensor) -> Tensor:
        """Heard (B, T, E) -> motion (B, T, C, h, w), a linear map. Training asks it to be right by itself: a network that sees the
        noised frames hardly begins to listen."""
        return self.say(heard).unflatten(2, (-1, self.side, self.side))

    def forward(self, z: Tensor, sigma: Tensor, heard: Tensor, image: Tensor) -> Tensor:
        """z (B, T, C, h, w), sigma (B,), heard (B, T, E), image (B, C, h, w) -> (B, T, C, h, w)."""
        T = z.shape[1]
        e = F.silu(self.level(time_embedding(1000 * sigma, 64).to(z.dtype))[:, None] + heard)
        x = torch.cat([z, image[:, None].expand(-1, T, -1, -1, -1), self.told(heard)], 2)
        x = _each(self.enter, x)
        for block in self.above:
            x = block(x, e)
        deep = self.below[0](_each(self.down, x), e)
        for block, attend in zip(self.below[1:], self.attend):
            deep = block(attend(deep), e)
        deep = _each(self.up, _each(lambda y: F.interpolate(y, scale_factor=2.0), deep))
        x = torch.cat([x, deep], 2)
        for block in self.after:
            x = block(x, e)
        return _each(self.leave, x)


def _each(layer, x: Tensor) -> Tensor:
    """A layer for pictures on every frame of (B, T, C, h, w)."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class TinyTeacher(Teacher):
    """See the module's text; latents z are (B, C, T, h, w) with C = 24, h = w = 16 by default."""

    name = "tiny"
    guidance = (2.0, 1.0)

    def __init__(self, config: TinyConfig | None = None):
        super().__init__()
        self.config = config = config or TinyConfig()
        self.frames, self.height, self.width, self.fps = config.frames, config.size, config.size, FPS / config.stride
        self.latent, self.net = Latent(config), VideoUNet(config)
        side = config.size // config.block
        self.register_buffer("sound_mean", torch.zeros(config.features))
        self.register_buffer("sound_std", torch.ones(config.features))
        # Where the sound tells about the picture, for each kind of close-up, mean 1: weighs errors in training and in tests.
        self.register_buffer("hearing", torch.ones(len(KINDS), side, side))

    @property
    def dtype(self) -> torch.dtype:
        """Of the network; latents and velocities are float32 always."""
        return self.net.enter.weight.dtype

    def encode(self, frames: Tensor) -> Tensor:
        return self.latent.encode(frames).movedim(-1, 1)

    def decode(self, z: Tensor) -> Tensor:
        return self.latent.decode(z.movedim(1, -1))

    def hear(self, sound: np.ndarray, frames: int | None = None) -> Tensor:
        from aa.audio import features

        return torch.from_numpy(features(sound, frames, self.config.sound, self.device)).to(self.device)

    def cut(self, rows: Tensor, starts) -> Tensor:
        c = self.config
        return cut_rows(rows.to(self.device), starts, c.frames, c.stride, c.context)

    def look(self, image: Tensor) -> Tensor:
        return self.latent.encode(image).movedim(-1, 1)

    def predict(self, z_sigma: Tensor, sigma: Tensor, audio: Tensor | None, image: Tensor | None) -> Tensor:
        B, n = len(z_sigma), self.net
        heard = n.silence.expand(B, z_sigma.shape[2], -1) if audio is None else self.heard(audio)
        shown = n.nobody.expand(B, *z_sigma.shape[1:2], *z_sigma.shape[3:]) if image is None else image
        return self.guess(z_sigma, sigma, heard, shown)

    def heard(self, audio: Tensor) -> Tensor:
        """Audio (B, T, 2 context + 1, F) as the network takes it, (B, T, E)."""
        return self.net.hear(((audio - self.sound_mean) / self.sound_std).to(self.dtype))

    def guess(self, z_sigma: Tensor, sigma: Tensor, heard: Tensor, image: Tensor) -> Tensor:
        """v. For latents of mean 0 and variance 1 the best guess without a network is (2 sigma - 1) z_sigma / n^2 with
        n^2 = (1 - sigma)^2 + sigma^2, and what is then missing has variance 1 / n^2."""
        s = sigma[:, None, None, None, None]
        n2 = (1 - s).square() + s.square()
        x, image = (z_sigma / n2.sqrt()).transpose(1, 2).to(self.dtype), image.to(self.dtype)
        out = self.again(self.net, x, sigma, heard, image)
        return (2 * s - 1) * z_sigma / n2 - out.transpose(1, 2).float() / n2.sqrt()

    def save(self, path, facts: dict | None = None) -> None:
        """One safetensors file with config and facts."""
        meta = {"teacher": json.dumps(asdict(self.config)), "facts": json.dumps(facts or {})}
        with replacing(path) as part:
            save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, part, meta)

    @classmethod
    def load(cls, path=PATH, device="cpu", dtype=torch.float32) -> "TinyTeacher":
        """A frozen teacher whose network computes in `dtype`; InputError when the file is missing, damaged or something else's."""
        try:
            with safe_open(path, "pt") as f:
                config = TinyConfig(**json.loads((f.metadata() or {})["teacher"]))
                teacher = cls(config)
                teacher.load_state_dict({k: f.get_tensor(k) for k in f.keys()})  # noqa: SIM118
        except FileNotFoundError as error:
            raise InputError(f"there is no tiny teacher at {path}: train one with `python assets/make_teacher.py`.") from error
        except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError, OSError) as error:
            raise InputError(
                f"{path} is damaged or holds no tiny teacher: get it again, or train one by make_teacher.py."
            ) from error
        teacher.net.to(dtype)
        return teacher.to(device).freeze()
