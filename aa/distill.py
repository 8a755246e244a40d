"""Score distillation on video (Sec. 3.3, Eq. 2): what a video diffusion model knows, as a gradient on rendered frames.

The paper calls Eq. 2 "vsd"; it is score distillation sampling (SDS, Poole et al. 2023) on video: no second network learns the
score of the renders. Teachers here are flow-matching models (as Wan): with noise level sigma in (0, 1),

    z_sigma = (1 - sigma) z + sigma eps,    v = eps - z,    z = encode(frames),

and one network output v_hat can be read as any of three predictions,

    eps_hat = z_sigma + (1 - sigma) v_hat,    z_hat = z_sigma - sigma v_hat.

Their errors are one and the same direction, only scaled:

    eps_hat - eps = (1 - sigma) (v_hat - v),    z - z_hat = sigma (v_hat - v).

So the parametrisation of Eq. 2 is nothing but a choice of the weight: eps with w equals v with (1 - sigma) w, and x0 with
(1 - sigma) w / sigma. The factor alpha(tau) = 1 - sigma of dI~/dI^ in Eq. 2 is left to w as well, as is usual.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from aa.errors import InputError
from aa.fit_losses import ROBUST, trajectory_loss
from aa.teachers import Teacher, levels

__all__ = ["ROBUST", "SDS", "direction", "noise_level", "sds_gradient", "track_loss", "video_sds_loss"]

SCALES = {"eps": lambda s: 1 - s, "v": torch.ones_like, "x0": lambda s: s}  # error of a prediction over that of v
WEIGHTS = {"one": torch.ones_like, "sigma": lambda s: s, "sigma2": lambda s: s * s}
DIRECTIONS = ("paper", "null-subtracted")


@dataclass(frozen=True)
class SDS:
    """How the teacher is asked. Range and weight as in DreamFusion and its successors; guidance of latent video models."""

    direction: str = "null-subtracted"  # of DIRECTIONS
    parametrisation: str = "eps"  # of SCALES
    weight: str = "sigma2"  # w(sigma), of WEIGHTS
    guidance: float = 7.5  # of the sound
    image_guidance: float = 1.0  # of the picture of the person; 1 asks the teacher once less
    low: float = 0.02  # sigma ~ U(low, high)
    high: float = 0.98
    end: float = 0.5  # what `high` comes down to: first the layout of the motion, then its details
    draws: int = 1  # of noise per clip and step
    clip: float = 0.0  # largest root mean square of a clip's gradient; 0: no limit

    def __post_init__(self):
        for name, value, known in (
            ("direction", self.direction, DIRECTIONS),
            ("parametrisation", self.parametrisation, SCALES),
            ("weight", self.weight, WEIGHTS),
        ):
            if value not in known:
                raise InputError(f'the {name} of score distillation is "{value}": choose one of {", ".join(known)}.')
        if not 0 < self.low <= min(self.end, self.high) or self.high > 1 or self.draws < 1:
            raise InputError(
                f"noise levels from {self.low} to {self.high}, later {self.end}, drawn {self.draws} times: give 0 < low <= end, "
                "low <= high <= 1 and at least one draw."
            )


def noise_level(config: SDS, uniform: Tensor, progress: float = 0.0) -> Tensor:
    """sigma from uniform numbers in [0, 1): U(low, high), its upper end going down to `end` with progress 0..1."""
    return config.low + uniform * (config.high + progress * (config.end - config.high) - config.low)


def direction(teacher: Teacher, z: Tensor, sigma: Tensor, eps: Tensor, audio, image, config: SDS) -> Tensor:
    """What stands in the brackets of Eq. 2, in units of v, for latents z (B, ...) noised to sigma (B,) by eps.

    "paper": v_hat - v, with guidance v_hat = v_0 + s (v_audio - v_0) (and the same for the image, Brooks et al. 2023).
    "null-subtracted": s (v_audio - v_0) alone. In the paper's form v_0 - v tells how likely the frames are without any sound: a
    mouth that moves well at the wrong time is held where it is, and a teacher that hears dully cannot pull it away unless s is
    large. What is left here is the gradient of log p(audio | z_sigma), that part of the score that knows about sync (classifier
    score distillation, Yu et al. 2024); v_0 knows the picture, so that only what `image_guidance` exceeds 1 adds to it. It
    pushes on beyond the frames that fit best, where the paper's form holds back: other terms of the loss have to do that.
    """
    z_sigma = teacher.add_noise(z, sigma, eps)
    ask = lambda a, i: teacher.velocity(z_sigma, sigma, a, i).to(z)  # noqa: E731
    if config.direction == "paper" and config.guidance == config.image_guidance == 1:
        return ask(audio, image) - (eps - z)  # one question is enough
    free = ask(None, image)
    told = config.guidance * (ask(audio, image) - free)
    if config.image_guidance != 1 and image is not None:
        told = told + (config.image_guidance - 1) * (free - ask(None, None))
    return told if config.direction == "null-subtracted" else free - (eps - z) + told


@torch.no_grad()
def sds_gradient(teacher: Teacher, z: Tensor, sigma: Tensor, eps: Tensor, audio, image, config: SDS) -> Tensor:
    """w(sigma) times the error of the prediction that `config.parametrisation` names, like z: the gradient that SDS puts on z."""
    factor = SCALES[config.parametrisation](sigma) * WEIGHTS[config.weight](sigma)
    g = levels(factor, z) * direction(teacher, z, sigma, eps, audio, image, config)
    if config.clip:
        size = g.flatten(1).square().mean(1).sqrt().view_as(factor).clamp_min(1e-12)
        g = g * levels((config.clip / size).clamp(max=1), z)
    return g


def video_sds_loss(
    teacher: Teacher, frames: Tensor, audio, image, config: SDS | None = None, *, sigma=None, eps=None, progress: float = 0.0,
    generator: torch.Generator | None = None, share: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Eq. 2 as a loss: 1/2 mean (z - target)^2 with target = z - g detached, whose gradient by z is g / (entries of z).

    The teacher itself is not differentiated (as Poole et al. 2023 do), its encoder is: dI~/dPhi of Eq. 2 contains it. The value
    says how far the teacher wants to go, not how good the frames are; do not expect it to fall.

    Args: frames (B, T, H, W, 3) in [0, 1]; audio, image: whatever the teacher takes for B clips; sigma (B,) and eps like z, both
        drawn if not given, eps `config.draws` times; progress: how much of the training is over, 0..1; generator: on the CPU;
        share (B,): how much each clip counts.
    """
    config = config or SDS()
    z = teacher.encode(frames)
    g, draws = torch.zeros_like(z), 1 if eps is not None else config.draws
    for _ in range(draws):
        level = noise_level(config, torch.rand(len(z), generator=generator), progress) if sigma is None else sigma
        noise = torch.randn(z.shape, generator=generator).to(z) if eps is None else eps
        g = g + sds_gradient(teacher, z.detach(), level.to(z), noise, audio, image, config)
    if share is not None:
        g = g * levels(share.to(z), z)
    return 0.5 * (z - (z - g / draws).detach()).square().mean()


def track_loss(pixels: Tensor, tracks: Tensor, visible: Tensor, size: int, robust: bool = False) -> Tensor:
    """Eq. 3 of seen particles: squared, or robust (L1, as Shape of Motion), brought to the strength of the squared one.

    pixels, tracks (..., P, 2) px, visible (..., P) bool, size px: the longer side of the pictures.
    """
    return (ROBUST if robust else 1.0) * trajectory_loss(pixels, tracks, visible, size, robust)
