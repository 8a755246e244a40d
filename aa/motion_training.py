"""What is learned, in this order: the shared space (Sec. 3.1), the diffusion Transformer (Eq. 1), the refiner (Sec. 3.2).

And the recipe of the shipped model, which is all three after another on performed clips.
"""

import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from aa.batches import Clips
from aa.dit import MotionConfig, noise_scheduler
from aa.embedding import Embedding, EmbeddingConfig, embedding_losses
from aa.media import replacing
from aa.motion import MotionModel, Sampler
from aa.motion_data import VOICES_TRAIN, VOICES_UNSEEN, Stage, learn_basis, make_clips, recipes
from aa.parts import PARTS, Basis
from aa.training import Objective, Run, train
from aa.visemes import LIP_LOWER, LIP_UPPER, SKULL_FRONT, SKULL_TOP, UPPER_TEETH

BASIS_CLIPS = 40
EMPHASIS = {"body": 1.0, "face": 4.0, "hand": 1.0}  # the mouth is what sound tells most about, and its errors are seen first
LIPS, LIPS_MM = 0.6, 4.0  # weight of the lips in the loss, and the error in mm that counts as one
SHUT, SHUT_MM = 4.0, 1.0  # how much more their opening counts where it is less than this
DEAF = 0.5  # share of the refiner's examples in which the diffusion model hears nothing


def prepare(clips: int, seed: int = 0, folder=None, progress: bool = False, sound: str = "phones", workers: int = 1):
    """Stage, basis and training clips; `folder` keeps them for the next time. `workers`: processes, see `make_clips`."""
    from aa.body import load_body

    stage, chosen = Stage(load_body()), recipes(clips, seed)
    path = None if folder is None else Path(folder) / "basis.safetensors"
    if path is None or not path.exists():
        basis = learn_basis(stage, chosen[:BASIS_CLIPS])
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                save_file(basis.tensors(), part)
    if path is not None:
        basis = Basis.from_tensors(load_file(path))
    place = None if folder is None else Path(folder) / "clips"
    return stage, basis, make_clips(stage, basis, chosen, place, progress, sound, workers)


# ---------------------------------------------------------------- the shared space


class EmbeddingObjective(Objective):
    """Reconstruction and contrast (Sec. 3.1)."""

    def __init__(self, model: Embedding, clips: Clips):
        super().__init__()
        self.trained, self.clips = model, clips
        self.register_buffer("mean", clips.mean)
        self.register_buffer("std", clips.std)

    def draw(self, rng, size):
        return self.clips.batch(size, rng)

    def forward(self, coordinates, sound, silent):
        return embedding_losses(self.trained, coordinates, (sound - self.mean) / self.std, silent)


def train_embedding(model: Embedding, clips: Clips, run: Run) -> dict[str, list[float]]:
    """Sec. 3.1; returns the curves of the losses."""
    return train(EmbeddingObjective(model, clips), run, "embedding")


@torch.no_grad()
def set_scales(model: MotionModel, clips: Clips) -> None:
    """One scale per part, and the statistics of the features, from the clips."""
    model.sound_mean.copy_(clips.mean)
    model.sound_std.copy_(clips.std)
    model.sound_rest.copy_(clips.rest)
    x = torch.cat([model.embedding.encoder(c[None].to(model.device))[0] for c in clips.coordinates])
    sizes = list(model.embedding.config.latents.values())
    # The deviation of the strongest of its latents: order one, and rest stays zero.
    model.scale.copy_(torch.cat([p.std(0).max().expand(n) for p, n in zip(x.split(sizes, -1), sizes)]))


# ---------------------------------------------------------------- diffusion


def noised(x0: Tensor, tau: Tensor, alpha_bar: Tensor, noise: Tensor) -> Tensor:
    """X^tau = sqrt(alpha_bar) X^0 + sqrt(1 - alpha_bar) noise; x0, noise (B, T, D), tau (B,)."""
    a = alpha_bar[tau][:, None, None]
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def known_frames(batch: int, window: int, known: int, rng: np.random.Generator) -> Tensor:
    """(B, T) bool, what is given: mostly the first `known` frames, sometimes fewer, often nearly all, as in live generation."""
    kind = rng.random(batch)
    some, most = rng.integers(0, known, batch), rng.integers(known, window - 8, batch)
    n = np.where(kind < 0.6, known, np.where(kind < 0.75, some, most))
    return torch.arange(window)[None] < torch.as_tensor(n)[:, None]


def motion_loss(x0_hat: Tensor, x0: Tensor, weight: Tensor, known: Tensor, velocity: float = 2.0, share=1.0) -> dict[str, Tensor]:
    """L_simple on latents (B, T, D) and on their first differences; given frames do not count. weight (D,), share (B, 1, 1)."""
    free = (~known)[..., None].float() * share
    x0_hat = torch.where(known[..., None], x0, x0_hat)  # so that the step out of the given frames counts
    simple = ((x0_hat - x0).square() * weight * free).sum(-1).mean()
    speed = ((x0_hat - x0).diff(dim=1).square() * weight * free[:, 1:]).sum(-1).mean()
    return {"total": simple + velocity * speed, "simple": simple, "velocity": speed}


def lip_reader(basis: Basis) -> Tensor:
    """Opening of the lips in mm as a linear function (K,) of coordinates: the lower lip's way down, along the head's vertical."""
    top, front, teeth = basis.parts.rest[[SKULL_TOP, SKULL_FRONT, UPPER_TEETH]]
    back = F.normalize(top - front, dim=0)  # as in `aa.visemes.lip_aperture`
    up = F.normalize(top - teeth - ((top - teeth) @ back) * back, dim=0)
    a, b = ((basis.parts.face == v).nonzero()[0, 0] for v in (LIP_UPPER, LIP_LOWER))
    face = 1000 * (basis.rows["face"][:, a] - basis.rows["face"][:, b]) @ up
    return F.pad(face, (basis.sizes["body"], basis.sizes["hand"]))


def lip_points(basis: Basis) -> Tensor:
    """Where points of the lips are, in mm relative to the head, as a linear function (K, 3 n) of coordinates."""
    lips = (basis.weights["face"] == basis.weights["face"].max()).nonzero()[::6, 0]  # the vertices that count most
    face = 1000 * basis.rows["face"][:, lips].flatten(1)
    return F.pad(face, (0, 0, basis.sizes["body"], basis.sizes["hand"]))


def opening_loss(made: Tensor, there: Tensor) -> Tensor:
    """Squared error of the lips' opening (B, T) mm, closed lips counted five times: p, b and m need them."""
    return (((made - there) / LIPS_MM).square() * (1 + SHUT * (there < SHUT_MM))).mean()


class DiffusionObjective(Objective):
    """Eq. 1: x0-prediction at random tau, L_simple, velocity and lips; sound is dropped now and then for guidance."""

    def __init__(self, model: MotionModel, clips: Clips):
        super().__init__()
        self.model, self.trained, self.clips = model.train(), model.dit, clips
        latents = model.embedding.config.latents
        self.register_buffer("alpha_bar", noise_scheduler(model.config).alphas_cumprod)
        self.register_buffer("weight", torch.cat([torch.full((latents[p],), EMPHASIS[p] / latents[p]) for p in PARTS]))
        self.register_buffer("open", lip_reader(model.basis))
        self.register_buffer("points", lip_points(model.basis))
        self.register_buffer("face", torch.cat([torch.full((latents[p],), float(p == "face")) for p in PARTS]))

    def draw(self, rng, size):
        """Coordinates (B, W, K), features (B, W, F), noise (B, W, D), tau (B,), known (B, W), deaf (B, 1, 1)."""
        c = self.model.config
        coordinates, sound, _ = self.clips.batch(size, rng)
        noise = rng.standard_normal((size, c.window, len(self.weight)), np.float32)
        tau = rng.integers(0, c.timesteps, size)
        known = known_frames(size, c.window, c.known, rng)
        deaf = rng.random((size, 1, 1)) < (0 if c.regression else c.drop)
        return coordinates, sound, torch.from_numpy(noise), torch.from_numpy(tau), known, torch.from_numpy(deaf)

    def clean(self, coordinates: Tensor) -> Tensor:
        """Normalised latents of coordinates, in full precision."""
        with torch.no_grad(), torch.autocast(coordinates.device.type, enabled=False):
            return self.model.embedding.encoder(coordinates) / self.model.scale

    def losses(self, x0_hat: Tensor, x0: Tensor, known: Tensor, share=1.0) -> dict[str, Tensor]:
        """L_simple, velocity and lips, in full precision."""
        with torch.autocast(x0.device.type, enabled=False):
            terms = motion_loss(x0_hat.float(), x0, self.weight, known, share=share)
            lips = self.lips(x0_hat.float(), x0)
        return {**terms, "total": terms["total"] + LIPS * lips, "lips": lips}

    def lips(self, x0_hat: Tensor, x0: Tensor) -> Tensor:
        """Error of the lips, their opening and their shape, from normalised latents (B, T, D)."""
        made, there = (self.model.embedding.decoder(x * self.model.scale) for x in (x0_hat, x0))
        shape = ((made - there) @ self.points / LIPS_MM).square().sum(-1).mean() * 3 / self.points.shape[1]
        return opening_loss(made @ self.open, there @ self.open) + shape

    def guessed(self, heard: Tensor, x0: Tensor) -> Tensor:
        """How badly a linear map of what is heard tells the face. At low tau the mouth can be read off X^tau, so that the network
        would learn to hear at high tau only."""
        with torch.autocast(x0.device.type, enabled=False):
            guess = self.model.dit.guess(heard.float())
            face = (self.face * self.weight * (guess - x0).square()).sum(-1).mean()
            return face + LIPS * self.lips(guess, x0)

    def forward(self, coordinates, sound, noise, tau, known, deaf):
        x0, dit = self.clean(coordinates), self.model.dit
        heard = self.model.hear(sound)
        guess = self.guessed(heard, x0)
        heard = torch.where(deaf, dit.silence, heard)
        if self.model.config.regression:  # nothing but the sound and what is known
            x_tau, tau = torch.zeros_like(x0), torch.full_like(tau, self.model.config.timesteps - 1)
        else:
            x_tau = noised(x0, tau, self.alpha_bar, noise)
        terms = self.losses(dit(x_tau, heard, tau, known, x0), x0, known)
        return {**terms, "total": terms["total"] + guess, "guess": guess}


def train_diffusion(model: MotionModel, clips: Clips, run: Run) -> dict[str, list[float]]:
    """Eq. 1; returns the curves of the losses."""
    return train(DiffusionObjective(model, clips), run, "diffusion")


# ---------------------------------------------------------------- refiner


class RefinerObjective(DiffusionObjective):
    """The refiner repairs what the diffusion model really makes: face and hands that DDIM draws, in the few steps of generation.

    A free sample has other gestures and blinks than the truth: asked for those, the refiner would learn the mean of all. So
    sampling sets out from the truth noised to one of DDIM's levels, and what the noise has hidden is asked for the less: latents
    count by alpha_bar of that level; the lips, about which the sound tells, count always.

    On clips it was trained with, the diffusion model hardly errs, and a refiner that only saw this would trust it blindly. So in
    half of the examples the diffusion model is deaf, and the refiner has to hear what the mouth should do.
    """

    def __init__(self, model: MotionModel, clips: Clips, steps: int = 6):
        super().__init__(model, clips)
        self.trained, self.sampler = model.eval().refiner, Sampler(model, steps=steps)

    def draw(self, rng, size):
        coordinates, sound, noise, *_ = super().draw(rng, size)
        first, start = rng.integers(len(self.sampler.pace.timesteps)), rng.integers(0, 2000, (size, 1))
        deaf = rng.random((size, 1, 1)) < DEAF
        return coordinates, sound, noise, torch.tensor(first), torch.from_numpy(start), torch.from_numpy(deaf)

    def forward(self, coordinates, sound, noise, first, start, deaf):
        x0, m, k = self.clean(coordinates), self.model, self.model.config.known
        with torch.no_grad():
            heard = m.hear(sound)
            level = self.sampler.pace.timesteps[first].expand(len(x0)).to(x0.device)
            told = torch.where(deaf, m.dit.silence, heard)
            drawn = self.sampler(noised(x0, level, self.alpha_bar, noise), told, x0[:, :k], int(first))
        frames = torch.arange(x0.shape[1], device=x0.device)
        known, share = (frames < k).expand(len(x0), -1), self.alpha_bar[level][:, None, None]
        return self.losses(m.refiner(drawn, heard, start + frames), x0, known, share)


def train_refiner(model: MotionModel, clips: Clips, run: Run) -> dict[str, list[float]]:
    """Second half of Sec. 3.2; returns the curves of the losses."""
    return train(RefinerObjective(model, clips), run, "refiner")


# ---------------------------------------------------------------- all of it


def train_motion(basis: Basis, clips: list[dict], steps: tuple[int, int, int], seed: int = 0, folder=None, device="cpu",
                 config=None, embedding=None, progress: bool = False) -> tuple[MotionModel, dict]:  # fmt: skip
    """Embedding, diffusion and refiner from nothing; resumed from `folder` if it holds checkpoints of the same training.

    Args: basis and clips of `prepare`; steps of the three. Returns the model and the curves of each of the three by name.
    """
    config, embedding = config or MotionConfig(), embedding or EmbeddingConfig()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MotionModel(basis.to(device), config, embedding).to(device)
    source = Clips(clips, basis.sizes, config, embedding.sound)
    run = lambda n, **more: Run(n, seed=seed, folder=folder, progress=progress, **more)  # noqa: E731
    curves = {"embedding": train_embedding(model.embedding, source, run(steps[0])) if config.embedded else {}}
    set_scales(model, source)
    curves["diffusion"] = train_diffusion(model, source, run(steps[1], average=0.997))
    curves["refiner"] = train_refiner(model, source, run(steps[2], average=0.99)) if config.refine else {}
    return model.eval(), curves


def make_motion_model(clips, steps, seed, folder, out, device="cpu", workers: int = 1) -> MotionModel:
    """The shipped model from nothing: data, training, facts and scores beside it. Called again, it goes on where it stopped."""
    watch = time.perf_counter()
    stage, basis, made = prepare(clips, seed, folder, progress=True, workers=workers)
    model, curves = train_motion(basis, made, steps, seed, folder, device, progress=True)
    frames = sum(len(c["coordinates"]) for c in made)
    if int(os.environ.get("RANK", 0)) == 0:  # of several processes, the first writes
        model.save(out, {
            "recipe": {"clips": clips, "steps": list(steps), "seed": seed}, "seconds": round(time.perf_counter() - watch),
            "frames": frames, "minutes_of_motion": round(frames / 1500, 1), "held_out": held_out(stage, model),
            "curves": {name: {k: thinned(v) for k, v in c.items()} for name, c in curves.items()},
        })  # fmt: skip
    return model


def held_out(stage: Stage, model: MotionModel, count: int = 12) -> dict[str, dict[str, float]]:
    """How well the model speaks sentences it has not heard, in voices of the training and in others (`aa.motion_metrics`)."""
    from aa.motion_metrics import Judge

    judge, voices = Judge(stage.body, model), {"seen voices": VOICES_TRAIN, "unseen voices": VOICES_UNSEEN}
    tests = {name: recipes(count, seed=5, split="held-out", voices=v, people=0) for name, v in voices.items()}
    return {name: {k: round(v, 4) for k, v in judge(t).items() if v is not None} for name, t in tests.items()}


def thinned(curve: list[float], points: int = 60) -> list[float]:
    """At most `points` means of a curve."""
    return [round(float(np.mean(c)), 5) for c in np.array_split(curve, min(points, len(curve)))] if curve else []
