"""Table 2 where it concerns embedding and refinement, in small: every part taken out in turn, over several seeds.

The paper gives one number per cell. Small networks, trained for a minute or less, differ from seed to seed by more than some parts
are worth: each effect is therefore the mean of the differences to the full model of the same seed, with its 95% interval
(Student's t); an interval that holds zero shows no effect.
"""

from dataclasses import replace

import numpy as np

from aa.batches import Clips
from aa.dit import MotionConfig
from aa.embedding import EmbeddingConfig, recall
from aa.motion import MotionModel
from aa.motion_metrics import Judge
from aa.motion_training import train_motion
from aa.parts import Basis

# What is taken out -> fields that are changed, of (EmbeddingConfig, MotionConfig).
VARIANTS = {
    "full": ({}, {}),
    "no embedding": ({}, {"embedded": False}),
    "no frame contrast": ({"frame_weight": 0.0}, {}),
    "no patch contrast": ({"patch_weight": 0.0}, {}),
    "no refiner": ({}, {"refine": False}),
}
SMALL = MotionConfig(width=64, layers=2, refiner_width=64, refiner_layers=1)
SMALL_EMBEDDING = EmbeddingConfig(width=64)
REPORTED = ("recall1_frame", "recall1_patch", "lip_corr", "lip_local_mm", "closure", "jitter_ratio")


def ablations(judge: Judge, basis: Basis, clips: list[dict], test: list, held_out: list[dict], *, seeds: int = 3,
              steps=(120, 240, 80), variants=tuple(VARIANTS), folder=None, progress: bool = False) -> dict[str, dict]:  # fmt: skip
    """Train each variant once per seed and measure it.

    Args: judge, of any model on this basis; clips to train on; test, recipes to generate; held_out, clips for retrieval; steps
        of embedding, diffusion and refiner. Returns variant -> {"rows": [figures of each seed], "effect": {figure: (mean, low,
        high) of the difference to "full"}}.
    """
    from tqdm.auto import tqdm

    rows = {name: [] for name in variants}
    for seed, name in tqdm([(s, n) for s in range(seeds) for n in variants], desc="ablations", disable=not progress):
        embedding, config = (replace(a, **b) for a, b in zip((SMALL_EMBEDDING, SMALL), VARIANTS[name]))
        place = None if folder is None else f"{folder}/{name.replace(' ', '-')}-{seed}"
        model, _ = train_motion(basis, clips, steps, seed, place, config=config, embedding=embedding)
        rows[name].append(measured(judge, model, test, held_out))
    return {name: {"rows": r, "effect": {k: interval([a[k] - b[k] for a, b in zip(r, rows["full"])]) for k in r[0]}}
            for name, r in rows.items()}  # fmt: skip


def measured(judge: Judge, model: MotionModel, test: list, held_out: list[dict]) -> dict[str, float]:
    """The figures of one model."""
    import torch

    source = Clips(held_out, model.basis.sizes, model.config, model.embedding.config.sound)
    W = model.config.window
    whole = [n for n, c in enumerate(source.coordinates) if len(c) >= W]
    stack = lambda x: torch.stack([x[n][:W] for n in whole])  # noqa: E731
    sound = (torch.stack([source.features[n][0, :W] for n in whole]) - model.sound_mean) / model.sound_std
    found = recall(model.embedding, stack(source.coordinates), sound, stack(source.silent))
    judge.model = model
    return {k: v for k, v in {**found, **judge(test)}.items() if k in REPORTED}


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95% confidence interval (low, high) by Student's t; without width for a single value."""
    from scipy.stats import t

    values = np.asarray(values, float)
    wide = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    mean = float(values.mean())
    return mean, mean - wide, mean + wide
