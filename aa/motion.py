"""Sound to particle motion by diffusion (Sec. 3.2, Eq. 1): a Transformer for the whole body, then a refiner for face and hands.

The diffusion Transformer sees [X^tau, A] with FiLM on tau and predicts the clean X^0. Frames that are already known (the end of the
previous window) enter clean and marked, so that long recordings are continued window by window at constant memory.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from aa.body import ASSETS
from aa.embedding import Embedding, EmbeddingConfig, Temporal
from aa.parts import PARTS, Basis
from aa.transfer import Deformation

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


def continued(x0: Tensor, known: int, latents: dict[str, int]) -> Tensor:
    """x0_hat (B, W, D) made to go on from its given frames without a step: body and hands set out with the last velocity, halved,
    and come round to the prediction within JOIN frames; the face within two, since lips must be in time."""
    last, speed = x0[:, known - 1], 0.5 * (x0[:, known - 1] - x0[:, known - 2])
    step = last + speed - x0[:, known]
    frames = torch.arange(1, x0.shape[1] - known + 1, device=x0.device)[:, None]
    length = torch.cat([torch.full((n,), JOIN[p], device=x0.device) for p, n in latents.items()])
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


class MotionModel(nn.Module):
    """Everything between sound and dG: embedding, diffusion Transformer, refiner and the particle basis."""

    def __init__(self, basis: Basis, config: MotionConfig | None = None, embedding: EmbeddingConfig | None = None):
        super().__init__()
        self.config, self.basis = config or MotionConfig(), basis
        self.embedding = Embedding(embedding, basis.sizes)
        latents = self.embedding.config.latents
        self.dit = MotionDiT(sum(latents.values()), self.config, self.embedding.config)
        self.refiner = Refiner(latents, self.config, self.config.width)
        self.register_buffer("scale", torch.ones(sum(latents.values())))  # one number per part: latents of order one
        self.register_buffer("sound_mean", torch.zeros(self.embedding.config.features))
        self.register_buffer("sound_std", torch.ones(self.embedding.config.features))

    @property
    def device(self) -> torch.device:
        return self.scale.device

    def hear(self, sound: Tensor) -> Tensor:
        """Features (B, T, F) -> what the diffusion model is given, (B, T, width)."""
        sound = (sound - self.sound_mean) / self.sound_std
        return self.dit.condition(self.embedding.audio(sound), sound)

    def to_latents(self, motion: Deformation) -> Tensor:
        """dG (T, V, 3) -> normalised latents (T, D), those that the diffusion model works on."""
        return self.embedding.encode(self.basis, motion) / self.scale

    def to_motion(self, x: Tensor) -> Deformation:
        """Normalised latents (T, D) -> dG (T, V, 3)."""
        return self.embedding.decode(self.basis, x * self.scale)

    @torch.no_grad()
    def generate(self, audio, seed: int = 0, guidance: float | dict = 1.4, steps: int = 6, frames=None) -> Deformation:
        """Motion dG (T, V, 3) for sound (n,) float32 at 16 kHz, T = round(25 n / 16000); see `stream`."""
        chunks = list(self.stream(audio, seed, guidance, steps, frames))
        return Deformation(torch.cat([c.means for c in chunks]), torch.cat([c.rotvecs for c in chunks]))

    @torch.no_grad()
    def stream(self, audio, seed=0, guidance=1.4, steps=6, frames=None, chunk: int = 60) -> Iterator[Deformation]:
        """As `generate`, in pieces of at most `chunk` frames, so that memory does not grow with the recording.

        Args: guidance: how far body and hands are pushed from "any motion" to "motion for this sound" (1 is none); the face is
            not pushed; steps: of DDIM; the same seed gives the same motion.
        """
        for x in self.stream_latents(audio, seed, guidance, steps, frames):
            for piece in x.split(chunk):
                yield self.to_motion(piece)

    @torch.no_grad()
    def stream_latents(self, audio, seed=0, guidance=1.4, steps=6, frames=None) -> Iterator[Tensor]:
        """Normalised latents (n, D) window by window, starting at rest."""
        from aa.audio import features

        c = self.config
        sound = torch.from_numpy(features(audio, frames, self.embedding.config.sound)).to(self.device)
        T, hop = len(sound), c.window - c.known - c.margin
        # Before the start the body is at rest and all is silent; behind the end there is silence too.
        sound = F.pad(sound, (0, 0, c.known, c.window))
        generator = torch.Generator().manual_seed(seed)
        pace, push = noise_scheduler(c), self._guidance(guidance)
        pace.set_timesteps(steps)
        x_known = torch.zeros(1, c.known, len(self.scale), device=self.device)
        context = 32  # frames of sound to each side that the convolutions look at
        for start in range(0, T, hop):
            lo = max(0, start - context)
            heard = self.hear(sound[None, lo : start + c.window + context])[:, start - lo :][:, : c.window]
            noise = torch.randn(1, c.window, len(self.scale), generator=generator).to(self.device)
            x = self._sample(noise, heard, x_known, push, pace)
            t = torch.arange(start - c.known, start - c.known + c.window, device=self.device)
            refined = steady(self.refiner(x, heard, t[None].clamp_min(0)), self.embedding.config.latents)
            x_known = x[:, hop : hop + c.known]
            yield refined[0, c.known : c.known + min(hop, T - start)]

    def _guidance(self, guidance) -> Tensor:
        """(D,) push per latent: a number is for body and hands, the face keeps to 1; or a dict by part."""
        by_part = guidance if isinstance(guidance, dict) else {"body": guidance, "hand": guidance}
        latents = self.embedding.config.latents
        return torch.cat([torch.full((latents[p],), float(by_part.get(p, 1.0))) for p in PARTS]).to(self.device)

    def _sample(self, noise: Tensor, heard: Tensor, x_known: Tensor, push: Tensor, pace) -> Tensor:
        """DDIM from noise (1, W, D) with the first frames given by x_known (1, k, D)."""
        W, k = noise.shape[1], x_known.shape[1]
        known = (torch.arange(W, device=self.device) < k)[None]
        x_known, x = F.pad(x_known, (0, 0, 0, W - k)), noise
        both = torch.cat([heard, self.dit.silence.expand_as(heard)])
        for tau in pace.timesteps:
            tau2 = tau.expand(2).to(self.device)
            x0, free = self.dit(x.expand(2, -1, -1), both, tau2, known.expand(2, -1), x_known.expand(2, -1, -1)).chunk(2)
            x0 = torch.where(known[..., None], x_known, free + push * (x0 - free))
            x0 = continued(x0, k, self.embedding.config.latents)
            x = pace.step(x0, tau, x).prev_sample
        return torch.where(known[..., None], x_known, x)

    def save(self, path, facts: dict | None = None) -> None:
        """Write weights (half precision), basis and sizes to `path`, and `facts` about the training beside it as .json."""
        from safetensors.torch import save_file

        from aa.media import replacing, save_json

        tensors = {f"net.{k}": v.detach().cpu().half() for k, v in self.state_dict().items()}
        tensors |= {f"basis.{k}": v for k, v in self.basis.tensors().items()}
        meta = {"motion": self.config.as_dict(), "embedding": self.embedding.config.as_dict()}
        with replacing(path) as part:
            save_file(tensors, part, {"config": json.dumps(meta)})
        if facts is not None:
            save_json(Path(path).with_suffix(".json"), facts)

    @classmethod
    def load(cls, path=None, device="cpu") -> "MotionModel":
        """The shipped model (assets/motion.safetensors), or one that `save` wrote; ready to generate."""
        with safe_open(path or ASSETS / "motion.safetensors", "pt", device=str(device)) as f:
            meta = json.loads(f.metadata()["config"])
            t = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        basis = Basis.from_tensors({k[6:]: v for k, v in t.items() if k.startswith("basis.")})
        model = cls(basis, MotionConfig(**meta["motion"]), EmbeddingConfig(**{"sound": "mel", **meta["embedding"]})).to(device)
        model.load_state_dict({k[4:]: v.float() for k, v in t.items() if k.startswith("net.")})
        return model.eval()
