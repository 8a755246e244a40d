"""Video diffusion models as teachers (3.3): frozen, conditioned on sound and on an image of the person, all behind one interface.

Flow matching, as in Wan and LTX-2: z_sigma = (1 - sigma) z + sigma eps, and the network predicts v = eps - z, so that
x0_hat = z_sigma - sigma v and eps_hat = z_sigma + (1 - sigma) v. Kinds of teachers: "tiny" (`aa.teacher_tiny`, trained here on the
studio's clips, runs on a CPU), "wan-1.3b", "wan-14b" (`aa.teacher_wan`) and "ltx2" (`aa.teacher_ltx2`), which need downloads.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aa.errors import InputError
from aa.media import FPS, SAMPLE_RATE

NAMES = ("tiny", "wan-1.3b", "wan-14b", "ltx2")


class Teacher(nn.Module):
    """What score distillation and data synthesis need of a video diffusion model.

    A subclass sets the attributes below and implements `encode`, `decode`, `hear`, `cut`, `look` and `predict`. B clips of T
    frames; latents z are (B, C, t, h, w). Conditions are made once and used often, `audio = teacher.cut(teacher.hear(sound),
    starts)` and `image = teacher.look(pictures)`; None is the null condition of either.
    """

    name: str  # one of NAMES
    frames: int  # T of a clip
    height: int  # px of the pictures it was trained on
    width: int
    fps: float  # of its clips: a tiny teacher that sees every second frame has 12.5
    shift: float = 1.0  # of the noise levels in `sample`: larger spends more steps at high noise
    guidance: tuple[float, float] = (1.0, 1.0)  # of sound and image in `sample`, unless asked for otherwise
    recompute: bool = False  # see `checkpointing`

    # ------------------------------------------------------------ of every teacher its own

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, T, H, W, 3) in [0, 1] -> latents z. Gradients flow back to the frames."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Latents z -> frames (B, T, H, W, 3), about [0, 1]."""
        raise NotImplementedError

    def hear(self, sound: np.ndarray, frames: int | None = None) -> Tensor:
        """Sound (n,) at 16 kHz -> what the teacher hears, one row per 1/25 s: (N, ...), N = `frames` or the sound's length."""
        raise NotImplementedError

    def cut(self, rows: Tensor, starts) -> Tensor:
        """Rows (N, ...) of `hear` -> audio (B, ...) of the clips whose first frames are `starts` (B,), in frames at 25 fps. What
        lies before or behind the sound is taken from its ends."""
        raise NotImplementedError

    def look(self, image: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) in [0, 1] of the person, any expression, framed like the clips -> image condition (B, ...)."""
        raise NotImplementedError

    def predict(self, z_sigma: Tensor, sigma: Tensor, audio: Tensor | None, image: Tensor | None) -> Tensor:
        """v (like z) without guidance; sigma (B,) in [0, 1]. None stands for the null condition."""
        raise NotImplementedError

    def anchor(self, z: Tensor, image: Tensor | None) -> Tensor:
        """Latents with what the image says exactly put in: teachers whose first frame is the image. Others change nothing."""
        return z

    # ------------------------------------------------------------ the same for all

    def checkpointing(self, on: bool = True) -> "Teacher":
        """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
        self.recompute = on
        return self

    def again(self, f: Callable, *args):
        """f(*args), computed again in the backward pass where `checkpointing` asks for it."""
        return checkpoint(f, *args, use_reentrant=False) if self.recompute and torch.is_grad_enabled() else f(*args)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def freeze(self) -> "Teacher":
        """A teacher is not taught: evaluation mode, and no parameter asks for gradients (inputs still may)."""
        return self.eval().requires_grad_(False)

    def add_noise(self, z: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
        """z_sigma = (1 - sigma) z + sigma eps; sigma (B,) or a number."""
        s = levels(sigma, z)
        return (1 - s) * z + s * eps

    def velocity(
        self, z_sigma: Tensor, sigma: Tensor, audio: Tensor | None = None, image: Tensor | None = None,
        audio_guidance: float = 1.0, image_guidance: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """v by classifier-free guidance, sound and image apart (as Brooks et al. 2023 for two conditions):

            v(0, 0) + g_image (v(0, image) - v(0, 0)) + g_audio (v(audio, image) - v(0, image))

        Guidance 1 is the plain conditional prediction and costs one pass; passes whose factor vanishes are left out.
        """
        sigma = torch.as_tensor(sigma, device=z_sigma.device, dtype=torch.float32).expand(len(z_sigma))
        ga, gi = (audio_guidance if audio is not None else 0.0), (image_guidance if image is not None else 0.0)
        share = ((ga, audio, image), (gi - ga, None, image), (1 - gi, None, None))
        if audio is not None and image is None:
            share = ((ga, audio, None), (1 - ga, None, None))
        return sum(f * self.predict(z_sigma, sigma, a, i) for f, a, i in share if f)

    def audio_direction(self, z_sigma: Tensor, sigma: Tensor, audio: Tensor, image: Tensor | None = None) -> Tensor:
        """v(audio, image) - v(0, image), like z: which way the sound alone pulls (the score of sound given video, times -sigma)."""
        sigma = torch.as_tensor(sigma, device=z_sigma.device, dtype=torch.float32).expand(len(z_sigma))
        return self.predict(z_sigma, sigma, audio, image) - self.predict(z_sigma, sigma, None, image)

    @staticmethod
    def x0_hat(z_sigma: Tensor, sigma: Tensor, v: Tensor) -> Tensor:
        """Clean latents that a velocity implies."""
        return z_sigma - levels(sigma, z_sigma) * v

    @staticmethod
    def eps_hat(z_sigma: Tensor, sigma: Tensor, v: Tensor) -> Tensor:
        """Noise that a velocity implies."""
        return z_sigma + (1 - levels(sigma, z_sigma)) * v

    def latent_shape(self, batch: int = 1) -> tuple[int, ...]:
        """Shape of z for `batch` clips of the size the teacher was trained on."""
        with torch.no_grad():
            return tuple(self.encode(torch.zeros(batch, self.frames, self.height, self.width, 3, device=self.device)).shape)

    def noise(self, batch: int, seed: int) -> Tensor:
        """eps (B, C, t, h, w), float32, the same on every device."""
        return torch.randn(self.latent_shape(batch), generator=torch.Generator().manual_seed(seed)).to(self.device)

    @torch.no_grad()
    def sample(
        self, image: Tensor | None, audio: Tensor | None, seed: int, steps: int = 20,
        guidance: tuple[float, float] | None = None, progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Frames (B, T, H, W, 3) in [0, 1], by Euler's method from noise. Same seed, same frames.

        Args: image and audio conditions of `look` and `cut`, of the same B, or None; guidance (sound, image), by default the
            teacher's own; progress(step, steps) is called after every step.
        """
        ga, gi = guidance or self.guidance
        given = [c for c in (image, audio) if c is not None]
        z = self.noise(len(given[0]) if given else 1, seed)
        t = torch.linspace(1, 0, steps + 1)
        sigmas = self.shift * t / (1 + (self.shift - 1) * t)
        for k, (now, then) in enumerate(pairwise(sigmas)):
            z = z + (then - now).item() * self.velocity(z, now, audio, image, ga, gi).float()
            if progress:
                progress(k + 1, steps)
        return self.decode(self.anchor(z, image)).float().clamp(0, 1)


class FirstFrameTeacher(Teacher):
    """A published model behind a video autoencoder, whose first latent frame is the image.

    A subclass registers its prompts' embeddings as the buffer `text`, sets the attributes below, and implements `scale`, `hear`
    and `predict`.
    """

    transformer: nn.Module  # diffusers' classes
    vae: nn.Module
    place: str | None  # where the work is done, if the weights wait elsewhere

    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the autoencoder's latents, (1, C, 1, 1, 1)."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return self.text.device if self.place is None else torch.device(self.place)

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    def checkpointing(self, on: bool = True) -> "FirstFrameTeacher":
        (self.transformer.enable_gradient_checkpointing if on else self.transformer.disable_gradient_checkpointing)()
        return super().checkpointing(on)

    def encode(self, frames: Tensor) -> Tensor:
        mean, deviation = self.scale()
        x = (2 * frames.movedim(-1, 1) - 1).to(self.device, self.vae.dtype)
        return (self.again(lambda x: self.vae.encode(x).latent_dist.mode(), x).float() - mean) / deviation

    def decode(self, z: Tensor) -> Tensor:
        mean, deviation = self.scale()
        return (self.vae.decode((z * deviation + mean).to(self.vae.dtype)).sample.float().movedim(1, -1) + 1) / 2

    def cut(self, rows: Tensor, starts) -> Tensor:
        at = torch.as_tensor(starts).reshape(-1, 1) + torch.arange(round(self.frames * FPS / self.fps))
        return rows[at.clamp(0, len(rows) - 1).to(rows.device)]

    def look(self, image: Tensor) -> Tensor:
        return self.encode(image[:, None])

    def anchor(self, z: Tensor, image: Tensor | None) -> Tensor:
        return z if image is None else torch.cat([image, z[:, :, 1:]], 2)

    def led_to(self, image: Tensor | None, v: Tensor, z_sigma: Tensor, sigma: Tensor) -> Tensor:
        """v with that velocity in the first frame which leads to the image."""
        if image is None:
            return v
        first = (z_sigma[:, :, :1] - image) / sigma.view(-1, 1, 1, 1, 1).clamp_min(1e-3)
        return torch.cat([first, v[:, :, 1:]], 2)


def levels(sigma, z: Tensor) -> Tensor:
    """Noise levels, a number or (B,), in the shape that multiplies z (B, ...)."""
    sigma = torch.as_tensor(sigma, device=z.device, dtype=z.dtype)
    return sigma.reshape(sigma.shape + (1,) * (z.ndim - sigma.ndim)) if sigma.ndim else sigma


def sample_clip(teacher: Teacher, image: np.ndarray, sound: np.ndarray, seed: int, **settings):
    """A teacher's video as a `Clip` (3.3, data synthesis), at the teacher's frame rate, with its piece of the sound.

    Args: image (H, W, 3) uint8 of the size of the teacher's pictures; sound (n,) at 16 kHz, of which the beginning is used;
        settings of `Teacher.sample`.
    Raises: InputError when the picture has another shape, or the sound is empty.
    """
    from aa.clips import Clip

    if image.shape != (teacher.height, teacher.width, 3):
        raise InputError(
            f"the picture is {image.shape}: the teacher {teacher.name} wants {teacher.height} x {teacher.width} px in RGB; "
            "crop and resize it first."
        )
    if not len(sound):
        raise InputError("the sound is empty: give some speech for the person to say.")
    picture = torch.from_numpy(image).float().to(teacher.device)[None] / 255
    audio = teacher.cut(teacher.hear(sound), [0])
    made = teacher.sample(teacher.look(picture), audio, seed, **settings)[0]
    n = round(teacher.frames / teacher.fps * SAMPLE_RATE)
    heard = np.pad(sound[:n], (0, max(0, n - len(sound)))).astype(np.float32)
    frames = (made.cpu().numpy() * 255 + 0.5).astype(np.uint8)
    repeat = round(FPS / teacher.fps) if FPS % teacher.fps == 0 else 1  # clips are at 25 fps where that can be had exactly
    return Clip(frames.repeat(repeat, 0), fps=teacher.fps * repeat, audio=heard, source=teacher.name, seeds={"teacher": seed})


def load_teacher(name: str = "tiny", device="cpu", **settings) -> Teacher:
    """A frozen teacher, ready to use.

    Args: name, one of NAMES; settings of the kind: `path` for "tiny" (`TinyTeacher.load`), `folder`, `download`, `offload`, ... for
        the large ones (`aa.teacher_files.load_large`).
    Raises: InputError when its files are not there or do not fit, or when the GPU's memory is too small.
    """
    if name == "tiny":
        from aa.teacher_tiny import TinyTeacher

        return TinyTeacher.load(device=device, **settings)
    if name in NAMES:
        from aa.teacher_files import load_large

        return load_large(name, device=device, **settings)
    raise InputError(f'there is no teacher "{name}": choose one of {", ".join(NAMES)}.')
