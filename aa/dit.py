"""The two networks of Sec. 3.2: a diffusion Transformer for the whole body (Eq. 1) and a refiner for face and hands."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aa.embedding import EmbeddingConfig, Temporal

JOIN = {"body": 20, "face": 2, "hand": 12}  # frames in which a window leaves the course of the one before


@dataclass(frozen=True)
class MotionConfig:
    """Sizes of the diffusion model and of its windows."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    refiner_width: int = 96
    refiner_layers: int = 2
    timesteps: int = 1000  # T of the cosine schedule
    drop: float = 0.1  # share of training examples without sound, for guidance
    window: int = 80  # frames per window
    known: int = 12  # frames a window takes over from the one before
    margin: int = 8  # last frames of a window, lacking what comes after, that are thrown away
    embedded: bool = True  # False: without the embedding of Sec. 3.1, on PCA coordinates and raw features (Table 2)
    refine: bool = True  # False: without the refiner (Table 2)
    regression: bool = False  # True: a baseline that draws nothing: X^0 from A alone, by least squares

    def as_dict(self) -> dict:
        return asdict(self)


def time_embedding(t: Tensor, width: int, period: float = 10_000) -> Tensor:
    """Sines and cosines (..., width) of a step or frame index (...,), as in Vaswani et al. 2017."""
    rate = torch.exp(-math.log(period) * torch.arange(width // 2, device=t.device) / (width // 2))
    angle = t[..., None].float() * rate
    return torch.cat([angle.cos(), angle.sin()], -1)


class FiLM(nn.Module):
    """LN(h) (1 + scale) + shift with scale, shift = Linear(SiLU(embedding)), zero at the start (Perez et al. 2018)."""

    def __init__(self, width: int, condition: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(condition, 2 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(F.silu(condition)).chunk(2, -1)
        return self.norm(h) * (1 + scale) + shift


class Block(nn.Module):
    """Attention biased towards near frames, then an MLP, both behind FiLM. (B, T, C), condition (B, 1 or T, E)."""

    def __init__(self, width: int, heads: int, condition: int):
        super().__init__()
        self.heads = heads
        self.film1, self.film2 = FiLM(width, condition), FiLM(width, condition)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        # Slopes as in ALiBi (Press et al. 2022): some heads look a few frames around, others see the whole window.
        self.register_buffer("slope", 2.0 ** -torch.linspace(0, 7, heads), persistent=False)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        B, T, C = h.shape
        q, k, v = self.qkv(self.film1(h, condition)).reshape(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        at = torch.arange(T, device=h.device)
        bias = -self.slope[:, None, None] * (at[:, None] - at[None]).abs()
        h = h + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q)).transpose(1, 2).reshape(B, T, C))
        return h + self.mlp(self.film2(h, condition))


class MotionDiT(nn.Module):
    """F of Eq. 1: X^0 = F(X^tau | A, tau)."""

    def __init__(self, latents: int, config: MotionConfig, embedding: EmbeddingConfig):
        super().__init__()
        w = config.width
        self.listen = nn.Linear(embedding.features + embedding.width, w)
        self.hear = nn.Sequential(*[Temporal(w, 5, d) for d in (1, 1, 2)])
        self.forget = nn.Dropout(0.2)  # A is learned from few clips: do not lean on it alone
        self.silence = nn.Parameter(torch.zeros(w))  # stands for "no sound given"
        self.enter = nn.Linear(2 * latents + 1 + w, w)
        self.step = nn.Sequential(nn.Linear(w, w), nn.SiLU(), nn.Linear(w, w))
        self.blocks = nn.ModuleList(Block(w, config.heads, w) for _ in range(config.layers))
        self.film = FiLM(w, w)
        self.leave = nn.Linear(w, latents)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.guess = nn.Linear(w, latents)  # for training only: what is heard must tell the mouth by itself

    def condition(self, a: Tensor, sound: Tensor) -> Tensor:
        """What is heard, (B, T, width), from A (B, T, width_a) and raw features (B, T, F): needed once per clip, not per step."""
        return self.hear(self.listen(torch.cat([self.forget(a), sound], -1)))

    def forward(self, x_tau: Tensor, heard: Tensor, tau: Tensor, known: Tensor, x_known: Tensor) -> Tensor:
        """x_tau (B, T, D); heard (B, T, width), of `condition` or `silence`; tau (B,) in 0..T-1; known (B, T) bool with clean
        latents x_known (B, T, D) there. Returns x0_hat (B, T, D)."""
        mark = known[..., None].to(x_tau)
        h = self.enter(torch.cat([x_tau * (1 - mark), x_known * mark, mark, heard], -1))
        e = self.step(time_embedding(tau, h.shape[-1]))[:, None]
        for block in self.blocks:
            h = block(h, e)
        return self.leave(self.film(h, e))


class Refiner(nn.Module):
    """Face and hand latents once more, with the frame index t in place of tau: a residual that starts at zero."""

    def __init__(self, latents: dict[str, int], config: MotionConfig, heard: int):
        """`heard`: columns of sound that it is given."""
        super().__init__()
        w = config.refiner_width
        self.skip, self.size = latents["body"], latents["face"] + latents["hand"]
        self.enter = nn.Linear(sum(latents.values()) + heard, w)
        self.index = nn.Sequential(nn.Linear(w, w), nn.SiLU(), nn.Linear(w, w))
        self.blocks = nn.ModuleList(Block(w, 4, w) for _ in range(config.refiner_layers))
        self.leave = nn.Linear(w, self.size)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, heard: Tensor, t: Tensor) -> Tensor:
        """x (B, T, D), heard (B, T, width), t (B, T) frame indices -> refined x (B, T, D); the body is left as it is."""
        h = self.enter(torch.cat([x, heard], -1))
        e = self.index(time_embedding(t, h.shape[-1]))
        for block in self.blocks:
            h = block(h, e)
        return x + F.pad(self.leave(h), (self.skip, 0))


def noise_scheduler(config: MotionConfig):
    """The cosine schedule of Nichol and Dhariwal 2021, predicting the clean sample, from diffusers."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=config.timesteps, beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False,
        timestep_spacing="trailing",
    )  # fmt: skip


def continued(x0: Tensor, known: int, latents: dict[str, int], join: dict[str, int] = JOIN) -> Tensor:
    """x0_hat (B, W, D) made to go on from its given frames without a step: body and hands set out with the last velocity, halved,
    and come round to the prediction within `join` frames; the face within two, since lips must be in time."""
    last, speed = x0[:, known - 1], 0.5 * (x0[:, known - 1] - x0[:, known - 2])
    step = last + speed - x0[:, known]
    frames = torch.arange(1, x0.shape[1] - known + 1, device=x0.device)[:, None]
    length = torch.cat([torch.full((n,), join[p], device=x0.device) for p, n in latents.items()])
    fade = 0.5 + 0.5 * torch.cos(torch.pi * ((frames - 1) / length).clamp(max=1))  # (W - known, D): 1 at the first free frame
    fade = torch.where(length < 4, (1 - frames / length).clamp_min(0), fade)
    return torch.cat([x0[:, :known], x0[:, known:] + step[:, None] * fade], 1)


def steady(x: Tensor, latents: dict[str, int]) -> Tensor:
    """Body and hands (B, T, D) smoothed by a Gaussian of one frame: takes off the tremble that few steps leave, while gestures,
    slower than 3 Hz, pass. The face is left as it is: lips close within one frame."""
    kernel = torch.exp(-0.5 * torch.arange(-3, 4, device=x.device) ** 2)
    columns = F.pad(x.transpose(1, 2).flatten(0, 1)[:, None], (3, 3), mode="replicate")
    smooth = F.conv1d(columns, (kernel / kernel.sum())[None, None])[:, 0].unflatten(0, (len(x), -1)).transpose(1, 2)
    face = slice(latents["body"], latents["body"] + latents["face"])
    return torch.cat([smooth[..., : face.start], x[..., face], smooth[..., face.stop :]], -1)
