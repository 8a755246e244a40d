"""Fine-tuning of the motion model end to end (Sec. 3.3, Fig. 5): from motion latents to pixels and back.

One step: performed motion is noised to a random tau, the diffusion Transformer predicts X^0 in one go (no sampler), then refiner,
decoder, dG on a person, a small crop of the face rendered over some frames. Pictures meet the teacher (Eq. 2) and the clip (L1),
particles its tracks (Eq. 3) and their neighbours (isometry), latents the performed ones (L_simple).

X^0 predicted from much noise is a mean over all motions that fit the sound, and its picture no likely video. Squared losses want
just that mean; the teacher does not. So score distillation counts by alpha_bar(tau): where the prediction is sharp.
"""

import hashlib
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from aa.batches import RAMP, Clips
from aa.distill import SDS, noise_level, track_loss, video_sds_loss
from aa.dit import steady
from aa.errors import InputError
from aa.media import FPS
from aa.motion import MotionModel
from aa.motion_training import DiffusionObjective, noised
from aa.scenes import Scene
from aa.teachers import Teacher
from aa.training import Run, train

TERMS = ("simple", "traj", "l1", "iso", "sds")  # the first one that is on is the measure of the others
KEEP = 0.8  # of the running gradient norms at each measurement
LEAST = 1e-3  # a norm below this share of the first term's is not blown up further


@dataclass(frozen=True)
class FineTune:
    """Weights of the terms (0 leaves one out) and how they are put together."""

    simple: float = 1.0  # L_simple, velocity and lips, of the diffusion model and of the refiner, and the linear guess
    traj: float = 1.0  # Eq. 3
    l1: float = 0.5  # pictures
    iso: float = 0.1  # isometry between frames
    sds: float = 0.5  # Eq. 2
    robust: bool = False  # Eq. 3 with absolute instead of squared distances
    balance: bool = True  # weights are shares of gradient: a term of weight 1 pulls as strongly as L_simple, whatever its unit
    measure_every: int = 10  # steps between measurements of the gradient norms
    sds_every: int = 1  # steps between two with the teacher
    frames: int = 9  # that are rendered, of a clip; a teacher has its own number
    parts: tuple[str, ...] = ("dit", "refiner", "decoder")  # which are trained
    asked: SDS = field(default_factory=SDS)  # how the teacher is asked

    def __post_init__(self):
        unknown = set(self.parts) - {"dit", "refiner", "decoder"}
        if unknown or not self.parts:
            raise InputError(f"parts to train are {self.parts}: give some of dit, refiner, decoder.")
        if min(self.weights.values()) < 0 or not any(self.weights.values()):
            raise InputError(f"the weights of the loss are {self.weights}: give numbers >= 0, at least one of them above.")

    @property
    def weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in TERMS}

    def as_dict(self) -> dict:
        return asdict(self)


class Balance(nn.Module):
    """Running norms of the gradients of the terms by the predicted latents, where all of them meet (as VQGAN weighs its losses at
    the last layer, Esser et al. 2021). Part of what is trained, so that a checkpoint holds it."""

    def __init__(self, names: tuple[str, ...]):
        super().__init__()
        self.names = names
        self.register_buffer("norm", torch.zeros(len(names)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def measure(self, terms: dict[str, Tensor], at: Tensor) -> None:
        """Norms of the gradients of all terms by `at`."""
        now = [torch.autograd.grad(terms[name], at, retain_graph=True)[0].norm() for name in self.names]
        keep = KEEP * (self.norm > 0)
        self.norm.copy_(keep * self.norm + (1 - keep) * torch.stack(now).to(self.norm))

    def factors(self) -> Tensor:
        """What to multiply each term with so that it pulls as strongly as the first."""
        return self.norm[0] / self.norm.clamp_min(LEAST * self.norm[0]).clamp_min(1e-30)


class FineTuneObjective(DiffusionObjective):
    """Fig. 5, on scenes (`aa.scenes.Scene`); the teacher may be None where `config.sds` is 0."""

    def __init__(self, model: MotionModel, scenes: list[Scene], config: FineTune, teacher: Teacher | None = None, steps: int = 1):
        known = {"traj": "tracks", "l1": "frames"}
        for name, what in known.items():
            if config.weights[name] and any(getattr(s, what) is None for s in scenes):
                raise InputError(f"some scenes have no {what}: set the weight {name} to 0, or leave them out.")
        if config.sds and teacher is None:
            raise InputError("score distillation needs a teacher: give one, or set the weight sds to 0.")
        if teacher is not None and any((s.closeup.size,) * 2 != (teacher.height, teacher.width) for s in scenes):
            raise InputError(f"the teacher sees {teacher.width} x {teacher.height} px: make the scenes of that size.")
        as_clip = lambda s: {"coordinates": s.coordinates.cpu(), "features": s.features[None].cpu(), "silent": _quiet(s)}  # noqa: E731
        clips = Clips([as_clip(s) for s in scenes], model.basis.sizes, model.config, model.embedding.config.sound)
        super().__init__(model, clips)
        model.eval()
        self.scenes, self.config, self.teacher, self.total_steps = scenes, config, teacher, steps
        self.stride = 1 if teacher is None else round(FPS / teacher.fps)
        self.frames = config.frames if teacher is None else teacher.frames
        self.span = (self.frames - 1) * self.stride + 1
        self.first = max(RAMP.values())  # frames of a clip that lead from rest into it, where pictures would not fit
        if min(len(s.coordinates) for s in scenes) < self.first + self.span or self.span > model.config.window - model.config.known:
            raise InputError(
                f"a scene is too short: {self.frames} frames are seen, so it needs {self.first + self.span} at 25 fps."
            )
        parts = {"dit": model.dit, "refiner": model.refiner, "decoder": model.embedding.decoder}
        names = tuple(name for name in TERMS if config.weights[name])
        self.trained = nn.ModuleDict({p: parts[p] for p in config.parts} | {"balance": Balance(names)})
        if teacher is not None:
            with torch.no_grad():
                self.rows = [teacher.hear(s.audio, len(s.coordinates)) for s in scenes]
                self.looks = [teacher.look(s.image[None]) for s in scenes]

    def draw(self, rng: np.random.Generator, size: int):
        """Scenes and first rendered frames (B, 2), where these lie in the window (B,), first frames of windows (B,), coordinates
        (B, W, K), features (B, W, F), noise (B, W, D), tau (B,), deaf (B,), and for the teacher uniform numbers (B,) and a seed."""
        c, where, place, begin, xs, fs = self.model.config, [], [], [], [], []
        for n in rng.integers(len(self.scenes), size=size):
            at = int(rng.integers(self.first, len(self.scenes[n].coordinates) - self.span + 1))
            padded = self.clips.coordinates[n]
            low, high = max(0, at + c.known - c.window + self.span), min(len(padded) - c.window, at)
            s = int(rng.integers(low, high + 1))
            where.append((n, at))
            place.append(at + c.known - s)
            begin.append(s - c.known)
            xs.append(padded[s : s + c.window])
            fs.append(self.clips.features[n][0, s : s + c.window])
        noise = torch.from_numpy(rng.standard_normal((size, c.window, len(self.weight)), np.float32))
        tau, uniform = torch.from_numpy(rng.integers(0, c.timesteps, size)), torch.from_numpy(rng.random(size, np.float32))
        deaf = torch.from_numpy(rng.random(size) < c.drop)  # or guidance would lose what it is measured against
        index = (torch.tensor(where), torch.tensor(place), torch.tensor(begin))
        return *index, torch.stack(xs), torch.stack(fs), noise, tau, deaf, uniform, torch.tensor(int(rng.integers(2**31)))

    def forward(self, where, place, begin, coordinates, sound, noise, tau, deaf, uniform, seed):
        x0, m, config = self.clean(coordinates), self.model, self.config
        frame = torch.arange(x0.shape[1], device=x0.device)
        known = (frame < m.config.known).expand(len(x0), -1)
        heard = m.hear(sound)
        told = torch.where(deaf[:, None, None], m.dit.silence, heard)
        x0_hat = m.dit(noised(x0, tau, self.alpha_bar, noise), told, tau, known, x0)
        x0_hat = x0_hat if x0_hat.requires_grad else x0_hat.requires_grad_()  # gradients are measured there, trained or not
        x = torch.where(known[..., None], x0, x0_hat)
        if m.config.refine:
            x = m.refiner(x, heard, (begin[:, None] + frame).clamp_min(0))
        balance, step = self.trained["balance"], int(self.trained["balance"].steps)
        measuring = step % config.measure_every == 0
        asking = bool(config.sds) and (measuring or step % config.sds_every == 0)
        share = self.alpha_bar[tau]
        simple = self.losses(x0_hat, x0, known)["total"] + self.losses(x, x0, known, share[:, None, None])["total"]
        terms = {"simple": simple + self.guessed(heard, x0)}
        with torch.autocast(x0.device.type, enabled=False):
            clear, progress = steady(x.float(), m.embedding.config.latents), step / self.total_steps if asking else None
            terms |= self.seen(where.tolist(), place.tolist(), clear, share * ~deaf, uniform, seed, progress)
        if measuring:
            balance.measure(terms, x0_hat)
        balance.steps += 1
        factors = balance.factors() if config.balance else torch.ones_like(balance.norm)
        total = sum(config.weights[k] * f * terms[k] for k, f in zip(balance.names, factors))
        norms = {f"norm {k}": v for k, v in zip(balance.names, balance.norm.clone())}
        return {"total": total, **{k: terms[k] for k in balance.names}, **norms}

    def seen(self, where, place, x, share, uniform, seed, progress: float | None) -> dict[str, Tensor]:
        """The terms on pictures and particles of refined latents x (B, W, D); progress None: without the teacher."""
        config, out = self.config, {"traj": [], "l1": [], "iso": []}
        pictures = []
        for b, (n, at) in enumerate(where):
            scene, view = self.scenes[n], self.scenes[n].closeup
            own = slice(place[b], place[b] + self.span, self.stride)
            there = slice(at, at + self.span, self.stride)
            means, quats = view.pose(self.model.embedding.decoder(x[b, own] * self.model.scale))
            if config.l1 or progress is not None:
                pictures.append(view.picture(means, quats))
            if config.l1:
                out["l1"].append((pictures[-1] - scene.frames[there]).abs().mean())
            if config.traj:
                pixels = view.pixels(means)[:, scene.particle]
                out["traj"].append(track_loss(pixels, scene.tracks[there], scene.visible[there], view.size, config.robust))
            if config.iso:
                out["iso"].append(view.strain(means))
        terms = {k: torch.stack(v).mean() for k, v in out.items() if v}
        if config.sds:
            asked = (
                self.ask(where, torch.stack(pictures), share, uniform, seed, progress) if progress is not None else x.new_zeros(())
            )
            terms["sds"] = asked
        return terms

    def ask(self, where, pictures, share, uniform, seed, progress: float) -> Tensor:
        """Eq. 2 for pictures (B, T, h, w, 3)."""
        t, config = self.teacher, self.config.asked
        audio = torch.cat([t.cut(self.rows[n], [at]) for n, at in where])
        image = torch.cat([self.looks[n] for n, _ in where])
        sigma = noise_level(config, uniform, min(1.0, progress))
        g = torch.Generator().manual_seed(int(seed))
        return video_sds_loss(t, pictures, audio, image, config, sigma=sigma, generator=g, share=share)


def _quiet(scene: Scene) -> Tensor:
    return torch.zeros(len(scene.coordinates), dtype=torch.bool)


def fine_tune(model: MotionModel, scenes: list[Scene], config: FineTune, run: Run, teacher: Teacher | None = None) -> dict:
    """Train the parts of `model` that `config.parts` names, in place; returns the curves: each term, and "norm ..." its gradient.

    Args: run: a rate of 1e-4 and a batch of 1 to 4 suit; its folder keeps "distill-<settings>.safetensors", from which an
        interrupted run goes on to the same end.
    """
    objective = FineTuneObjective(model, scenes, config, teacher, run.steps)
    settings = hashlib.sha256(f"{config} {len(scenes)} {getattr(teacher, 'name', None)}".encode()).hexdigest()[:8]
    curves = train(objective, run, f"distill-{settings}")
    model.eval()
    return curves


@torch.no_grad()
def track_error(model: MotionModel, scene: Scene, seeds=(0, 1)) -> dict[str, float]:
    """Mean distance of generated motion from the scene's tracks, in px of the crop and (studio) in mm, over seeds."""
    rows = []
    for seed in seeds:
        x = torch.cat(list(model.stream_latents(scene.audio, seed, frames=len(scene.coordinates))))
        rows.append(scene.fit(model.embedding.decoder(x * model.scale)))
    return {k: float(np.mean([r[k] for r in rows])) for k in rows[0]}
