"""Training of the embedding, the diffusion Transformer and the refiner, and the recipe of the shipped model."""

import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from aa.audio import N_MELS, feature_dim
from aa.embedding import Embedding, EmbeddingConfig, embedding_losses
from aa.media import replacing
from aa.motion import MotionConfig, MotionModel, noise_scheduler
from aa.motion_data import Stage, learn_basis, make_clips, recipes
from aa.parts import PARTS, Basis
from aa.visemes import LIP_LOWER, LIP_UPPER, SKULL_FRONT, SKULL_TOP, UPPER_TEETH

BASIS_CLIPS = 40
RAMP = {"body": 15, "face": 4, "hand": 15}  # frames in which a clip leaves the rest it is joined to


def prepare(clips: int, seed: int = 0, folder=None, progress: bool = False) -> tuple[Stage, Basis, list[dict]]:
    """Stage, basis and training clips; `folder` keeps them for the next time."""
    from aa.body import load_body

    stage, chosen = Stage(load_body()), recipes(clips, seed)
    path = None if folder is None else Path(folder) / "basis.safetensors"
    if path is not None and path.exists():
        basis = Basis.from_tensors(load_file(path))
    else:
        basis = learn_basis(stage, chosen[:BASIS_CLIPS])
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                save_file(basis.tensors(), part)
    return stage, basis, make_clips(stage, basis, chosen, None if folder is None else Path(folder) / "clips", progress)


class Clips:
    """Clips as one batch source: each begins with `known` frames at rest and silent, as generation does."""

    def __init__(self, clips: list[dict], sizes: dict[str, int], config: MotionConfig, device="cpu"):
        self.window, self.device = config.window, device
        self.coordinates, self.features, self.silent = [], [], []
        for clip in clips:
            c = clip["coordinates"].clone()
            for part, at in zip(PARTS, c.split(list(sizes.values()), -1)):
                n = min(RAMP[part], len(at))
                at[:n] *= torch.linspace(0, 1, n + 1)[1:, None].pow(2)
            short = max(0, self.window - config.known - len(c))
            pad = lambda x, before, after=short: F.pad(x, (0, 0, before, after))  # noqa: E731
            self.coordinates.append(pad(c, config.known))
            self.features.append(pad(clip["features"].float(), config.known))
            self.silent.append(F.pad(clip["silent"], (config.known, short), value=True))

    def batch(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates (B, W, K), features (B, W, F) of a random take, silent (B, W) of random windows."""
        out = []
        for n in rng.integers(len(self.coordinates), size=size):
            start = int(rng.integers(-self.window // 4, len(self.coordinates[n]) - self.window + 1))
            at = slice(max(start, 0), max(start, 0) + self.window)  # beginnings are drawn more often
            take = int(rng.integers(len(self.features[n])))
            out.append((self.coordinates[n][at], disturbed(self.features[n][take, at], rng), self.silent[n][at]))
        return tuple(torch.stack(x).to(self.device) for x in zip(*out))

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (F,) of the features; bands that hardly vary are not blown up."""
        x = torch.cat([f.flatten(0, 1) for f in self.features])
        return x.mean(0), x.std(0).clamp_min(0.1)


def disturbed(f: Tensor, rng: np.random.Generator) -> Tensor:
    """Features (T, F) of another voice and microphone: mel bands moved by up to two, tilted, coloured, noisy; silence stays zero.

    Cheap augmentation on top of `aa.audio.augment`: without it, clips are learned by heart.
    """
    if f.shape[1] != feature_dim("mel"):
        return f
    mel = f[:, : 4 * N_MELS].unflatten(1, (4, N_MELS))
    move = float(rng.uniform(-2, 2))
    low = int(np.floor(move))
    shift = lambda k: F.pad(mel, (2, 3), mode="replicate")[..., 2 + k : 2 + k + N_MELS]  # noqa: E731
    mel = (low + 1 - move) * shift(low) + (move - low) * shift(low + 1)
    at = torch.linspace(-1, 1, N_MELS)
    colour = rng.normal() * 0.1 * at + 0.08 * rng.normal() * torch.cos(np.pi * at * rng.uniform(0.5, 3) + rng.uniform(0, 6.28))
    noise = 0.03 * torch.from_numpy(rng.standard_normal(mel.shape).astype(np.float32))
    mel = torch.where(mel > 0.05, mel + colour + 0.05 * rng.normal() + noise, mel).clamp_min(0)
    rest = f[:, 4 * N_MELS :] * torch.tensor([1.0, 1.0, float(rng.uniform(0.5, 1.3))])  # pitch range differs between people
    return torch.cat([mel.flatten(1), rest], 1)


def optimise(parameters, loss, steps: int, rate: float, every: int = 0, after=lambda: None) -> list[dict[str, float]]:
    """AdamW with warm-up and cosine decay on `loss()` -> {"total": ..., ...}; the history of losses. `every` prints."""
    parameters = list(parameters)
    adam = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    pace = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda n: min(1, (n + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * n / max(steps, 1))))
    )
    history = []
    for n in range(steps):
        terms = loss()
        adam.zero_grad()
        terms["total"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        pace.step()
        after()
        history.append({k: float(v.detach()) for k, v in terms.items()})
        if every and (n + 1) % every == 0:
            recent = history[-every:]
            print(n + 1, {k: round(float(np.mean([h[k] for h in recent])), 4) for k in recent[0]}, flush=True)
    return history


def train_embedding(model: Embedding, clips: Clips, steps: int, seed: int = 0, batch: int = 16, rate: float = 1e-3, every=0,
                    normalise=None) -> list[dict[str, float]]:  # fmt: skip
    """Reconstruction and contrast (Sec. 3.1). `normalise`: (mean, std) of the features."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    mean, std = normalise or clips.statistics()

    def loss():
        c, f, silent = clips.batch(batch, rng)
        return embedding_losses(model, c, (f - mean) / std, silent, generator)

    return optimise(model.parameters(), loss, steps, rate, every)


def noised(x0: Tensor, tau: Tensor, alpha_bar: Tensor, noise: Tensor) -> Tensor:
    """X^tau = sqrt(alpha_bar) X^0 + sqrt(1 - alpha_bar) noise; x0, noise (B, T, D), tau (B,)."""
    a = alpha_bar[tau][:, None, None]
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def known_frames(batch: int, window: int, known: int, rng: np.random.Generator) -> Tensor:
    """(B, T) bool: mostly the first `known` frames, sometimes none or fewer."""
    n = np.where(rng.random(batch) < 0.8, known, rng.integers(0, known, batch))
    return torch.arange(window)[None] < torch.as_tensor(n)[:, None]


def motion_loss(x0_hat: Tensor, x0: Tensor, weight: Tensor, known: Tensor, velocity: float = 2.0) -> dict[str, Tensor]:
    """L_simple on clean latents and on their first differences; frames that were given do not count. weight (D,)."""
    free = (~known)[..., None].float()
    x0_hat = torch.where(known[..., None], x0, x0_hat)  # so that the step out of the given frames counts
    simple = ((x0_hat - x0).square() * weight * free).sum(-1).mean()
    speed = ((x0_hat - x0).diff(dim=1).square() * weight * free[:, 1:]).sum(-1).mean()
    return {"total": simple + velocity * speed, "simple": simple, "velocity": speed}


class DiffusionBatch:
    """Draws what one training step of the diffusion model needs."""

    def __init__(self, model: MotionModel, clips: Clips, seed: int, batch: int):
        self.model, self.clips, self.batch = model, clips, batch
        self.rng, self.generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        self.alpha_bar = noise_scheduler(model.config).alphas_cumprod.to(model.device)
        latents = model.embedding.config.latents
        # The mouth is what sound tells most about, and its errors are seen first.
        emphasis = {"body": 1.0, "face": 4.0, "hand": 1.0}
        self.weight = torch.cat([torch.full((latents[p],), emphasis[p] / latents[p]) for p in PARTS]).to(model.device)
        self.lips = lip_reader(model.basis)

    def loss(self, x0_hat: Tensor, x0: Tensor, known: Tensor) -> dict[str, Tensor]:
        """L_simple, velocity and lips."""
        terms = motion_loss(x0_hat, x0, self.weight, known)
        lips = lip_loss(self.model, self.lips, x0_hat, x0)
        return {**terms, "total": terms["total"] + 0.3 * lips, "lips": lips}

    def draw(self, lowest: float = 0.0):
        """x0 (B, T, D), heard (B, T, w), tau (B,), known (B, T), x_tau. `lowest`: smallest tau as a share of T."""
        m, c = self.model, self.model.config
        coordinates, f, _ = self.clips.batch(self.batch, self.rng)
        with torch.no_grad():
            x0 = m.embedding.encoder(coordinates) / m.scale
            sound = (f - m.sound_mean) / m.sound_std
            a = m.embedding.audio(sound)
        heard = m.dit.condition(a, sound)
        gone = (torch.rand(self.batch, 1, 1, generator=self.generator) < c.drop).to(heard.device)
        heard = torch.where(gone, m.dit.silence, heard)
        tau = torch.randint(int(lowest * c.timesteps), c.timesteps, (self.batch,), generator=self.generator).to(m.device)
        noise = torch.randn(x0.shape, generator=self.generator).to(m.device)
        known = known_frames(self.batch, c.window, c.known, self.rng).to(m.device)
        return x0, heard, tau, known, noised(x0, tau, self.alpha_bar, noise)


def lip_reader(basis: Basis) -> Tensor:
    """Opening of the lips in mm as a linear function (K,) of coordinates: the lower lip's way down, along the head's vertical."""
    top, front, teeth = basis.parts.rest[[SKULL_TOP, SKULL_FRONT, UPPER_TEETH]]
    back = F.normalize(top - front, dim=0)  # as in `aa.visemes.lip_aperture`
    up = F.normalize(top - teeth - ((top - teeth) @ back) * back, dim=0)
    a, b = ((basis.parts.face == v).nonzero()[0, 0] for v in (LIP_UPPER, LIP_LOWER))
    face = 1000 * (basis.rows["face"][:, a] - basis.rows["face"][:, b]) @ up
    return F.pad(face, (basis.sizes["body"], basis.sizes["hand"]))


def lip_loss(model: MotionModel, reader: Tensor, x0_hat: Tensor, x0: Tensor) -> Tensor:
    """Squared error of the lips' opening in units of 4 mm, closed lips counted five times: p, b and m need them."""
    there = model.embedding.decoder(x0 * model.scale) @ reader
    made = model.embedding.decoder(x0_hat * model.scale) @ reader
    return (((made - there) / 4).square() * (1 + 4 * (there < 1.0))).mean()


class Average:
    """Exponential moving average of a module's parameters (EMA), warmed up."""

    def __init__(self, module: torch.nn.Module, decay: float = 0.997):
        self.module, self.decay, self.count = module, decay, 0
        self.mean = {k: v.detach().clone() for k, v in module.state_dict().items()}

    def update(self) -> None:
        self.count += 1
        keep = min(self.decay, (1 + self.count) / (10 + self.count))
        for k, v in self.module.state_dict().items():
            self.mean[k].lerp_(v.detach(), 1 - keep)

    def load(self) -> None:
        """Put the mean into the module."""
        self.module.load_state_dict(self.mean)


def train_diffusion(model: MotionModel, clips: Clips, steps: int, seed: int = 0, batch: int = 16, rate: float = 1e-3, every=0):
    """Eq. 1: x0-prediction at random tau, L_simple and velocity; sound is dropped now and then for guidance; EMA at the end."""
    source, mean = DiffusionBatch(model, clips, seed, batch), Average(model.dit)

    def loss():
        x0, heard, tau, known, x_tau = source.draw()
        return source.loss(model.dit(x_tau, heard, tau, known, x0), x0, known)

    history = optimise(model.dit.parameters(), loss, steps, rate, every, mean.update)
    mean.load()
    return history


def train_refiner(model: MotionModel, clips: Clips, steps: int, seed: int = 0, batch: int = 16, rate: float = 1e-3, every=0):
    """The refiner on x0_hat of noised truth (tau > T/4): on free samples it would learn the mean of all motions."""
    source = DiffusionBatch(model, clips, seed + 1, batch)
    first = np.random.default_rng(seed)

    def loss():
        with torch.no_grad():
            x0, heard, tau, known, x_tau = source.draw(lowest=0.25)
            x0_hat = torch.where(known[..., None], x0, model.dit(x_tau, heard, tau, known, x0))
        t = torch.as_tensor(first.integers(0, 2000, (batch, 1))).to(x0.device) + torch.arange(x0.shape[1], device=x0.device)
        return source.loss(model.refiner(x0_hat, heard, t), x0, known)

    return optimise(model.refiner.parameters(), loss, steps, rate, every)


def set_scales(model: MotionModel, clips: Clips) -> None:
    """One scale per part, and the statistics of the features, from the clips."""
    mean, std = clips.statistics()
    model.sound_mean.copy_(mean)
    model.sound_std.copy_(std)
    with torch.no_grad():
        x = torch.cat([model.embedding.encoder(c[None].to(model.device))[0] for c in clips.coordinates])
    sizes = list(model.embedding.config.latents.values())
    # The deviation of the strongest of its latents: order one, and rest stays zero.
    model.scale.copy_(torch.cat([p.std(0).max().expand(n) for p, n in zip(x.split(sizes, -1), sizes)]))


def make_motion_model(clips, embedding_steps, steps, refiner_steps, seed, folder, out, device="cpu", every=100) -> MotionModel:
    """The shipped model from nothing: data, embedding, diffusion, refiner; times and facts beside it."""
    watch, seconds = time.perf_counter(), {}
    torch.manual_seed(seed)

    def lap(name):
        nonlocal watch
        seconds[name] = round(time.perf_counter() - watch, 1)
        watch = time.perf_counter()
        print(f"{name}: {seconds[name]} s", flush=True)

    _, basis, made = prepare(clips, seed, folder)
    lap("data")
    model = MotionModel(basis.to(device), MotionConfig(), EmbeddingConfig()).to(device)
    source = Clips(made, basis.sizes, model.config, device)
    train_embedding(model.embedding, source, embedding_steps, seed, every=every)
    set_scales(model, source)
    lap("embedding")
    train_diffusion(model, source, steps, seed, every=every)
    lap("diffusion")
    train_refiner(model, source, refiner_steps, seed, every=every)
    lap("refiner")
    frames = sum(len(c["coordinates"]) for c in made)
    asked = {"clips": clips, "embedding_steps": embedding_steps, "steps": steps, "refiner_steps": refiner_steps, "seed": seed}
    model.eval().save(out, {"recipe": asked, "seconds": seconds, "frames": frames, "minutes_of_motion": round(frames / 1500, 1)})
    return model
