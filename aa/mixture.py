"""A teacher in closed form: the best denoiser there can be for a finite set of clips with their sounds.

Data are K clips z_k with sounds a_k and a little spread around each: p(z, a) = 1/K sum_k N(z; z_k, s^2) N(a; a_k, h^2). Noised to
z_sigma = (1 - sigma) z + sigma eps this stays a mixture of Gaussians, so that prediction, score and density are sums over the
clips. Trained teachers approximate this one; it shows what score distillation does when the teacher is right, and with a wide h
what it does when the teacher hears dully.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from aa.errors import InputError
from aa.media import FPS
from aa.teachers import Teacher, levels


class MixtureTeacher(Teacher):
    """The optimal teacher of K clips.

    Args: means (K, ...) latents; sounds (K, ...) and images (K, ...) that belong to them, or None; spread s of latents; hearing h
        and sight: how far a sound, or a picture, may be from a clip's own (standard deviation of each entry); shrink: latents are
        frames averaged over squares of so many pixels.
    Sounds come as rows per frame, of any kind (`hear` leaves them as they are); pictures are compared as they are.
    """

    name, fps = "mixture", float(FPS)

    def __init__(self, means, sounds=None, images=None, *, spread=0.1, hearing=1.0, sight=1.0, shrink: int = 1):
        super().__init__()
        for name, x in (("sounds", sounds), ("images", images)):
            if x is not None and len(x) != len(means):
                raise InputError(f"there are {len(means)} clips but {len(x)} {name}: give one for each clip.")
            self.register_buffer(name, x)
        self.register_buffer("means", means)
        self.spread, self.hearing, self.sight, self.shrink = spread, hearing, sight, shrink
        if means.ndim == 5:
            self.frames, self.height, self.width = means.shape[2], shrink * means.shape[3], shrink * means.shape[4]

    @classmethod
    def of_clips(cls, frames: Tensor, sounds, images=None, shrink: int = 8, **widths) -> "MixtureTeacher":
        """From clips (K, T, H, W, 3) in [0, 1]."""
        return cls(to_latents(frames, shrink), sounds, images, shrink=shrink, **widths)

    @property
    def device(self) -> torch.device:
        return self.means.device

    @property
    def dtype(self) -> torch.dtype:
        return self.means.dtype

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, T, H, W, 3) in [0, 1] -> z (B, 3, T, h, w) in [-1, 1]; points (B, D) are their own latents."""
        return to_latents(frames, self.shrink) if frames.ndim == 5 else frames

    def decode(self, z: Tensor) -> Tensor:
        """z -> frames, coarse."""
        large = z.repeat_interleave(self.shrink, 3).repeat_interleave(self.shrink, 4)
        return (large.permute(0, 2, 3, 4, 1) + 1) / 2

    def hear(self, sound, frames: int | None = None) -> Tensor:
        """Rows (N, ...) of whatever the sounds are made of."""
        return torch.as_tensor(sound, device=self.device, dtype=self.dtype)[:frames]

    def cut(self, rows: Tensor, starts) -> Tensor:
        """Rows (N, ...) -> (B, T, ...)."""
        at = torch.as_tensor(starts)[:, None] + torch.arange(self.frames)
        return rows[at.clamp(0, len(rows) - 1)]

    def look(self, image: Tensor) -> Tensor:
        return image

    def latent_shape(self, batch: int = 1) -> tuple[int, ...]:
        return (batch, *self.means.shape[1:])

    def log_prior(self, batch: int, audio=None, image=None) -> Tensor:
        """log p(k | audio, image), (B, K)."""
        out = self.means.new_zeros(batch, len(self.means))
        for given, known, width in ((audio, self.sounds, self.hearing), (image, self.images, self.sight)):
            if given is not None and known is not None:
                out = out - torch.cdist(given.flatten(1), known.flatten(1)).square() / (2 * width**2)
        return out.log_softmax(1)

    def log_joint(self, z_sigma: Tensor, sigma: Tensor, audio=None, image=None) -> Tensor:
        """log p(k | audio, image) N(z_sigma; (1 - sigma) z_k, variance), (B, K)."""
        alpha, flat = (1 - sigma)[:, None], z_sigma.flatten(1)
        variance = (alpha * self.spread) ** 2 + sigma[:, None] ** 2
        mu = self.means.flatten(1)
        square = flat.square().sum(1, keepdim=True) - 2 * alpha * (flat @ mu.T) + alpha**2 * mu.square().sum(1)
        constant = -0.5 * flat.shape[1] * (2 * torch.pi * variance).log()
        return self.log_prior(len(flat), audio, image) + constant - square / (2 * variance)

    def log_density(self, z_sigma: Tensor, sigma: Tensor, audio=None, image=None) -> Tensor:
        """log p_sigma(z_sigma | audio, image), (B,)."""
        return self.log_joint(z_sigma, sigma, audio, image).logsumexp(1)

    def expected(self, z_sigma: Tensor, sigma: Tensor, audio=None, image=None) -> Tensor:
        """E[z | z_sigma, audio, image], like z_sigma: what each clip would say, weighted by how well it explains z_sigma."""
        weight = self.log_joint(z_sigma, sigma, audio, image).softmax(1)
        alpha = (1 - sigma)[:, None]
        gain = alpha * self.spread**2 / ((alpha * self.spread) ** 2 + sigma[:, None] ** 2)
        mean = weight @ self.means.flatten(1)
        return (mean + gain * (z_sigma.flatten(1) - alpha * mean)).view_as(z_sigma)

    def predict(self, z_sigma: Tensor, sigma: Tensor, audio=None, image=None) -> Tensor:
        """v_hat = (z_sigma - E[z | z_sigma]) / sigma."""
        sigma = sigma.to(z_sigma)
        return (z_sigma - self.expected(z_sigma, sigma, audio, image)) / levels(sigma, z_sigma)


def to_latents(frames: Tensor, shrink: int) -> Tensor:
    """Frames (B, T, H, W, 3) in [0, 1] -> (B, 3, T, H / shrink, W / shrink) in [-1, 1], means over squares."""
    x = F.avg_pool2d(frames.flatten(0, 1).permute(0, 3, 1, 2), shrink).unflatten(0, frames.shape[:2])
    return 2 * x.transpose(1, 2) - 1
