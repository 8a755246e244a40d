"""Training sets of clips (3.3, Fig. 6): many people, sentences, voices and framings, from two sources that complement each other.

`studio-sync` plays the audio-driven video model: lips and gestures belong to the sound, the picture suffers. `studio-hq` plays the
large foundation model: a clean picture whose motion belongs to another sentence. Footage of real large models comes in as clips
of other sources ("wan", "own"): whatever writes a `Clip` folder can be read back by `load_set`.
"""

import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from aa.clips import Clip, DiskFull, intact, is_disk_full, read_facts, save_json
from aa.errors import InputError
from aa.media import FPS, SAMPLE_RATE
from aa.threads import cores

SOURCES = ("studio-hq", "studio-sync")
FRAMINGS = ("upper", "upper", "face", "full")  # half of the clips show the upper body


@dataclass(frozen=True)
class Recipe:
    """What one clip is made of; everything in it follows from this."""

    name: str  # of the clip's folder
    text: str  # what is said
    source: str = "studio-sync"  # one of SOURCES
    moves: str = ""  # the sentence that the motion belongs to; empty: `text`
    voice: str = "us-woman"
    rate: float = 1.0
    identity: int = 0  # seed of the person
    performance: int = 0  # seed of the gestures and of the performer's style
    artefacts: int = 0  # seed of the damage to the picture and of the drift
    framing: str = "upper"  # kind of `camera`
    azimuth: float = 0.0  # rad
    frames: int = 75
    width: int = 256
    height: int = 256
    samples: int = 2  # samples x samples rays a pixel
    particles: int = 10_000  # size of the layout whose particles are tracked, 0: no tracks


def make_recipes(
    count: int, size: int | tuple[int, int] = 256, seed: int = 0, split: str = "train", hybrid: float | bool | None = 0.5,
    alone: str = "studio-sync", seconds: float = 3.0, framings=FRAMINGS, clips_per_person: int = 4, voices=None,
    samples: int = 2, particles: int = 10_000,
) -> list[Recipe]:  # fmt: skip
    """Recipes of a set; number k does not depend on `count`, so a set can be extended.

    Args: size px, or (width, height); split "train" or "held-out", of people and sentences; hybrid: share of studio-hq in the mix,
        None or False turns the strategy off and everything comes from the source `alone`; voices: names of `aa.speech.VOICES`.
    """
    from aa.speech import VOICES, sentences

    if alone not in SOURCES:
        raise InputError(f'there is no source "{alone}": choose one of {", ".join(SOURCES)}.')
    share = float(alone == "studio-hq") if hybrid is None or hybrid is False else float(hybrid)
    if not 0 <= share <= 1:
        raise InputError(f"the share of studio-hq is {hybrid}: give a number from 0 to 1, or None for no hybrid.")
    if not 0.2 <= seconds <= 60:
        raise InputError(f"a clip of {seconds} s was asked for: give between 0.2 and 60 s.")
    width, height = (size, size) if np.isscalar(size) else size
    if not (16 <= width <= 4096 and 16 <= height <= 4096):
        raise InputError(f"pictures of {width} x {height} px were asked for: give sides between 16 and 4096.")
    texts, cast = sentences(split), cast_seeds(split, seed, -(-count // clips_per_person))
    voices = tuple(voices or VOICES)
    out = []
    for k in range(count):
        rng = np.random.default_rng([seed, k])
        text, other = (texts[i] for i in rng.choice(len(texts), 2, replace=False))
        numbers = [int(n) for n in rng.integers(1, 2**31, 2)]
        source = SOURCES[int((k + 1) * share + 1e-9) == int(k * share + 1e-9)]  # evenly spread, exact in every long enough run
        out.append(
            Recipe(
                f"clip_{k:04d}",
                text,
                source,
                other if source == "studio-hq" else "",
                voices[int(rng.integers(len(voices)))],
                float(np.round(rng.uniform(0.9, 1.15), 3)),
                cast[k // clips_per_person],
                *numbers,
                framings[int(rng.integers(len(framings)))],
                float(np.round(rng.normal() * 0.12, 3)),
                round(seconds * FPS),
                int(width),
                int(height),
                samples,
                particles,
            )
        )
    return out


def cast_seeds(split: str, seed: int, count: int) -> list[int]:
    """Identity seeds (count,) of the studio's people of a split, shuffled, and repeated when there are fewer."""
    from aa.identities import people

    everyone = sorted(p.seed for p in people(split).values())
    return [
        int(np.random.default_rng([seed, 1, k // len(everyone)]).permutation(everyone)[k % len(everyone)]) for k in range(count)
    ]


def cut_speech(speech, frames: int):
    """The first `frames` video frames of a speech, padded with silence when it is shorter; it ends when the clip does."""
    from aa.speech import SILENCE

    end, n = frames / FPS, round(frames / FPS * SAMPLE_RATE)
    audio = np.pad(speech.audio[:n], (0, max(0, n - len(speech.audio)))).astype(np.float32)
    cut = lambda items: [(s, a, min(b, end)) for s, a, b in items if a < end]  # noqa: E731
    phonemes = cut(speech.phonemes)
    if speech.duration < end:
        phonemes.append((SILENCE, speech.duration, end))
    return replace(speech, audio=audio, phonemes=phonemes, words=cut(speech.words))


def film_recipe(recipe: Recipe, stage=None, body=None) -> Clip:
    """The clip of a recipe; `stage` of the recipe's person saves the seconds of making one."""
    import torch

    from aa.body import load_body
    from aa.gaussians import load_layout
    from aa.identities import sample_identity
    from aa.performer import Style, perform
    from aa.speech import speak
    from aa.studio import SYNC, Stage, film

    if recipe.source not in SOURCES:
        raise InputError(f'the studio has no source "{recipe.source}": choose one of {", ".join(SOURCES)}.')
    body = body or load_body()
    stage = stage or Stage(body, sample_identity(recipe.identity))
    heard = cut_speech(speak(recipe.text, recipe.voice, recipe.rate), recipe.frames)
    acted = heard if not recipe.moves else cut_speech(speak(recipe.moves, recipe.voice, recipe.rate), recipe.frames)
    style = Style.sample(torch.Generator().manual_seed(recipe.performance))
    performance = perform(body, acted, recipe.performance, style)
    layout = load_layout(body, recipe.particles) if recipe.particles else None
    facts = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    return film(
        body, stage, performance, layout, width=recipe.width, height=recipe.height, supersample=recipe.samples,
        artefacts=SYNC if recipe.source == "studio-sync" else None, seed=recipe.artefacts, speech=heard,
        framing=recipe.framing, azimuth=recipe.azimuth, seeds=facts,
    )  # fmt: skip


def make_set(
    folder, recipes: int | list[Recipe], workers: int | None = None, progress: bool = True, device: str = "cpu", **settings
) -> "ClipSet":  # fmt: skip
    """Film a training set into `folder`, one clip a sub-folder; call it again to finish or to extend it.

    Args: recipes, or how many to draw by `make_recipes(count, **settings)` (size, seed, split, hybrid, ...); workers: processes,
        by default one a core (1: this process; a script that uses more must keep its own code below `if __name__ ==
        "__main__":`); the files do not depend on it. Whole clips are kept, missing and damaged ones are made.
    Raises: InputError when the folder holds another set; `DiskFull` when the disk fills up: finished clips are kept.
    """
    from tqdm.auto import tqdm

    folder = Path(folder)
    chosen = make_recipes(recipes, **settings) if isinstance(recipes, int) else list(recipes)
    if len({r.name for r in chosen}) < len(chosen):
        raise InputError("two recipes have the same name: every clip needs its own folder.")
    _claim(folder, chosen)
    missing = [r for r in chosen if not _is_made(folder / r.name, r)]
    with tqdm(total=len(chosen), initial=len(chosen) - len(missing), desc="clips", unit="clip", disable=not progress) as bar:
        try:
            for _ in _made(folder, missing, workers, device):
                bar.update()
        except Exception as error:
            if not is_disk_full(error) and not isinstance(error, DiskFull):
                raise
            done = sum(_is_made(folder / r.name, r) for r in chosen)
            raise DiskFull(
                f"the disk is full: {done} of {len(chosen)} clips in {folder} are finished and kept; "
                "make room and run the same again, it goes on from there."
            ) from error
    return load_set(folder)


def _claim(folder: Path, chosen: list[Recipe]) -> None:
    """Write the manifest, unless the folder belongs to another set."""
    recipes = [asdict(r) for r in chosen]
    if (folder / "set.json").exists():
        old = _manifest(folder)["recipes"]
        new = {r["name"]: r for r in recipes}
        if any(r["name"] in new and r != new[r["name"]] for r in old):
            raise InputError(f"{folder} holds another set of clips: choose another folder, or the settings it was made with.")
        recipes += [r for r in old if r["name"] not in new]
    elif folder.is_dir() and not all((p / "clip.json").exists() or p.name.endswith(".part") for p in folder.iterdir()):
        raise InputError(f"{folder} holds other files: give an empty or a new folder for the set.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_json(folder / "set.json", {"kind": "clips", "recipes": sorted(recipes, key=lambda r: r["name"])})
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull(f"the disk is full: {folder} could not be written; make room and try again.") from error
        raise InputError(f"cannot write into {folder} ({error.strerror}): choose another place for the set.") from error


def _manifest(folder: Path) -> dict:
    import json

    try:
        return json.loads((folder / "set.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no set of clips: give a folder that make_set has written.") from error
    except ValueError as error:
        raise InputError(f"{folder / 'set.json'} is damaged: delete it and make the set anew; whole clips are kept.") from error


def _is_made(folder: Path, recipe: Recipe) -> bool:
    return intact(folder) and all(read_facts(folder)["seeds"].get(k) == v for k, v in asdict(recipe).items())


def _made(folder: Path, missing: list[Recipe], workers: int | None, device: str) -> Iterator[str]:
    """Make clips, a person at a time; yields the names of finished ones."""
    people = {}
    for recipe in missing:
        people.setdefault(recipe.identity, []).append(recipe)
    workers = min(cores() if workers is None else max(1, workers), len(missing))
    if workers <= 1:
        yield from (name for group in people.values() for name in _film_person(folder, group, device, None))
        return
    import multiprocessing

    # a person's clips share a stage; with few people each worker makes its own, so that no core waits at the end
    most = max(1, len(missing) // (2 * workers))
    groups = [group[k : k + most] for group in people.values() for k in range(0, len(group), most)]
    groups.sort(key=len, reverse=True)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _alone) as pool:
        futures = [pool.submit(_film_all, folder, group, device) for group in groups]
        try:
            for future in as_completed(futures):
                yield from future.result()
        except BrokenProcessPool as error:
            raise InputError(
                'a worker process died: out of memory, or a script without `if __name__ == "__main__":`; try workers=1.'
            ) from error
        finally:
            for future in futures:  # after an error: no new ones, those under way end well
                future.cancel()


def _alone() -> None:
    """A worker has one core."""
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def _film_all(folder, group, device) -> list[str]:
    return list(_film_person(folder, group, device, 1))


def _film_person(folder: Path, group: list[Recipe], device: str, threads: int | None) -> Iterator[str]:
    """Film and save the clips of one person; yields their names."""
    from aa.body import load_body
    from aa.identities import sample_identity
    from aa.stage import Stage

    body = load_body(device)
    stage = Stage(body, sample_identity(group[0].identity), device, threads)
    for recipe in group:
        film_recipe(recipe, stage, body).save(folder / recipe.name)
        yield recipe.name


class ClipSet:
    """A folder of clips: `len`, indexing and iteration read one clip at a time, without its pictures (`clip.load_frames()`)."""

    def __init__(self, folder, names: list[str]):
        self.folder, self.names = Path(folder), names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, k):
        if isinstance(k, slice):
            return ClipSet(self.folder, self.names[k])
        return Clip.load(self.folder / self.names[k], frames=False)

    def load(self, k: int, frames: bool = True, only=None) -> Clip:
        """Clip k with its pictures or with some arrays only: see `Clip.load`."""
        return Clip.load(self.folder / self.names[k], frames, only)

    def facts(self, k: int) -> dict:
        """What is written about clip k (source, seeds, phonemes, ...), without reading its arrays."""
        return read_facts(self.folder / self.names[k])

    def of(self, source: str) -> "ClipSet":
        """The clips of one source."""
        return ClipSet(self.folder, [n for k, n in enumerate(self.names) if self.facts(k)["source"] == source])


def load_set(folder) -> ClipSet:
    """The finished clips of a set, in the order of their names; InputError when there is no set."""
    folder = Path(folder)
    if (folder / "set.json").exists() or not folder.is_dir():
        _manifest(folder)
    names = sorted(p.parent.name for p in folder.glob("*/clip.json") if not p.parent.name.startswith("."))
    if not names and not (folder / "set.json").exists():
        raise InputError(f"{folder} holds no set of clips: give a folder that make_set has written.")
    return ClipSet(folder, names)
