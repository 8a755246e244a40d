"""How the tiny teacher is trained, and whether it knows when lips and sound belong together."""

import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from aa.audio import PROSODY
from aa.media import replacing
from aa.teacher_data import KINDS, Windows, close_up_recipes, film_all
from aa.teacher_tiny import TinyConfig, TinyTeacher
from aa.teachers import Teacher
from aa.training import Objective, Run, train

SPREAD = 1.2  # of the logit of sigma, normal around 0 (Esser et al. 2024): most at middling noise, where motion is decided
DROP = {"sound": 0.15, "image": 0.1, "both": 0.05}  # shares of examples, for guidance
DEAF = 0.5  # share of examples without energy, voicing and pitch: lips must not lean on loudness
EVENLY = 0.5  # share of the loss in which all places count alike
TOLD = 0.3  # weight of what the sound alone must tell
SHIFTS = tuple(range(-6, 7))  # frames at 25 fps
SIZES = {  # clips, held-out clips, steps, examples a step
    "smoke": (4, 2, 6, 2),
    "quick": (48, 8, 600, 8),
    "hour": (160, 16, 2500, 8),
    "full": (640, 32, 20_000, 32),
}


class TeacherObjective(Objective):
    """Flow matching: |v_hat - (eps - z)|^2, places about which the sound tells counted more. The weights are fixed for each kind of
    close-up, so the minimum stays the true velocity."""

    def __init__(self, teacher: TinyTeacher, windows: Windows):
        super().__init__()
        self.teacher, self.trained, self.windows = teacher, teacher.net, windows
        columns = teacher.config.features
        self.prosody = torch.arange(columns) >= columns - PROSODY

    def draw(self, rng, size):
        """frames, image, rows, kind of `Windows.draw`; eps (B, C, T, h, w), sigma (B,), deaf and blind (B,)."""
        frames, image, rows, kind = self.windows.draw(size, rng)
        c = self.teacher.config
        side = c.size // c.block
        eps = torch.from_numpy(rng.standard_normal((size, c.channels, c.frames, side, side), np.float32))
        sigma = torch.from_numpy(1 / (1 + np.exp(-SPREAD * rng.standard_normal(size)))).float()
        u = torch.from_numpy(rng.random(size))
        rows = torch.where(torch.from_numpy(rng.random((size, 1, 1, 1)) < DEAF) & self.prosody, self.teacher.sound_mean.cpu(), rows)
        both = DROP["both"]
        deaf, blind = u < both + DROP["sound"], (u < both) | (u > 1 - DROP["image"])
        return frames, image, rows, kind, eps, sigma, deaf, blind

    def forward(self, frames, image, rows, kind, eps, sigma, deaf, blind):
        t = self.teacher
        with torch.no_grad(), torch.autocast(frames.device.type, enabled=False):
            z, shown = t.encode(frames), t.look(image)
            z_sigma = t.add_noise(z, sigma, eps)
        heard = torch.where(deaf[:, None, None], t.net.silence, t.heard(rows))
        shown = torch.where(blind[:, None, None, None], t.net.nobody, shown)
        v = t.guess(z_sigma, sigma, heard, shown).float()
        simple = ((v - (eps - z)).square() * (EVENLY + (1 - EVENLY) * t.hearing[kind][:, None, None])).mean()
        told = self.told(t.heard(rows), z, kind)
        return {"total": simple + TOLD * told, "simple": simple, "told": told}

    def told(self, heard: Tensor, z: Tensor, kind: Tensor) -> Tensor:
        """Share of a face's motion within the window that the sound alone leaves unexplained, by `VideoUNet.told`."""
        with torch.autocast(z.device.type, enabled=False):
            made, there = self.trained.told(heard.float()).transpose(1, 2), z
            made, there = (x - x.mean(2, keepdim=True) for x in (made, there))
            weight = self.teacher.hearing[0] * (kind == KINDS.index("face"))[:, None, None, None, None]
            return ((made - there).square() * weight).mean() / (there.square() * weight).mean().clamp_min(1e-6)


@torch.no_grad()
def prepare_teacher(config: TinyConfig, windows: Windows, seed: int = 0, batches: int = 24) -> TinyTeacher:
    """An untrained teacher with the components, sound statistics and motion weights of the data."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = TinyTeacher(config)
    rng = np.random.default_rng([seed, 1])
    frames = torch.cat([windows.draw(4, rng)[0] for _ in range(batches)])
    teacher.latent.fit(frames.flatten(0, 1)[::3])
    mean, std = windows.statistics()
    teacher.sound_mean.copy_(mean)
    teacher.sound_std.copy_(std)
    teacher.hearing.copy_(hearing_map(teacher, windows))
    return teacher


@torch.no_grad()
def hearing_map(teacher: TinyTeacher, windows: Windows, ridge: float = 3.0, least: float = 0.02) -> Tensor:
    """Where the sound tells about the picture: (kinds, h, w), mean 1 each.

    The motion of each place about its clip's mean is predicted from the sound of the frame by ridge regression, learned on every
    second clip and tried on the others; the root of what it explains, blurred a little, is the weight. All alike where nowhere
    `least` of the motion is explained, or where clips are fewer than eight.
    """
    out = torch.ones_like(teacher.hearing)
    for kind in range(len(KINDS)):
        halves = [[0.0, 0.0, 0.0, 1e-9], [0.0, 0.0, 0.0, 1e-9]]  # sums of a a', a z, z z and their number
        for n, clip in enumerate(k for k in range(len(windows)) if windows.kind[k] == kind):
            z = teacher.latent.encode(windows.whole(clip)).flatten(1, 2).movedim(1, 0)  # (places, T, C)
            a = (windows.rows(clip) - teacher.sound_mean) / teacher.sound_std
            z, a = z - z.mean(1, keepdim=True), a - a.mean(0)
            for k, value in enumerate((a.T @ a, a.T @ z, z.square().sum((1, 2)), len(a))):
                halves[n % 2][k] = halves[n % 2][k] + value
        if windows.kind.count(kind) < 8:
            continue
        explained = 0.0
        for (aa, az, _, count), (aa_, az_, _, _) in (halves, halves[::-1]):
            w = torch.linalg.solve(aa + ridge * count * torch.eye(len(aa)), az)  # (places, F, C)
            explained = explained + (w * (2 * az_ - aa_ @ w)).sum((1, 2))
        share = (explained / (halves[0][2] + halves[1][2]).clamp_min(1e-9)).clamp_min(0)
        if share.max() > least:
            gain = torch.where(share > 0.1 * share.max(), explained, 0).clamp_min(0).sqrt().view_as(out[kind])
            gain = F.avg_pool2d(gain[None], 3, 1, 1)[0]
            out[kind] = gain / gain.mean()
    return out


def train_teacher(teacher: TinyTeacher, windows: Windows, run: Run) -> dict[str, list[float]]:
    """Train the network; returns the curves. The running mean of the weights is what remains."""
    teacher.train()
    curves = train(TeacherObjective(teacher, windows), run, "teacher-training")
    teacher.freeze()
    return curves


# ---------------------------------------------------------------- what it knows


@torch.no_grad()
def shift_losses(
    teacher: Teacher, frames: Tensor, image: Tensor, rows: Tensor, start: int, weight: Tensor | None = None, shifts=SHIFTS,
    sigmas=(0.4, 0.55, 0.7, 0.85), draws: int = 1, seed: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Denoising loss of one window under every shift of its sound, and without sound; the same noise for all.

    Args: frames (T, H, W, 3), image (H, W, 3), rows (N, ...) of `Teacher.hear`, in which the window begins at frame `start`;
        weight, broadcast with z (1, C, t, h, w). Shift +2 is sound that comes two frames (80 ms) too late.
    Returns: (S,) and (), means of the squared error of v.
    """
    z = teacher.encode(frames[None])
    shown = teacher.look(image[None])
    heard = [teacher.cut(rows, [start - s]) for s in shifts] + [None]
    g = torch.Generator().manual_seed(seed)
    out = torch.zeros(len(heard))
    for sigma in sigmas * draws:
        eps = torch.randn(z.shape, generator=g).to(z)
        s = torch.full((1,), sigma, device=z.device)
        z_sigma = teacher.add_noise(z, s, eps)
        for k, audio in enumerate(heard):
            error = (teacher.predict(z_sigma, s, audio, shown) - (eps - z)).square()
            out[k] += float((error if weight is None else error * weight).mean()) / len(sigmas * draws)
    return out[:-1], out[-1]


def judge(teacher: TinyTeacher, windows: Windows, per_clip: int = 3, shifts=SHIFTS, seed: int = 0, **settings) -> dict:
    """Held-out test of a teacher: MSE(sound shifted) - MSE(no sound), averaged over windows of each clip.

    Returns: "curves" {kind: [per shift]}, "best" {kind: [shift with the least loss, per clip]}, "at_0" and "within_1": shares of
        clips, "gain": share by which sound in time lowers the loss.
    """
    curves, best, null = {k: [] for k in KINDS}, {k: [] for k in KINDS}, {k: [] for k in KINDS}
    for clip in range(len(windows)):
        kind, free = windows.kind[clip], len(windows.box[clip]) - windows.reach
        weight = teacher.hearing[kind][None, None, None]
        losses = []
        for n, start in enumerate(np.linspace(min(3, free), max(free - 3, 0), per_clip).astype(int)):
            other = 0 if start > free / 2 else len(windows.box[clip]) - 1
            frames, image = (x.to(teacher.device) for x in windows.pictures(clip, int(start), other))
            rows = windows.rows(clip).to(teacher.device)
            losses.append(shift_losses(teacher, frames, image, rows, int(start), weight, shifts, seed=seed + n, **settings))
        told, untold = (torch.stack(x).mean(0) for x in zip(*losses))
        curves[KINDS[kind]].append((told - untold).tolist())
        best[KINDS[kind]].append(int(shifts[int(told.argmin())]))
        null[KINDS[kind]].append(float(untold))
    share = lambda far: {k: float(np.mean(np.abs(b) <= far)) for k, b in best.items() if b}  # noqa: E731
    mean = {k: np.mean(c, 0) for k, c in curves.items() if c}
    zero = shifts.index(0)
    return {
        "curves": {k: [round(float(x), 5) for x in c] for k, c in mean.items()}, "best": {k: b for k, b in best.items() if b},
        "at_0": share(0), "within_1": share(1), "gain": {k: round(float(-c[zero] / np.mean(null[k])), 4) for k, c in mean.items()},
    }  # fmt: skip


@torch.no_grad()
def swap_sounds(teacher: TinyTeacher, windows: Windows, clip: int, others: list[int], seed: int = 0, **settings) -> Tensor:
    """One person, several sounds: frames (1 + n, T, H, W, 3) sampled with the clip's own sound and with those of other clips, from
    the same noise and image."""
    _, image = windows.pictures(clip, 0, len(windows.box[clip]) - 1)
    audio = torch.cat([teacher.cut(windows.rows(k), [8]) for k in (clip, *others)])
    shown = teacher.look(image[None].to(teacher.device))
    made = [teacher.sample(shown, a[None], seed, **settings) for a in audio]
    return torch.cat(made)


def make_teacher(
    size: str, seed: int, folder, out, device="cpu", workers: int = 1, steps: int | None = None, clips: int | None = None
):
    """The shipped teacher from nothing: close-ups, training, held-out test, facts beside it. Called again, it goes on."""
    watch = time.perf_counter()
    count, held, default, batch = SIZES[size]
    count, steps, folder = clips or count, steps or default, Path(folder)
    seconds = 1.2 if size == "smoke" else 2.4
    files = film_all(folder / "close-ups", close_up_recipes(count, seed, "train", seconds), True, workers)
    tests = film_all(folder / "close-ups", close_up_recipes(held, seed, "held-out", seconds), True, workers)
    config = TinyConfig()
    shape = (config.frames, config.stride, config.size, config.context)
    windows = Windows(files, *shape)
    teacher = prepare_teacher(config, windows, seed).to(device)
    run = Run(steps, batch, 1e-3, seed, 0.998, folder, every=50, progress=True)
    curves = train_teacher(teacher, windows, run)
    if int(os.environ.get("RANK", 0)) > 0:  # of several processes, the first writes
        return teacher
    from aa.motion_training import thinned

    facts = {
        "recipe": {"size": size, "clips": count, "steps": steps, "batch": batch, "seed": seed},
        "seconds": round(time.perf_counter() - watch), "held_out": judge(teacher, Windows(tests, *shape), seed=seed),
        "curves": {k: thinned(v) for k, v in curves.items()},
    }  # fmt: skip
    teacher.save(out, facts)
    with replacing(Path(out).with_suffix(".json")) as part:
        part.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return teacher
