"""Reading a photo whatever its format: the right way up, 8-bit RGB, of a workable size."""

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


def load_image(source) -> np.ndarray:
    """The photo at a path, or in a PIL image or array, as (H, W, 3) uint8 RGB. See `load_photo`."""
    return load_photo(source).image


def load_photo(source) -> Photo:
    """Read jpg, png, webp, bmp, gif or tiff (by content, not by name), greyscale, palette, 16-bit, with or without alpha.

    Args: source: a path, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8, uint16 or float in [0, 1].
    The EXIF orientation is applied; the longer side becomes at most 1536 px and at least 512 px.
    Raises: InputError when there is no usable picture.
    """
    if isinstance(source, np.ndarray):
        picture = _from_array(source)
    elif isinstance(source, Image.Image):
        picture = _upright(source)
    else:
        picture = _from_file(Path(source))
    w, h = picture.size
    if min(w, h) < LEAST:
        raise InputError(f"The photo is only {w} x {h} pixels: give one of at least {LEAST} pixels a side, better 512.")
    target = LONGEST if max(w, h) > LONGEST else ENLARGED if max(w, h) < SMALL else max(w, h)
    scale = target / max(w, h)
    if scale != 1:
        size = (max(1, round(w * scale)), max(1, round(h * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    if picture.mode == "RGB":
        return Photo(np.array(picture), None, scale)
    pixels = np.asarray(picture)
    alpha = pixels[..., 3].astype(np.float32) / 255
    over = pixels[..., :3] * alpha[..., None] + 255 * (1 - alpha[..., None])
    return Photo((over + 0.5).astype(np.uint8), alpha if alpha.min() < 1 else None, scale)


def _from_file(path: Path) -> Image.Image:
    if not path.is_file():
        raise InputError(f"There is no photo at {path}: give the path of a jpg, png or webp file.")
    if path.stat().st_size == 0:
        raise InputError(f"The file {path.name} is empty: give a jpg, png or webp photo.")
    try:
        with Image.open(path) as picture:
            return _upright(picture)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"The photo {path.name} has too many pixels: reduce it to a few thousand pixels a side.") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # what Pillow raises for unknown and damaged files
        raise InputError(f"The file {path.name} cannot be read as a photo ({error}): give a jpg, png or webp file.") from None


def _upright(picture: Image.Image) -> Image.Image:
    """First frame as 8-bit RGB, or RGBA when something is transparent, with the EXIF orientation applied."""
    picture.load()
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
