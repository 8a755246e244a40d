"""A space that sound and particle motion share (Sec. 3.1, Fig. 3): encoders, decoder, frame and patch contrastive losses.

E_X reads dG through the linear particle embedding of `aa.parts` and gives x_t = {body, face, hand}; the audio encoder gives a_t; an
MLP decodes x_t. The paper trains by contrast alone and leaves the decoder without a loss: reconstruction is added here.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aa.audio import feature_dim
from aa.parts import COMPONENTS, PARTS, Basis
from aa.transfer import Deformation

PATCH = 5  # frames per patch, stride 1
NEAR = 2  # frames this close to the positive are no negatives


@dataclass(frozen=True)
class EmbeddingConfig:
    """Sizes and loss weights of the embedding."""

    body: int = 32  # latents of each part
    face: int = 32
    hand: int = 20
    width: int = 128  # a_t and hidden layers
    shared: int = 64  # dimensions in which cosines are taken
    frame_weight: float = 0.1  # 0: without contrast per frame
    patch_weight: float = 0.1  # 0: without contrast per patch (Table 2)
    kernel: int = 5  # frames that E_X and each audio layer look at
    sound: str = "phones"  # kind of sound features, see `aa.audio.features`
    features: int | None = None  # and how many there are; None asks the kind

    def __post_init__(self):
        if self.features is None:
            object.__setattr__(self, "features", feature_dim(self.sound))

    @property
    def latents(self) -> dict[str, int]:
        return {"body": self.body, "face": self.face, "hand": self.hand}

    def as_dict(self) -> dict:
        return asdict(self)


class Temporal(nn.Module):
    """Residual block over time: LayerNorm, convolution, GELU, linear. (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int, kernel: int, dilation: int = 1):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, kernel, padding=dilation * (kernel // 2), dilation=dilation)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.out(F.gelu(self.conv(self.norm(h).transpose(1, 2)).transpose(1, 2)))


class PartEncoder(nn.Module):
    """Coordinates of one part (B, T, k) -> its latents (B, T, d). The first PCA directions pass straight; a convolution, zero at
    the start, adds what they miss."""

    def __init__(self, size: int, latents: int, width: int, kernel: int):
        super().__init__()
        self.skip = nn.Linear(size, latents, bias=False)
        self.skip.weight.data = torch.eye(latents, size)
        self.enter = nn.Conv1d(size, width, kernel, padding=kernel // 2)
        self.leave = _zero(nn.Linear(width, latents))

    def forward(self, coordinates: Tensor) -> Tensor:
        h = self.enter(coordinates.transpose(1, 2)).transpose(1, 2)
        return self.skip(coordinates) + self.leave(F.gelu(h))


class PartDecoder(nn.Module):
    """Latents of one part (..., d) -> its coordinates (..., k), frame by frame: linear skip, the transpose of the encoder's, plus
    an MLP from zero. No bias: latents of zero are the body at rest."""

    def __init__(self, size: int, latents: int, width: int):
        super().__init__()
        self.skip = nn.Linear(latents, size, bias=False)
        self.skip.weight.data = torch.eye(size, latents)
        self.mlp = nn.Sequential(nn.Linear(latents, width, bias=False), nn.GELU(), _zero(nn.Linear(width, size, bias=False)))

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.mlp(x)


class PerPart(nn.Module):
    """One module for each part, on its own columns: a quick mouth must not shake the arms."""

    def __init__(self, modules: dict[str, nn.Module], columns: list[int]):
        super().__init__()
        self.of, self.columns = nn.ModuleList(modules[p] for p in PARTS), columns

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([f(x) for f, x in zip(self.of, h.split(self.columns, -1))], -1)


def motion_encoder(sizes: dict[str, int], config: EmbeddingConfig) -> PerPart:
    """E_X: coordinates of dG (B, T, K) -> latents x (B, T, D)."""
    one = {p: PartEncoder(sizes[p], config.latents[p], config.width // 2, config.kernel) for p in PARTS}
    return PerPart(one, [sizes[p] for p in PARTS])


def motion_decoder(sizes: dict[str, int], config: EmbeddingConfig) -> PerPart:
    """Latents x (..., D) -> coordinates (..., K)."""
    one = {p: PartDecoder(sizes[p], config.latents[p], config.width) for p in PARTS}
    return PerPart(one, [config.latents[p] for p in PARTS])


class AudioEncoder(nn.Module):
    """Sound features (B, T, F) -> a (B, T, width): dilated convolutions that see 0.6 s to each side."""

    def __init__(self, config: EmbeddingConfig):
        super().__init__()
        self.enter = nn.Linear(config.features, config.width)
        self.blocks = nn.Sequential(*[Temporal(config.width, config.kernel, d) for d in (1, 2, 4)])
        self.norm = nn.LayerNorm(config.width)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.blocks(self.enter(features)))


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Embedding(nn.Module):
    """E_X, decoder, audio encoder, and the two heads that lead into the shared space."""

    def __init__(self, config: EmbeddingConfig | None = None, sizes: dict[str, int] | None = None):
        super().__init__()
        self.config, self.sizes = config or EmbeddingConfig(), sizes or dict(COMPONENTS)
        self.encoder, self.decoder = motion_encoder(self.sizes, self.config), motion_decoder(self.sizes, self.config)
        self.audio = AudioEncoder(self.config)
        D, w, s = sum(self.config.latents.values()), self.config.width, self.config.shared
        self.motion_head = nn.Sequential(nn.Linear(D, w), nn.GELU(), nn.Linear(w, s))
        self.audio_head = nn.Linear(w, s)
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())

    @property
    def logit_scale(self) -> Tensor:
        """1 / temperature, at most 100 as in CLIP."""
        return (-self.log_temperature).exp().clamp(max=100)

    def shared(self, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, T, S) of latents and of sound in the space where cosines are taken."""
        return F.normalize(self.motion_head(x), dim=-1), F.normalize(self.audio_head(a), dim=-1)

    def encode(self, basis: Basis, motion: Deformation) -> Tensor:
        """x = E_X(dG): dG (T, V, 3) -> latents (T, D)."""
        return self.encoder(basis.encode(motion)[None])[0]

    def decode(self, basis: Basis, x: Tensor) -> Deformation:
        """Latents (T, D) -> dG (T, V, 3)."""
        return basis.decode(self.decoder(x))


def negatives_allowed(clip: Tensor, frame: Tensor, silent: Tensor, near: int = NEAR) -> Tensor:
    """(N, N) mask: True on the diagonal (positives) and where frame j may serve as a negative of frame i.

    Frames of the same clip within `near` frames look alike, and so does all silence: they would be false negatives.
    """
    close = (clip[:, None] == clip[None]) & ((frame[:, None] - frame[None]).abs() <= near)
    both_silent = silent[:, None] & silent[None]
    return ~(close | both_silent) | torch.eye(len(clip), dtype=torch.bool, device=clip.device)


def info_nce(x: Tensor, a: Tensor, scale: Tensor | float, allowed: Tensor) -> Tensor:
    """Symmetric InfoNCE of unit vectors x, a (N, S): -log softmax over scale * <x_i, a_j>, averaged over both directions."""
    logits = (scale * x @ a.T).masked_fill(~allowed, float("-inf"))
    target = torch.arange(len(x), device=x.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def patches(h: Tensor, size: int = PATCH) -> Tensor:
    """Mean over sliding windows of `size` frames, stride 1, and unit length again: (B, T, S) -> (B, T - size + 1, S)."""
    return F.normalize(F.avg_pool1d(h.transpose(1, 2), size, stride=1).transpose(1, 2), dim=-1)


def contrastive(x: Tensor, a: Tensor, silent: Tensor, scale, frames: int = 384, generator=None) -> tuple[Tensor, Tensor]:
    """Frame and patch InfoNCE of a batch of windows, on a random choice of `frames` of them.

    Args: x, a (B, T, S) unit vectors; silent (B, T). A patch is silent if all of it is; near patches are no negatives either.
    """
    out = []
    quiet_patch = F.avg_pool1d(silent.float(), PATCH, stride=1) > 0.999
    for h, g, quiet in ((x, a, silent), (patches(x), patches(a), quiet_patch)):
        B, T = quiet.shape
        pick = torch.randperm(B * T, generator=generator)[:frames].to(h.device)
        allowed = negatives_allowed(pick // T, pick % T, quiet.flatten()[pick])
        out.append(info_nce(h.flatten(0, 1)[pick], g.flatten(0, 1)[pick], scale, allowed))
    return out[0], out[1]


def embedding_losses(model: Embedding, coordinates: Tensor, sound: Tensor, silent: Tensor, generator=None) -> dict[str, Tensor]:
    """All terms for a batch: coordinates (B, T, K), features (B, T, F), silent (B, T).

    The bases are orthonormal in a metric that weights lips, eyelids and fingers, so the squared error of coordinates is that of
    weighted vertices.
    """
    x, a = model.encoder(coordinates), model.audio(sound)
    error = (model.decoder(x) - coordinates).square()
    reconstruction = sum(e.sum(-1).mean() for e in error.split(list(model.sizes.values()), -1))
    frame, patch = contrastive(*model.shared(x, a), silent, model.logit_scale, generator=generator)
    total = reconstruction + model.config.frame_weight * frame + model.config.patch_weight * patch
    return {"total": total, "reconstruction": reconstruction, "frame": frame, "patch": patch}


@torch.no_grad()
def recall(model: Embedding, coordinates: Tensor, sound: Tensor, silent: Tensor) -> dict[str, float]:
    """Retrieval among all sounding frames (patches) of clips (B, T, ...): how often the sound nearest to a motion is its own.

    Frames within NEAR of the right one count neither for nor against. Chance is 1 / candidates.
    """
    x, a = model.shared(model.encoder(coordinates), model.audio(sound))
    out = {}
    for name, h, g in (("frame", x, a), ("patch", patches(x), patches(a))):
        quiet = silent if name == "frame" else F.avg_pool1d(silent.float(), PATCH, stride=1) > 0.5
        pick = (~quiet).flatten().nonzero()[:, 0]
        T = quiet.shape[1]
        allowed = negatives_allowed(pick // T, pick % T, quiet.flatten()[pick])
        logits = (h.flatten(0, 1)[pick] @ g.flatten(0, 1)[pick].T).masked_fill(~allowed, -2)
        out[f"recall1_{name}"] = float((logits.argmax(1) == torch.arange(len(pick), device=pick.device)).float().mean())
        out[f"recall1_{name}_chance"] = float((1 / allowed.sum(1)).mean())
    return out
