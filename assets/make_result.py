"""Makes assets/readme/result.png: for two shipped portraits, the picture and frames of the video that `talk` makes from it."""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from aa.audio import loudness
from aa.media import load_audio, read_video
from aa.talk import talk

HERE = Path(__file__).resolve().parent
PEOPLE, FRAMES, HEIGHT = ("ada", "bruno"), 5, 400


def strip(person: str, folder: Path) -> np.ndarray:
    """The portrait and a few moments of its video side by side, (HEIGHT, W, 3) uint8."""
    portrait, speech = HERE / "portraits" / f"{person}.png", HERE / "speech" / "hello.wav"
    frames, _, _ = read_video(talk(portrait, speech, folder / f"{person}.mp4", progress=False).path)
    loud = loudness(load_audio(speech), len(frames))
    picks = [max(block, key=lambda t: loud[t]) for block in np.array_split(np.arange(len(frames)), FRAMES)]
    pictures = [Image.open(portrait).convert("RGB"), *(Image.fromarray(frames[t]) for t in picks)]
    # Face and hands
    upper = [p.crop((0, 0, p.width, round(p.height * 0.62))) for p in pictures]
    return np.concatenate([np.asarray(p.resize((round(HEIGHT * p.width / p.height), HEIGHT))) for p in upper], 1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        rows = np.concatenate([strip(person, Path(folder)) for person in PEOPLE])
    out = HERE / "readme" / "result.png"
    out.parent.mkdir(exist_ok=True)
    part = out.with_name(".result.part.png")
    Image.fromarray(rows).quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(part, optimize=True)
    part.replace(out)
