"""What the tiny teacher is trained on: short close-ups of many of the studio's people, clean and in time with their sound.

A clip is filmed through a camera that looks at the face, or at head and arms, and kept with its outline, where the face is, and
what is heard. Windows of it are cut at training time: a reference frame from elsewhere in the clip, another place in the picture,
mirrored, before another background.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from aa.errors import InputError
from aa.footage import Recipe, cut_speech, make_recipes
from aa.media import replacing

VERSION = 1  # raise it when the same recipe gives another clip
KINDS = ("face", "upper")  # close-ups: from brows to chin; head, chest and arms
# Side of the close-up and how far its centre lies below the chin, in heights of the face (crown of the brow to chin, as tracked).
CUTS = {"face": (0.85, -0.38), "upper": (4.4, 1.0)}
MARGIN = 1.25  # clips are filmed that much wider, so that windows can be cut where the head has gone
STRANGERS = 10_000  # seeds from here on: people of nobody's cast
PARTICLES = 10_000  # of the layout whose face is tracked


def close_up(points: Tensor, kind: str = "face") -> Tensor:
    """Face particles (..., P, 2) in px, seen or not -> (..., 3): centre x, y and side of the square close-up, px."""
    low, high = points.amin(-2), points.amax(-2)
    side, below = CUTS[kind]
    height = high[..., 1] - low[..., 1]
    return torch.stack([(low[..., 0] + high[..., 0]) / 2, high[..., 1] + below * height, side * height], -1)


def crop_camera(K: Tensor, box: Tensor, size: int) -> Tensor:
    """Intrinsics (3, 3) of the camera that sees only square `box` (3,) of `close_up`, in size x size px."""
    x, y, side = (float(v) for v in box)
    scale = size / side
    move = torch.tensor([[scale, 0, scale * (side / 2 - x)], [0, scale, scale * (side / 2 - y)], [0, 0, 1.0]])
    return move.to(K) @ K


def close_up_recipes(count: int, seed: int = 0, split: str = "train", seconds: float = 2.4) -> list[Recipe]:
    """Clips of clean pictures whose motion belongs to the sound; two in three show the face. In training three people in four are
    drawn for the purpose; held-out people, sentences and no one else's are in the other split."""
    chosen = make_recipes(count, 80, seed, split, None, "studio-hq", seconds, ("face", "face", "upper"), 4, None, 2, PARTICLES)
    out = []
    for k, r in enumerate(chosen):
        group = k // 4
        person = STRANGERS * (1 + seed) + group if split == "train" and group % 4 else r.identity
        out.append(replace(r, name=f"{split}_{k:04d}", moves="", identity=person))
    return out


def film_close_up(recipe: Recipe, stage=None, body=None) -> dict[str, Tensor]:
    """frames (T, S, S, 3) and mask (T, S, S) uint8, box (T, 3) of the close-up in them, sound (takes, T, F) float16, kind.

    `stage` of the recipe's person saves the seconds of making one.
    """
    from aa.audio import augment, features
    from aa.body import load_body
    from aa.gaussians import load_layout
    from aa.identities import sample_identity
    from aa.performer import Style, perform
    from aa.speech import speak
    from aa.stage import camera
    from aa.studio import Stage, film

    body = body or load_body()
    stage = stage or Stage(body, sample_identity(recipe.identity))
    layout = load_layout(body, recipe.particles)
    face = (layout.part == 1).nonzero()[:, 0]
    speech = cut_speech(speak(recipe.text, recipe.voice, recipe.rate), recipe.frames)
    style = Style.sample(torch.Generator().manual_seed(recipe.performance))
    performance = perform(body, speech, recipe.performance, style)
    K, view = camera(recipe.framing, recipe.width, recipe.height, recipe.azimuth, stage.body)
    rest = layout.place(stage.body.v_template)[face].float()
    seen = (rest @ view[:3, :3].T + view[:3, 3]) @ K.T
    box = close_up(seen[:, :2] / seen[:, 2:], recipe.framing)
    box[2] *= MARGIN
    clip = film(
        body, stage, performance, layout, crop_camera(K, box, recipe.width), view, recipe.width, recipe.height, recipe.samples,
        particles=face.numpy(), speech=speech,
    )  # fmt: skip
    rng = np.random.default_rng(recipe.performance)
    takes = [speech.audio, augment(speech.audio, rng)]
    heard = np.stack([features(a, recipe.frames) for a in takes])
    return {
        "frames": torch.from_numpy(clip.frames), "mask": torch.from_numpy(255 * clip.mask.astype(np.uint8)),
        "box": close_up(torch.from_numpy(clip.tracks).transpose(0, 1).float(), recipe.framing),
        "sound": torch.from_numpy(heard).half(), "kind": torch.tensor(KINDS.index(recipe.framing)),
    }  # fmt: skip


def clip_file(folder, recipe: Recipe) -> Path:
    """Where a clip is kept; another recipe has another name."""
    return Path(folder) / f"{recipe.name}-{hashlib.sha256(f'{VERSION}{asdict(recipe)}'.encode()).hexdigest()[:10]}.safetensors"


def film_all(folder, recipes: list[Recipe], progress: bool = False, workers: int = 1) -> list[Path]:
    """Files of all clips, in order; those that are there are kept, so that an interrupted run goes on. A person's clips share a
    stage. `workers`: processes (a script that uses more keeps its own code below `if __name__ == "__main__":`)."""
    from tqdm.auto import tqdm

    Path(folder).mkdir(parents=True, exist_ok=True)
    missing = [r for r in recipes if not clip_file(folder, r).exists()]
    people: dict[int, list[Recipe]] = {}
    for r in missing:
        people.setdefault(r.identity, []).append(r)
    with tqdm(total=len(recipes), initial=len(recipes) - len(missing), desc="close-ups", disable=not progress) as bar:
        if workers > 1 and len(people) > 1:
            import multiprocessing
            from concurrent.futures import ProcessPoolExecutor, as_completed

            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                for job in as_completed([pool.submit(_film_whole, folder, g) for g in people.values()]):
                    bar.update(job.result())
        else:
            for _ in (x for group in people.values() for x in _film_person(folder, group)):
                bar.update()
    return [clip_file(folder, r) for r in recipes]


def _film_whole(folder, group: list[Recipe]) -> int:
    torch.set_num_threads(1)
    return sum(1 for _ in _film_person(folder, group, 1))


def _film_person(folder, group: list[Recipe], threads: int | None = None) -> Iterator[Path]:
    from aa.body import load_body
    from aa.identities import sample_identity
    from aa.studio import Stage

    body = load_body()
    stage = Stage(body, sample_identity(group[0].identity), "cpu", threads)
    for recipe in group:
        path = clip_file(folder, recipe)
        with replacing(path) as part:
            save_file({k: v.contiguous() for k, v in film_close_up(recipe, stage, body).items()}, part)
        yield path


class Windows:
    """Clips on disk as a source of windows: T frames, every `stride`-th; only what is asked for is read.

    Args: files of `film_all`; size px of the pictures; context: rows of sound on either side of a frame.
    """

    def __init__(self, files: list[Path], frames: int = 9, stride: int = 2, size: int = 64, context: int = 3):
        if not files:
            raise InputError("there are no close-ups to train on: film some first (aa.teacher_data.film_all).")
        self.frames, self.stride, self.size, self.context = frames, stride, size, context
        self.open, self.sound, self.box, self.kind = [], [], [], []
        for path in files:
            try:
                f = safe_open(path, "pt")
                self.sound.append(f.get_tensor("sound").float())
                self.box.append(f.get_tensor("box"))
                self.kind.append(int(f.get_tensor("kind")))
            except (OSError, SafetensorError) as error:
                raise InputError(f"{path} is missing or damaged: delete it and film the close-ups again.") from error
            self.open.append(f)
            if len(self.box[-1]) <= self.reach:
                raise InputError(f"{path} has {len(self.box[-1])} frames: windows need more than {self.reach}.")

    @property
    def reach(self) -> int:
        """Frames at 25 fps that a window spans."""
        return (self.frames - 1) * self.stride + 1

    def __len__(self) -> int:
        return len(self.sound)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (F,) of the sound features."""
        rows = torch.cat([s.flatten(0, 1) for s in self.sound])
        return rows.mean(0), rows.std(0).clamp_min(0.1)

    def rows(self, clip: int, take: int = 0) -> Tensor:
        """Everything heard in a clip, (N, F)."""
        return self.sound[clip][min(take, len(self.sound[clip]) - 1)]

    def whole(self, clip: int) -> Tensor:
        """All frames of a clip (N, size, size, 3) in [0, 1], cut at one place."""
        return self._cut(clip, slice(0, len(self.box[clip]), 1), torch.zeros(2), None)

    def pictures(
        self, clip: int, start: int, other: int, jitter=(0, 0), mirror: bool = False, backdrop=None
    ) -> tuple[Tensor, Tensor]:
        """Frames (T, size, size, 3) in [0, 1] from `start` on and frame `other` (size, size, 3), both cut around the face.

        jitter: px by which the close-up is off; mirror: left becomes right; backdrop: colour (3,) put behind the person.
        """
        far = torch.tensor(jitter).float()
        shots = (slice(start, start + self.reach, self.stride), slice(other, other + 1))
        x, image = (self._cut(clip, at, far, backdrop) for at in shots)
        return (x.flip(2), image[0].flip(1)) if mirror else (x, image[0])

    def _cut(self, clip: int, at: slice, jitter: Tensor, backdrop) -> Tensor:
        """Frames (n, size, size, 3) in [0, 1] around where the face is on average."""
        read = lambda name: self.open[clip].get_slice(name)[at.start : at.stop][:: at.step].float() / 255  # noqa: E731
        x = read("frames")
        if backdrop is not None:
            alpha = F.avg_pool2d(F.pad(read("mask"), (1, 1, 1, 1), mode="replicate"), 3, 1)[..., None]
            x = alpha * x + (1 - alpha) * torch.as_tensor(backdrop).float()
        corner = self.box[clip][at, :2].mean(0) + jitter - self.size / 2
        x0, y0 = (int(v) for v in corner.round().clamp(0, x.shape[1] - self.size))
        return x[:, y0 : y0 + self.size, x0 : x0 + self.size]

    def draw(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Random windows: frames (B, T, S, S, 3), image (B, S, S, 3), rows (B, T, 2 context + 1, F), kind (B,)."""
        out = []
        for clip in rng.integers(len(self), size=size):
            T = len(self.box[clip])
            start, mirror = int(rng.integers(T - self.reach + 1)), bool(rng.random() < 0.5)
            far = [t for t in range(T) if t < start - 12 or t >= start + self.reach + 12] or [0, T - 1]
            backdrop = rng.uniform(0, 1, 3) if rng.random() < 0.5 else None
            jitter = rng.integers(-5, 6, 2)  # px: scenes are framed once, and the head moves in them
            x, image = self.pictures(clip, start, int(rng.choice(far)), jitter, mirror, backdrop)
            rows = cut_rows(self.rows(clip, int(rng.integers(2))), [start], self.frames, self.stride, self.context)[0]
            out.append((x, image, rows, torch.tensor(self.kind[clip])))
        return tuple(torch.stack(v) for v in zip(*out))


def cut_rows(rows: Tensor, starts, frames: int, stride: int, context: int) -> Tensor:
    """Rows (N, F) at 25 fps -> (B, T, 2 context + 1, F) around the frames of windows that begin at `starts`; ends are repeated."""
    starts = torch.as_tensor(starts, device=rows.device).reshape(-1, 1, 1)
    at = (
        starts
        + stride * torch.arange(frames, device=rows.device)[:, None]
        + torch.arange(-context, context + 1, device=rows.device)
    )
    return rows[at.clamp(0, len(rows) - 1)]
