"""Generated mouths against real ones: recordings with a transcript, and videos of people who talk.

Sound and picture of a video need not be in step by themselves (editors, Bluetooth, lip-sync models). Where the recogniser hears p,
b or m, the person's lips are shut: the shift at which they are shut most is the file's own offset, and it is reported beside every
correlation.
"""

from dataclasses import replace

import numpy as np
import torch

from aa.audio import features, loudness
from aa.breath import heard_breaths
from aa.media import load_audio
from aa.motion_data import Stage, closures, silent_frames
from aa.motion_metrics import SHIFTS, closure_rate, correlation, real_mouth
from aa.phones import MOUTH_CLASSES
from aa.speech import Speech

LAGS = range(-8, 9)  # frames
ENOUGH = 3.0  # sum of posteriors of p, b and m below which nothing is said about the offset
LATE = 1.2  # frames by which the recogniser's p, b and m come after the middle of the sound (36 aligned ones: 1.2, deviation 0.6)


@torch.no_grad()
def apertures(model, audio, stage: Stage, seed: int = 0, **settings) -> np.ndarray:
    """Inner-lip opening (T,) m of the template that speaks the sound."""
    few = stage.sparse()
    stage, basis = stage.select(few), model.basis.select(few)
    pieces = [
        stage.lips(basis.decode(model.embedding.decoder(x * model.scale))) for x in model.stream_latents(audio, seed, **settings)
    ]
    return np.concatenate([p.numpy() for p in pieces])


def recorded(model, speech: Speech, stage: Stage, **settings) -> dict[str, float]:
    """A recording whose phonemes are known (`Speech.from_recording` with a transcript): are lips shut at p, b, m and in pauses?

    `closure`: strict, within a frame; `closure_shifted`: the same at wrong times; `pause_aperture`: mean opening in pauses, from
    0.2 s after their beginning and but for breaths that can be heard, over the 90th percentile.
    """
    speech = replace(speech, breaths=heard_breaths(speech.audio, speech.phonemes))
    gap, at = apertures(model, speech.audio, stage, **settings), closures(speech)
    quiet = silent_frames(speech, len(gap)).numpy()
    settled = np.convolve(quiet, np.ones(6), "full")[: len(quiet)] > 5.5  # this frame and the five before
    return {
        "closures": len(at), "closure": closure_rate(gap, at),
        "closure_shifted": float(np.mean([closure_rate(gap, at, s) for s in SHIFTS])),
        "pause_aperture": float(gap[settled].mean() / np.percentile(gap, 90)) if settled.any() else None,
    }  # fmt: skip


def heard_shut(audio) -> np.ndarray:
    """(T,) posterior in [0, 1] that p, b or m is said in a frame, of the phone recogniser."""
    return features(audio, kind="phones")[:, [0, len(MOUTH_CLASSES)]].max(1)  # "closed", in both halves of a frame


def own_offset(gap, shut) -> tuple[float | None, float]:
    """By how many frames the picture of a file runs ahead of its sound: lips (T,) are shut that much before p, b, m are heard (T,).

    Returns the offset (None if hardly any such sound is heard) and the mean opening there over the median: near 0 is sure.
    """
    if shut.sum() < ENOUGH:
        return None, float("nan")
    T = min(len(gap), len(shut))
    mean = lambda d: np.average(gap[max(-d, 0) : T + min(-d, 0)], weights=shut[max(d, 0) : T + min(d, 0)] + 1e-9)  # noqa: E731
    depth = np.array([mean(d) for d in LAGS]) / max(np.median(gap), 1e-9)
    best = int(np.argmin(depth[1:-1])) + 1
    left, low, right = depth[best - 1 : best + 2]
    vertex = 0.5 * (left - right) / max(left + right - 2 * low, 1e-9)  # of the parabola through the three
    return float(LAGS[best] + np.clip(vertex, -1, 1) - LATE), float(low)


def lag_curve(made, real) -> dict[int, float]:
    """Correlation of made (T,) with real (T,) delayed by each of LAGS frames; positive: the made mouth comes later."""
    T = min(len(made), len(real))
    return {d: correlation(made[max(d, 0) : T + min(d, 0)], real[max(-d, 0) : T - max(d, 0)]) for d in LAGS}


def compare(model, video, stage: Stage, seed: int = 0, **settings) -> dict:
    """Drive the template with the sound of a video of somebody talking, and compare its mouth with theirs.

    Returns `real_mouth_corr`, the best correlation within a frame of the file's own offset (of 0 where that is not known), its
    `lag`, `at_zero`, `own_offset`, `own_depth`, `loudness_corr`, and the curves `made`, `real`, `by_lag`.
    Raises InputError: no sound, no face.
    """
    audio, real = load_audio(video), real_mouth(video)
    made = apertures(model, audio, stage, seed, **settings)
    offset, depth = own_offset(real, heard_shut(audio))
    by_lag = lag_curve(made, real)
    lag = max((d for d in LAGS if abs(d - (offset or 0)) <= 1), key=by_lag.get)
    T = min(len(real), len(made))
    return {
        "real_mouth_corr": by_lag[lag], "lag": lag, "at_zero": by_lag[0], "own_offset": offset, "own_depth": depth,
        "loudness_corr": correlation(loudness(audio)[:T], real[:T]), "made": made, "real": real, "by_lag": by_lag,
    }  # fmt: skip
