"""Reading a photo whatever its format: the right way up, 8-bit RGB, of a workable size."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from aa.errors import InputError

LONGEST = 1536  # px; larger photos are reduced to this longer side
SMALL, ENLARGED = 512, 768  # px; photos whose longer side is below SMALL are enlarged to ENLARGED
LEAST = 64  # px; a shorter side below this holds no usable face


@dataclass(frozen=True)
class Photo:
    """A photo ready for detection."""

    image: np.ndarray  # (H, W, 3) uint8 RGB, transparent parts over white
    alpha: np.ndarray | None  # (H, W) float32 in [0, 1] when the file has transparency, a hint for the person mask
    scale: float  # px of `image` per px of the original
    notices: tuple[str, ...] = ()  # sentences for the user


def load_image(source) -> np.ndarray:
    """The photo at a path, or in a PIL image or array, as (H, W, 3) uint8 RGB. See `load_photo`."""
    return load_photo(source).image


def load_photo(source) -> Photo:
    """Read jpg, png, webp, bmp, gif or tiff (by content, not by name), greyscale, palette, 16-bit, with or without alpha.

    Args: source: a path, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8, uint16 or float in [0, 1].
    The EXIF orientation is applied; the longer side becomes at most 1536 px and at least 512 px.
    Raises: InputError when there is no usable picture.
    """
    notices = ()
    if isinstance(source, np.ndarray):
        picture, longer = _from_array(source), max(source.shape[:2])
    elif isinstance(source, Image.Image):
        picture, longer = _upright(source), max(source.size)
    else:
        picture, longer, notices = _from_file(Path(source))
    w, h = picture.size
    if min(w, h) < LEAST:
        raise InputError(f"The photo is only {w} x {h} pixels: give one of at least {LEAST} pixels a side, better 512.")
    target = LONGEST if max(w, h) > LONGEST else ENLARGED if max(w, h) < SMALL else max(w, h)
    scale = target / max(w, h)
    if scale != 1:
        size = (max(1, round(w * scale)), max(1, round(h * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    scale = target / longer
    if picture.mode == "RGB":
        return Photo(np.array(picture), None, scale, notices)
    pixels = np.asarray(picture)
    alpha = pixels[..., 3].astype(np.float32) / 255
    if alpha.max() < 0.1:
        raise InputError("The photo is transparent all over: give one on which the person can be seen.")
    over = pixels[..., :3] * alpha[..., None] + 255 * (1 - alpha[..., None])
    return Photo((over + 0.5).astype(np.uint8), alpha if alpha.min() < 1 else None, scale, notices)


def _from_file(path: Path) -> tuple[Image.Image, int, tuple[str, ...]]:
    """The picture, at least twice as large as it is needed if it was larger; its longer side in the file (px); notices."""
    if not path.is_file():
        raise InputError(f"There is no photo at {path}: give the path of a jpg, png or webp file.")
    if path.stat().st_size == 0:
        raise InputError(f"The file {path.name} is empty: give a jpg, png or webp photo.")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            longer, frames = max(picture.size), getattr(picture, "n_frames", 1)
            picture.draft(None, (2 * LONGEST, 2 * LONGEST))  # jpg: decoded at a fraction of its size, in a fraction of the memory
            # Some phones keep a second picture in a jpg (MPO): that is no animation.
            moving = frames > 1 and picture.format not in ("MPO", "TIFF")
            notices = (f"{path.name} has {frames} pictures: the first is used.",) if moving else ()
            return _upright(picture), longer, notices
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"The photo {path.name} has too many pixels: reduce it to a few thousand pixels a side.") from None
    except Image.UnidentifiedImageError:
        raise InputError(
            f"The file {path.name} cannot be read as a photo, it is {_kind(path)}: give a jpg, png or webp file."
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError):  # what Pillow raises for damaged files
        raise InputError(
            f"The photo {path.name} cannot be read, it is damaged or not complete: give it again, as jpg, png or webp."
        ) from None


def _kind(path: Path) -> str:
    """What a file is that Pillow cannot read, by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(64)
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis"):
        return "a HEIC picture as phones save them (export it as jpg)"
    if head[4:8] == b"ftyp" or head[:4] in (b"RIFF", b"\x1aE\xdf\xa3"):
        return "a film or sound (save one picture of it)"
    for start, name in ((b"%PDF", "a PDF"), (b"<svg", "an SVG drawing"), (b"<!", "a web page"), (b"<htm", "a web page")):
        if head.lstrip().lower().startswith(start.lower()):
            return name
    return "no picture of a known kind"


def _upright(picture: Image.Image) -> Image.Image:
    """First frame as 8-bit RGB, or RGBA when something is transparent, with the EXIF orientation applied."""
    picture.load()
    factor = max(picture.size) // (2 * LONGEST)
    if factor > 1 and picture.mode in ("L", "LA", "RGB", "RGBA", "CMYK"):  # before anything is copied
        exif = picture.getexif()
        picture = picture.reduce(factor)
        picture.info["exif"] = exif.tobytes()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        return _from_array(np.asarray(picture))
    if "A" in picture.getbands() or "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    """A PIL image of a greyscale, RGB or RGBA array; 16-bit values are scaled to 8 bits."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.size == 0:
        raise InputError(f"An image array has shape (H, W), (H, W, 3) or (H, W, 4), got {array.shape}.")
    if array.dtype != np.uint8:
        values = array.astype(np.float64)
        if not np.isfinite(values).all():
            raise InputError("The image array has values that are not finite: give uint8, uint16 or floats in [0, 1].")
        top = 1.0 if array.dtype.kind == "f" and values.max() <= 1 else 255.0 if values.max() <= 255 else 65535.0
        array = (values / top * 255).clip(0, 255).round().astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(array))
    return picture if picture.mode == "RGBA" else picture.convert("RGB")
