"""Training data of the motion model: performed recipes as coordinates in the particle basis, with the sound they go with.

Recipes (`aa.motion_recipes`) are performed by several people and styles, carried to the template body where they were made on
another one, and written clip by clip, so that an interrupted run goes on where it stopped.
"""

import hashlib
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from aa.audio import features
from aa.body import Body
from aa.media import FPS, replacing
from aa.motion_recipes import VOICES_TRAIN, VOICES_UNSEEN, Recipe, recipes, sound_of, takes_of
from aa.parts import Basis, Parts, fit_basis, make_parts, split_parts, vertex_weights
from aa.performer import Style, at_ease, perform
from aa.speech import SILENCE, Speech
from aa.transfer import Deformation, Transfer, motion_from_rest
from aa.visemes import BILABIAL, LIP_LOWER, LIP_UPPER, SKULL_FRONT, SKULL_TOP, UPPER_TEETH, lip_aperture, segments

__all__ = [
    "VOICES_TRAIN", "VOICES_UNSEEN", "Recipe", "Stage", "closures", "learn_basis", "make_clip", "make_clips", "recipes",
    "silent_frames", "sound_of", "takes_of",
]  # fmt: skip

VERSION = 4  # raise it when the same recipe gives another clip, so that clips on disk are made anew


class Stage:
    """The template body at ease and what is needed to turn performances into its motion dG."""

    def __init__(self, body: Body):
        self.body = body
        self.ease = at_ease(body).to(body.v_template)
        vertices, rotations = body.pose(rotvecs=self.ease)
        self.rest, self.turns, self.ids = vertices, rotations, None
        self.parts: Parts = make_parts(body, vertices)
        self.weights = vertex_weights(body, self.parts)

    def motion(self, recipe: Recipe, speech: Speech, every: int = 1) -> Deformation:
        """dG (T, V, 3) on the template of a performed recipe, every so many frames."""
        g = torch.Generator().manual_seed(recipe.seed)
        # How wide somebody opens the mouth cannot be heard; people differ in gestures, not in that.
        style = replace(Style.sample(g), expressiveness=1.0)
        played = perform(self.body, speech, recipe.seed, style)
        if not recipe.person:
            v, R = self.body.pose(None, played.rotvecs[::every], played.actions[::every])
            return motion_from_rest(v, R, self.rest, self.turns)
        betas = torch.randn(len(self.body.shape_dirs), generator=g).clamp(-2, 2)
        rest, turns = self.body.pose(betas, self.ease)
        v, R = self.body.pose(betas, played.rotvecs[::every], played.actions[::every])
        return Transfer(self.body, rest, self.rest)(motion_from_rest(v, R, rest, turns))

    def sparse(self, body_each: int = 20, face_each: int = 8) -> torch.Tensor:
        """Vertices (n,), about one in ten, from which the coordinates of articulated motion can be read as well as from all."""
        p = self.parts
        lips = torch.tensor([LIP_UPPER, LIP_LOWER, SKULL_TOP, SKULL_FRONT, UPPER_TEETH], device=p.rest.device)
        some = [p.body[::body_each], p.face[::face_each], p.hand[:: face_each // 2], lips]
        return torch.unique(torch.cat([*some, *(v[:: 1 + len(v) // 60] for v in p.frames.values())]))

    def select(self, vertices: torch.Tensor) -> "Stage":
        """The stage reduced to some vertices (n,): motion is (T, n, 3), ten times cheaper. For the template person only."""
        out = copy(self)
        out.body, out.parts = self.body.select(vertices), self.parts.select(vertices)
        out.rest, out.turns, out.ids = self.rest[vertices], self.turns[vertices], vertices
        return out

    def lips(self, motion: Deformation) -> torch.Tensor:
        """Inner-lip aperture (T,) m."""
        moved = self.rest + motion.means
        if self.ids is not None:
            full = moved.new_zeros(len(moved), int(self.ids.max()) + 1, 3)
            full[:, self.ids] = moved
            moved = full
        return lip_aperture(moved)


def closures(speech: Speech) -> torch.Tensor:
    """Frames (m,) at the middle of each p, b, m."""
    parts = segments(speech.phonemes, speech.duration)
    return torch.tensor([int((s.start + s.end) / 2 * FPS) for s in parts if s.symbol in BILABIAL], dtype=torch.long)


def silent_frames(speech: Speech, frames: int) -> torch.Tensor:
    """(T,) bool: nothing is said, and no breath drawn, at the frame's centre nor 60 ms around it."""
    centre = (torch.arange(frames) + 0.5) / FPS
    busy = torch.zeros(frames, dtype=torch.bool)
    for symbol, a, b in [*speech.phonemes, *(("breath", a, b) for a, b, _ in speech.breaths)]:
        if symbol not in ("", SILENCE):
            busy |= (centre > a - 0.06) & (centre < b + 0.06)
    return ~busy


def learn_basis(stage: Stage, chosen: list[Recipe], every: int = 9) -> Basis:
    """PCA bases from every so many frames of the chosen clips."""
    splits = [split_parts(stage.parts, stage.motion(r, sound_of(r), every)) for r in chosen]
    return fit_basis(stage.parts, splits, stage.weights)


def make_clip(
    stage: Stage, basis: Basis, recipe: Recipe, reduced: tuple[Stage, Basis] | None = None, sound: str = "phones"
) -> dict[str, torch.Tensor]:
    """One clip: coordinates (T, K), features (takes, T, F) of the kind `sound`, silent (T,), aperture (T,) m, closures (m,).

    `reduced`: stage and basis on few vertices, for speed; a motion that was carried over from another person needs all of them.
    """
    speech = sound_of(recipe)
    if reduced is not None and not recipe.person:
        stage, basis = reduced
    motion = stage.motion(recipe, speech)
    T = len(motion)
    heard = np.stack([features(a, T, sound) for a in takes_of(recipe, speech)])
    return {
        "coordinates": basis.encode(motion), "features": torch.from_numpy(heard).half(), "silent": silent_frames(speech, T),
        "aperture": stage.lips(motion), "closures": closures(speech),
    }  # fmt: skip


def clip_key(basis: Basis, sound: str = "phones") -> str:
    """What clips depend on besides their recipe: VERSION, the basis and the kind of features; part of the name of a kept clip."""
    digest = hashlib.sha256(f"{VERSION} {sound}".encode())
    for name, tensor in sorted(basis.tensors().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


def clip_path(folder, recipe: Recipe, key: str) -> Path:
    """Where `make_clips` keeps a clip; another recipe of the same number has another name."""
    return Path(folder) / f"{recipe.seed:08d}-{key}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]}.safetensors"


def make_clips(
    stage: Stage, basis: Basis, chosen: list[Recipe], folder=None, progress: bool = False, sound: str = "phones", workers: int = 1
) -> list[dict]:
    """All clips; in `folder`, those that are there already are read instead of made. `workers`: processes, which need a folder, and
    a script that keeps its own code below `if __name__ == "__main__":`; the clips do not depend on them."""
    from tqdm.auto import tqdm

    key = clip_key(basis, sound)
    if folder is None:
        return [c for _, c in _made(stage, basis, tqdm(chosen, desc="clips", disable=not progress), sound)]
    missing = [r for r in chosen if not clip_path(folder, r, key).exists()]
    with tqdm(total=len(chosen), initial=len(chosen) - len(missing), desc="clips", disable=not progress) as bar:
        if workers <= 1 or len(missing) < 8:
            for recipe, clip in _made(stage, basis, missing, sound):
                _keep(clip, clip_path(folder, recipe, key))
                bar.update()
        else:
            for count in _in_processes(basis, missing, folder, sound, workers):
                bar.update(count)
    return [load_file(clip_path(folder, r, key)) for r in chosen]


def _made(stage: Stage, basis: Basis, chosen, sound: str) -> Iterator[tuple[Recipe, dict]]:
    few = stage.sparse()
    reduced = stage.select(few), basis.select(few)
    for recipe in chosen:
        yield recipe, {k: v.contiguous() for k, v in make_clip(stage, basis, recipe, reduced, sound).items()}


def _keep(clip: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        save_file(clip, part)


def _in_processes(basis: Basis, missing: list[Recipe], folder, sound: str, workers: int) -> Iterator[int]:
    """Make clips in several processes, eight at a time; yields how many are finished."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(workers, spawn, _begin, (basis.tensors(),)) as pool:
        futures = [pool.submit(_make_some, missing[k : k + 8], str(folder), sound) for k in range(0, len(missing), 8)]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:  # after an error: no new ones, those under way end well
                future.cancel()


def _begin(tensors: dict[str, torch.Tensor]) -> None:
    """A worker has one core, and makes its own stage once."""
    from aa.body import load_body

    torch.set_num_threads(1)
    _worker["stage"], _worker["basis"] = Stage(load_body()), Basis.from_tensors(tensors)


_worker: dict = {}  # of a process of `_in_processes`


def _make_some(chosen: list[Recipe], folder: str, sound: str) -> int:
    key = clip_key(_worker["basis"], sound)
    for recipe, clip in _made(_worker["stage"], _worker["basis"], chosen, sound):
        _keep(clip, clip_path(folder, recipe, key))
    return len(chosen)
