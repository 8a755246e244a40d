"""How good generated motion is, against performances of the same speech: mouth in step, lips closed, hands alive."""

import time
from dataclasses import replace

import numpy as np
import torch

from aa.audio import loudness
from aa.body import Body
from aa.motion import MotionModel
from aa.motion_data import Recipe, Stage, closures, silent_frames, sound_of
from aa.transfer import Deformation

CLOSED = 0.2  # of the clip's 90th percentile: a closed mouth
SHIFTS = (-9, -7, -5, 5, 7, 9)  # frames: the control of the closure score


def correlation(a, b) -> float:
    """Pearson's r of two curves (T,); 0 where one is constant."""
    a, b = (np.asarray(x, float) - np.mean(x) for x in (a, b))
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / scale) if scale > 1e-12 else 0.0


def lagged_correlation(a, b, most: int = 5) -> tuple[float, int]:
    """Best r of a (T,) with b delayed by -most..most frames, and the lag: positive where a comes late."""
    T = len(a)
    pairs = [(correlation(a[max(d, 0) : T + min(d, 0)], b[max(-d, 0) : T - max(d, 0)]), d) for d in range(-most, most + 1)]
    return max(pairs)


def closure_rate(aperture, frames, shift: int = 0) -> float | None:
    """Share of the given frames (m,), moved by `shift`, at which the lips (T,) are closed within a frame; None without any."""
    aperture = np.asarray(aperture)
    limit = CLOSED * np.percentile(aperture, 90)
    at = [int(f) + shift for f in frames if 1 <= int(f) + shift < len(aperture) - 1]
    return float(np.mean([aperture[f - 1 : f + 2].min() < limit for f in at])) if at else None


def stroke_speed(points) -> np.ndarray:
    """Speed (T,) m/s of points (T, n, 3), averaged over the points."""
    speed = np.linalg.norm(np.diff(np.asarray(points), axis=0), axis=-1).mean(1) * 25
    return np.concatenate([speed[:1], speed])


def tremor(points: torch.Tensor) -> float:
    """Mean acceleration m/s^2 of points (T, n, 3): speed that changes from frame to frame."""
    return 625 * float(points.diff(dim=0, n=2).norm(dim=-1).mean())


def reach(points) -> float:
    """How far points (T, n, 3) m go: their distance from where they are on average, rms over time, mean over points."""
    points = np.asarray(points)
    return float(np.sqrt(np.square(points - points.mean(0)).sum(-1).mean(0)).mean())


def apart(motions: list) -> float:
    """Mean distance (m) between the same points of several motions (T, n, 3) at the same time: how different they are."""
    pairs = [(a, b) for i, a in enumerate(motions) for b in motions[:i]]
    return float(np.mean([np.linalg.norm(np.asarray(a) - np.asarray(b), axis=-1).mean() for a, b in pairs]))


def beat_alignment(speeds: list[np.ndarray], loudnesses: list[np.ndarray], draws: int = 500, seed: int = 0) -> float:
    """p-value: how often the strokes of hands are as well correlated with loudness if time is shifted at random.

    Best lag within +-4 frames (a stroke leads its syllable), summed over the clips, from the first to the last sound of
    each; what is more than 45 dB below a clip's loudest moment counts as silence (loudness in decibels).
    """
    rng = np.random.default_rng(seed)
    floors = [q.max() - 45 for q in loudnesses]
    heard = [np.flatnonzero(q > floor)[[0, -1]] + [0, 1] for q, floor in zip(loudnesses, floors)]
    speeds = [s[a:b] for s, (a, b) in zip(speeds, heard)]
    loudnesses = [np.maximum(q, floor)[a:b] for q, floor, (a, b) in zip(loudnesses, floors, heard)]

    def score(shift):
        return sum(
            max(correlation(np.roll(s, int(k * len(s)) + d), np.gradient(q)) for d in range(-4, 5))
            for s, q, k in zip(speeds, loudnesses, shift)
        )

    true = score(np.zeros(len(speeds)))
    chance = [score(rng.uniform(0.15, 0.85, len(speeds))) for _ in range(draws)]
    return float((1 + np.sum(np.asarray(chance) >= true)) / (1 + draws))


class Judge:
    """Performs recipes and compares what a model makes of their sound."""

    def __init__(self, body: Body, model: MotionModel):
        full = Stage(body)
        few = torch.unique(torch.cat([full.sparse(), body.region_vertices("lips")]))
        self.stage, self.basis = full.select(few), model.basis.select(few)
        index = torch.full((len(body.v_template),), -1)
        index[few] = torch.arange(len(few))
        lips = index[body.region_vertices("lips")]
        self.lips = torch.isin(self.stage.parts.face, lips).nonzero()[:, 0]
        self.model = model

    @torch.no_grad()
    def generated(self, audio, frames: int | None = None, **settings) -> Deformation:
        """Generated motion (T, n, 3) on the judge's few vertices."""
        x = torch.cat(list(self.model.stream_latents(audio, frames=frames, **settings)))
        return self.basis.decode(self.model.embedding.decoder(x * self.model.scale))

    @torch.no_grad()
    def clip(self, recipe: Recipe, seed: int = 0, audio=None, **settings) -> dict:
        """One recipe: curves of truth and of the model, errors. `audio`: the sound to give the model instead of the clean one."""
        from aa.parts import channels, split_parts

        speech = sound_of(recipe)
        truth = self.stage.motion(recipe, speech)
        began = time.perf_counter()
        made = self.generated(speech.audio if audio is None else audio, len(truth), seed=seed, **settings)
        seconds = time.perf_counter() - began
        a, b = (split_parts(self.stage.parts, m) for m in (truth, made))
        gap = (a.face.means - b.face.means)[:, self.lips].norm(dim=-1).mean()
        hands = self.stage.parts.hand
        return {
            "truth": self.stage.lips(truth).numpy(), "made": self.stage.lips(made).numpy(), "voice": recipe.voice,
            "closures": closures(speech), "silent": silent_frames(speech, len(truth)).numpy(), "lip_local_mm": 1000 * float(gap),
            "true_speed": stroke_speed(truth.means[:, hands]), "speed": stroke_speed(made.means[:, hands]),
            "jitter": tremor(made.means[:, hands]) / tremor(truth.means[:, hands]),
            "true_reach": reach(truth.means[:, hands]), "reach": reach(made.means[:, hands]),
            "loudness": loudness(speech.audio, len(truth)), "seconds": seconds, "channels": channels("face", b.face),
        }  # fmt: skip

    def __call__(self, recipes: list[Recipe], seeds: int = 1, **settings) -> dict:
        """Means over the recipes; the keys of notebook 04, `silence_aperture` (of an open mouth), and with several `seeds`
        `gesture_diversity_ratio`: how different gestures to the same sound are, against other performances of it."""
        out = summary([self.clip(r, **settings) for r in recipes])
        return out | ({"gesture_diversity_ratio": self.diversity(recipes, seeds, **settings)} if seeds > 1 else {})

    def diversity(self, recipes: list[Recipe], seeds: int, **settings) -> float:
        """How far apart the hands are in `seeds` versions of the same speech: generated against performed."""
        hands, made, true = self.stage.parts.hand, [], []
        for recipe in recipes:
            speech = sound_of(recipe)
            others = [replace(recipe, seed=recipe.seed + 50_000_000 * k) for k in range(seeds)]
            plays = [self.stage.motion(r, speech).means[:, hands] for r in others]
            true.append(apart(plays))
            T = len(plays[0])
            made.append(apart([self.generated(speech.audio, T, seed=k, **settings).means[:, hands] for k in range(seeds)]))
        return float(np.mean(made) / np.mean(true))


def summary(rows: list[dict]) -> dict:
    """Numbers from the rows of `Judge.clip`."""
    mean = lambda x: float(np.mean([v for v in x if v is not None]))  # noqa: E731
    lags = [np.mean([correlation(np.roll(r["made"], -d)[6:-6], r["truth"][6:-6]) for r in rows]) for d in range(-5, 6)]
    quiet = [r["made"][r["silent"]].mean() / np.percentile(r["made"], 90) for r in rows if r["silent"].sum() > 3]
    return {
        "lip_corr": mean(correlation(r["made"], r["truth"]) for r in rows),
        "closure": mean(closure_rate(r["made"], r["closures"]) for r in rows),
        "closure_shifted": mean(closure_rate(r["made"], r["closures"], s) for r in rows for s in SHIFTS),
        "closure_truth": mean(closure_rate(r["truth"], r["closures"]) for r in rows),
        "lip_local_mm": mean(r["lip_local_mm"] for r in rows),
        "offset_frames": int(np.argmax(lags)) - 5,
        "gesture_speed_ratio": mean(r["speed"].mean() for r in rows) / mean(r["true_speed"].mean() for r in rows),
        "gesture_range_ratio": mean(r["reach"] for r in rows) / mean(r["true_reach"] for r in rows),
        "jitter_ratio": mean(r["jitter"] for r in rows),
        "beat_p_value": beat_alignment([r["speed"] for r in rows], [r["loudness"] for r in rows]),
        "silence_aperture": mean(quiet) if quiet else None,
    }


def real_mouth(video) -> np.ndarray:
    """Inner-lip gap over face height (T,) at 25 fps of the person in a video, by MediaPipe's face mesh; gaps are interpolated.

    Raises InputError if hardly any frame shows a face.
    """
    import mediapipe as mp

    from aa.errors import InputError
    from aa.media import FPS, iter_video

    gap = []
    with mp.solutions.face_mesh.FaceMesh(refine_landmarks=True) as mesh:
        for frame, _ in iter_video(video, fps=FPS):
            found = mesh.process(np.ascontiguousarray(frame)).multi_face_landmarks
            if not found:
                gap.append(np.nan)
                continue
            point = lambda i, f=found[0], s=frame.shape: np.array([f.landmark[i].x * s[1], f.landmark[i].y * s[0]])  # noqa: E731
            gap.append(np.linalg.norm(point(13) - point(14)) / np.linalg.norm(point(10) - point(152)))
    gap = np.asarray(gap)
    seen = np.isfinite(gap)
    if seen.mean() < 0.5:
        raise InputError(
            f"a face is found in {int(seen.sum())} of {len(gap)} frames of {video}: give a video of one person talking."
        )
    return np.interp(np.arange(len(gap)), np.flatnonzero(seen), gap[seen])
