"""Plots for the notebooks. Every helper returns the figure and takes `ax=None`; `alt` shows it with alternative text.

Colours are cividis/viridis, always with line styles or markers beside them, so that nothing hangs on colour alone.
matplotlib is imported inside the helpers: the command line never waits for it.
"""

import base64
import html
import io
from itertools import cycle
from pathlib import Path

import numpy as np

from aa.media import FPS, SAMPLE_RATE, replacing

VIDEO_LIMIT = 2_000_000  # bytes of video that a notebook may hold, so that GitHub still shows it
JPEG_SHARE = 0.8  # of the size of a PNG with 256 colours, below which a picture is shown as JPEG
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*X"


def _axes(ax, width: float, height: float):
    """(figure, axes): a new figure in inches, or the one `ax` is on."""
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax.figure, ax


def as_uint8(picture) -> np.ndarray:
    """(H, W) or (H, W, 3|4) uint8 or float in [0, 1], numpy or torch on any device -> (H, W, 3) uint8."""
    if hasattr(picture, "detach"):
        picture = picture.detach().cpu().numpy()
    picture = np.asarray(picture)
    if picture.dtype != np.uint8:
        picture = (np.nan_to_num(picture.astype(np.float64)).clip(0, 1) * 255).round().astype(np.uint8)
    if picture.ndim == 2:
        picture = picture[..., None].repeat(3, axis=2)
    if picture.ndim != 3 or picture.shape[2] not in (3, 4):
        raise ValueError(f"a picture must be (H, W) or (H, W, 3), got {picture.shape}")
    return picture[..., :3]


# ---------------------------------------------------------------- pictures


def contact_sheet(frames, columns: int = 6, titles=None, width: float = 10):
    """Frames (T, H, W, 3) or a list of pictures of one shape in a grid; `titles`: one short text each. Figure, in inches."""
    import matplotlib.pyplot as plt

    frames = [as_uint8(frame) for frame in frames]
    if not frames:
        raise ValueError("contact_sheet needs at least one frame")
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    cell, ratio = width / columns, frames[0].shape[0] / frames[0].shape[1]
    room = 0.25 if titles is not None else 0.05
    figure, axes = plt.subplots(rows, columns, figsize=(width, rows * (cell * ratio + room)), squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for number, (ax, frame) in enumerate(zip(axes.flat, frames)):
        ax.imshow(frame)
        if titles is not None:
            ax.set_title(str(titles[number]), fontsize=8)
    return figure


def compare_frames(a, b, names=("a", "b"), gain: float = 4):
    """Two pictures and their absolute difference times `gain`, with the PSNR in dB."""
    import matplotlib.pyplot as plt

    a, b = as_uint8(a), as_uint8(b)
    if a.shape != b.shape:
        raise ValueError(f"compare_frames needs pictures of one size, got {a.shape} and {b.shape}")
    difference = np.abs(a.astype(np.float64) - b) / 255
    error = np.square(difference).mean()
    psnr = "identical" if error == 0 else f"{-10 * np.log10(error):.1f} dB"
    figure, axes = plt.subplots(1, 3, figsize=(10, 10 / 3 * a.shape[0] / a.shape[1] + 0.3), layout="constrained")
    axes[0].imshow(a)
    axes[1].imshow(b)
    axes[2].imshow((difference.mean(axis=2) * gain).clip(0, 1), cmap="cividis", vmin=0, vmax=1)
    for ax, title in zip(axes, (*names, f"difference × {gain:g} ({psnr})")):
        ax.set_title(title, fontsize=9)
        ax.axis("off")
    return figure


# ---------------------------------------------------------------- curves


def plot_curves(curves: dict, fps: float = FPS, ax=None, start: float = 0.0):
    """Named curves {name: (T,)} over seconds, told apart by line style and colour; frame t is drawn at its centre."""
    import matplotlib

    figure, ax = _axes(ax, 10, 2.4)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.8, max(1, len(curves))))
    for (name, values), shade, line in zip(curves.items(), shades, cycle(LINES)):
        values = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
        ax.plot(start + (np.arange(len(values)) + 0.5) / fps, values, line, color=shade, label=name, lw=1.5)
    ax.set_xlabel("time (s)")
    if curves:
        ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def plot_phonemes(speech, curves: dict | None = None, ax=None, start: float = 0.0, end: float | None = None):
    """The waveform with its phonemes between `start` and `end` (s); `curves` {name: (T,) in [0, 1]} drawn over it.

    `speech` has `audio` (n,) at 16 kHz and `phonemes` [(symbol, start s, end s)].
    """
    figure, ax = _axes(ax, 10, 2.6)
    audio = np.asarray(speech.audio)
    end = len(audio) / SAMPLE_RATE if end is None else end
    seconds = np.arange(len(audio)) / SAMPLE_RATE
    inside = (seconds >= start) & (seconds < end)
    step = max(1, int(inside.sum()) // 4000)  # more points than pixels only make the file large
    ax.plot(seconds[inside][::step], 0.5 + 0.5 * audio[inside][::step], color="0.75", lw=0.6, zorder=0)
    for number, (symbol, begin, stop) in enumerate(p for p in speech.phonemes if p[2] > start and p[1] < end):
        ax.axvspan(max(begin, start), min(stop, end), color="0.9" if number % 2 else "0.97", zorder=-1)
        ax.text((begin + stop) / 2, 1.03, symbol, ha="center", fontsize=7, clip_on=True)
    if curves:
        plot_curves(curves, ax=ax)
    ax.set(xlim=(start, end), ylim=(-0.02, 1.12), xlabel="time (s)")
    return figure


def plot_embedding2d(points, values=None, labels=None, ax=None):
    """Points (n, D) on their first two principal axes; `values` (n,) colour them, `labels` (n,) choose the marker."""
    points = np.asarray(points.detach().cpu() if hasattr(points, "detach") else points, np.float64)
    if points.ndim != 2 or len(points) < 2 or points.shape[1] < 2:
        raise ValueError(f"points must be (n >= 2, D >= 2), got {points.shape}")
    figure, ax = _axes(ax, 5, 4.2)
    if points.shape[1] > 2:
        points = points - points.mean(axis=0)
        points = points @ np.linalg.svd(points, full_matrices=False)[2][:2].T
    values = np.arange(len(points)) if values is None else np.asarray(values)
    labels = np.zeros(len(points), int) if labels is None else np.asarray(labels)
    limits = {"vmin": values.min(), "vmax": values.max(), "cmap": "cividis", "s": 16}
    for label, marker in zip(np.unique(labels), cycle(MARKERS)):
        own = labels == label
        drawn = ax.scatter(*points[own].T, c=values[own], marker=marker, label=str(label), **limits)
    figure.colorbar(drawn, ax=ax)
    if len(np.unique(labels)) > 1:
        ax.legend(fontsize=8)
    return figure


# ---------------------------------------------------------------- showing and saving


def save_png(figure, path, dpi: int = 100) -> Path:
    """Write the figure as PNG in one step."""
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=dpi)
    return Path(path)


def alt(figure, text: str, dpi: int = 80) -> None:
    """Show a figure in a notebook with alternative text, and the text below it as a caption; closes the figure.

    The caption is there because JupyterLab does not pass the alternative text of a picture on to screen readers.
    """
    import matplotlib.pyplot as plt
    from IPython.display import Markdown, display

    if not text.strip():
        raise ValueError("say in a sentence what the figure shows")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    kind, store = _packed(drawn)
    plt.close(figure)
    picture = {kind: base64.b64encode(store.getvalue()).decode(), "text/plain": text}
    display(picture, metadata={kind: {"alt": text}}, raw=True)
    display(Markdown(f"*{text}*"))


def _packed(png: io.BytesIO) -> tuple[str, io.BytesIO]:
    """A drawn PNG made small: with 256 colours, which drawings need no more of, or as JPEG where that is far smaller (photos)."""
    from PIL import Image

    picture, few, jpeg = Image.open(png).convert("RGB"), io.BytesIO(), io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(few, "png", optimize=True)
    picture.save(jpeg, "jpeg", quality=85, optimize=True)
    return ("image/jpeg", jpeg) if jpeg.tell() < JPEG_SHARE * few.tell() else ("image/png", few)


def show_video(path, width: int = 384, text: str = "talking avatar"):
    """An H.264 mp4 of at most 2 MB as an HTML5 player with everything inside the notebook; ValueError otherwise.

    GitHub does not play it: put a contact sheet beside it.
    """
    import av
    from IPython.display import HTML

    path = Path(path)
    size = path.stat().st_size
    if size > VIDEO_LIMIT:
        raise ValueError(f"{path.name} is {size / 1e6:.1f} MB: a notebook takes 2 MB, make it shorter or smaller")
    with av.open(str(path)) as video:
        codec = video.streams.video[0].codec_context
        if (codec.name, codec.pix_fmt) != ("h264", "yuv420p"):
            raise ValueError(f"{path.name} is {codec.name} {codec.pix_fmt}: browsers play h264 yuv420p")
    data = base64.b64encode(path.read_bytes()).decode()
    label = html.escape(text, quote=True)
    return HTML(f'<video controls width="{width}" aria-label="{label}" src="data:video/mp4;base64,{data}">{label}</video>')
