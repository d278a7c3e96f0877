"""Pictures as tensors: any file that Pillow reads, prepared in one way that a run can store and repeat.

For pictures of a user's own, one folder for each class:

    preparation = Preparation(image_size=28, channels=1, invert="auto")
    classes = list_classes(folder)                               # {"alpha": [files], "beta": [files]}
    support = read_pictures(classes["alpha"], preparation)       # uint8 [pictures, channels, height, width]
"""

from __future__ import annotations

import errno
import io
import logging
import threading
import warnings
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, final

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from fewstep.errors import DataError
from fewstep.tasks.archives import Member, Reader, listing
from fewstep.tasks.ink import border, clean
from fewstep.tasks.picture_files import Picture, picture_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
"""What is decoded. Pillow knows more, among them some that run other programs."""

log = logging.getLogger(__name__)

# All threads have the same filters of warnings: where several change them at once, they put back each other's. So one
# picture is decoded at a time.
_ONE_AT_A_TIME = threading.RLock()

_INK = 64
"""The contrast of levels that every drawing has when it was cleaned, and no page on which no ink was found."""
_FAINT = 26
"""The contrast of levels below which `ink.clean` finds none."""
_ADVICE = "Replace these files or take them away."


@final
@dataclass(frozen=True)
class Preparation:
    """How a picture becomes what a model sees: stored with a run, and applied to all that it is ever shown.

    Attributes:
        image_size: Height and width, in pixels.
        channels: 1 for grey levels, 3 for red, green and blue.
        invert: Turn dark on light into light on dark, for grey levels: always, never, or where the picture's
            border is light ("auto"). Drawings of either kind are then bright ink on dark paper.
        fit: What is done to a picture that is not square: "pad" it with the colour of its border, "crop" the
            middle, or "stretch" it.
        resampling: The filter for changing the size.
        clean: Whether pictures are drawings on paper in any light and of any size, to be made like careful scans first
            (`tasks.ink`), for grey levels.

    Raises:
        DataError: A value is none of these.
    """

    image_size: int
    channels: Literal[1, 3] = 3
    invert: Literal["auto"] | bool = False
    fit: Literal["pad", "crop", "stretch"] = "pad"
    resampling: Literal["lanczos"] = "lanczos"
    clean: bool = False

    def __post_init__(self) -> None:
        possible = {
            "image_size": isinstance(self.image_size, int) and self.image_size > 0,
            "channels": self.channels in (1, 3),
            "invert": self.invert in ("auto", True, False) and (self.channels == 1 or self.invert is False),
            "fit": self.fit in ("pad", "crop", "stretch"),
            "resampling": self.resampling == "lanczos",
            "clean": self.clean is False or (self.clean is True and self.channels == 1),
        }
        wrong = [f"{name}={getattr(self, name)!r}" for name, fine in possible.items() if not fine]
        if wrong:
            raise DataError(
                "A preparation of pictures has a positive image_size, channels 1 or 3, invert 'auto', true or false "
                "(false for colour), fit 'pad', 'crop' or 'stretch', resampling 'lanczos' and clean true or false "
                f"(false for colour): got {', '.join(wrong)}. Correct these."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            DataError: A value is missing, unknown or impossible.
        """
        names = {field.name for field in fields(cls)}
        required = names - {"clean"}  # runs of earlier versions do not say
        if not required <= {*values} <= names:
            raise DataError(
                f"A preparation of pictures has the values {', '.join(sorted(names))}: got "
                f"{', '.join(sorted(values)) or 'none'}. Restore what the run stored."
            )
        return cls(**values)


def without_drawing(images: Tensor, preparation: Preparation) -> list[int]:
    """The places of prepared pictures in which nothing is to be seen: of one level or, after cleaning, without ink."""
    contrast = images.flatten(1).amax(1).int() - images.flatten(1).amin(1).int()
    return (contrast < (_INK if preparation.clean else 1)).nonzero().flatten().tolist()


def read_pictures(
    pictures: Sequence[Picture],
    preparation: Preparation,
    advice: str = _ADVICE,
) -> Tensor:
    """Pictures, prepared.

    Args:
        pictures: Files, members of archives, or pictures in memory.
        preparation: What to do to them.
        advice: What to do about unreadable ones.

    Returns:
        uint8 `[pictures, channels, height, width]`.

    Raises:
        DataError: Lists those that cannot be read, and why.
    """
    size = preparation.image_size
    prepared = torch.empty(len(pictures), preparation.channels, size, size, dtype=torch.uint8)
    unreadable: list[_Unreadable] = []
    for index, read in enumerate(_each(pictures, preparation)):
        if isinstance(read, _Unreadable):
            unreadable.append(read)
        else:
            prepared[index] = read
    _require_readable(len(pictures), unreadable, advice)
    return prepared


def read_readable(pictures: Sequence[Picture], preparation: Preparation) -> tuple[Tensor, list[bool]]:
    """Those pictures that can be read, prepared, and which these are; the others are told of.

    Args:
        pictures: As for `read_pictures`.
        preparation: What to do to them.

    Returns:
        uint8 `[readable pictures, channels, height, width]`, and for each picture whether it is among them.

    Raises:
        DataError: The system does not give what a file holds, which may be another matter next time.
    """
    read = list(_each(pictures, preparation))
    kept = [each for each in read if isinstance(each, torch.Tensor)]
    unreadable = [each for each in read if isinstance(each, _Unreadable)]
    if withheld := [each for each in unreadable if each.by_system]:
        _require_readable(len(pictures), withheld, "Make these files accessible, or take them away.")
    if unreadable:
        log.info(
            "Left out %d of %d pictures, unreadable: %s",
            len(unreadable),
            len(read),
            listing([each.why for each in unreadable]),
        )
    size = preparation.image_size
    images = torch.stack(kept) if kept else torch.empty(0, preparation.channels, size, size, dtype=torch.uint8)
    return images, [isinstance(each, torch.Tensor) for each in read]


def prepare_arrays(pictures: np.ndarray, preparation: Preparation) -> Tensor:
    """Pictures that were read already, prepared as files are.

    Args:
        pictures: uint8 `[pictures, channels, height, width]`, of grey levels or of red, green and blue.
        preparation: What to do to them.

    Returns:
        As `read_pictures`.

    Raises:
        DataError: They have another shape or type.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1] not in (1, 3):
        raise DataError(
            "Pictures in arrays are uint8 [pictures, channels, height, width], with 1 or 3 channels: got "
            f"{pictures.dtype} {list(pictures.shape)}. Move the channels to the front, and give levels from 0 to 255."
        )
    size = preparation.image_size
    prepared = torch.empty(len(pictures), preparation.channels, size, size, dtype=torch.uint8)
    for index, picture in enumerate(pictures):
        pixels = picture[0] if len(picture) == 1 else np.moveaxis(picture, 0, 2)
        prepared[index] = _prepared(Image.fromarray(np.ascontiguousarray(pixels)), preparation)
    return prepared


def check_pictures(pictures: Sequence[Picture]) -> None:
    """Read pictures without keeping them.

    Raises:
        DataError: Lists those that cannot be read, and why.
    """
    each = _each(pictures, Preparation(1, fit="stretch"))
    unreadable = [read for read in each if isinstance(read, _Unreadable)]
    _require_readable(len(pictures), unreadable, _ADVICE)


class _Unreadable(NamedTuple):
    """Why a picture cannot be read, and whether that is of the system rather than of the picture."""

    why: str
    by_system: bool


def _each(pictures: Sequence[Picture], preparation: Preparation) -> Iterator[Tensor | _Unreadable]:
    """Every picture prepared, or why it cannot be read."""
    with Reader() as reader:
        for place, picture in enumerate(pictures):
            try:
                with _strictly():
                    read = _read(reader, picture, preparation)
            except Exception as error:  # broken files raise errors of many kinds
                # Pillow's own errors have no number; a file that is gone is no matter of another time.
                by_system = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)
                read = _Unreadable(f"{picture_name(picture, place)}: {_reason(error)}", by_system)
            yield read


def _read(reader: Reader, picture: Picture, preparation: Preparation) -> Tensor:
    if isinstance(picture, Image.Image | np.ndarray):
        return _prepared(_in_memory(picture), preparation)
    member = picture if isinstance(picture, Member) else Member(picture.parent, picture.name)
    return _decoded(reader.read(member), preparation)


def _in_memory(picture: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(picture, Image.Image):
        return _upright(picture)
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,)):
        raise ValueError(
            f"an array of a picture is uint8 [height, width] or [height, width, 3]: got {picture.dtype} "
            f"{list(picture.shape)}"
        )
    return Image.fromarray(np.ascontiguousarray(picture))


def _require_readable(count: int, unreadable: list[_Unreadable], advice: str) -> None:
    if unreadable:
        what = f"Each of {count} pictures must be readable; unreadable" if count > 1 else "A picture must be readable"
        raise DataError(f"{what}: {listing([each.why for each in unreadable])}\n{advice}")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"no picture of a kind that is read ({', '.join(_FORMATS)})"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"it has more than {round((Image.MAX_IMAGE_PIXELS or 0) / 1e6)} million pixels; make it smaller"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def _decoded(raw: bytes, preparation: Preparation) -> Tensor:
    """The one path from a file to numbers; within `_strictly`."""
    with Image.open(io.BytesIO(raw), formats=_FORMATS) as opened:
        opened.load()  # of an animation, the first frame
        return _prepared(_upright(opened), preparation)


def _prepared(image: Image.Image, preparation: Preparation) -> Tensor:
    plain = _plain(image, "L" if preparation.channels == 1 else "RGB", light_ink=preparation.clean)
    pixels = np.array(_resized(clean(plain) if preparation.clean else plain, preparation))
    if preparation.channels == 3:
        return torch.from_numpy(pixels).permute(2, 0, 1)
    invert = border(pixels).mean() > 127.5 if preparation.invert == "auto" else preparation.invert
    return torch.from_numpy(255 - pixels if invert else pixels).unsqueeze(0)


@contextmanager
def _strictly() -> Iterator[None]:
    """Pillow warns of pictures with more pixels than it likes and refuses those with twice as many: refuse both."""
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of odd metadata, which is not used
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _upright(image: Image.Image) -> Image.Image:
    """Turned as the camera was held; a picture whose metadata are broken stays as it is."""
    with suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _plain(image: Image.Image, mode: Literal["L", "RGB"], *, light_ink: bool = False) -> Image.Image:
    """8 bits for each channel, and white where it is transparent; or black, for light ink that white would hide."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.float64)
        if levels.min() < 0 or levels.max() > 65535 or (image.mode == "I" and levels.max() <= 255):
            raise ValueError("its grey levels have more than 16 bits, or an unknown range: save it with 8 or 16")
        return Image.fromarray((levels / 257).round().astype(np.uint8)).convert(mode)
    if image.mode == "F":
        raise ValueError("its grey levels are fractions, of unknown range: save it with 8 or 16 bits")
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        if light_ink and _is_hidden(paper, image):
            paper = Image.new("RGBA", image.size, "black")
            paper.alpha_composite(image.convert("RGBA"))
        image = paper
    return image.convert(mode)


def _is_hidden(on_white: Image.Image, image: Image.Image) -> bool:
    """Whether a transparent picture holds light ink that cannot be seen on white."""
    seen = np.asarray(on_white.convert("L"))
    levels, alpha = np.asarray(image.convert("RGBA").convert("RGB").convert("L")), image.convert("RGBA").getchannel("A")
    opaque = levels[np.asarray(alpha) > 127]
    return bool(np.ptp(seen) < _FAINT and opaque.size and opaque.mean() > 127.5)


def _resized(image: Image.Image, preparation: Preparation) -> Image.Image:
    size, lanczos = (preparation.image_size, preparation.image_size), Image.Resampling.LANCZOS
    if preparation.fit == "crop":
        return ImageOps.fit(image, size, lanczos)
    if preparation.fit == "pad" and image.width != image.height:
        return _padded(image, preparation.image_size, lanczos)
    return image.resize(size, lanczos)


def _padded(image: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    """In the middle of a square of its border's colour. `ImageOps.pad` shrinks thin strips to nothing."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new(image.mode, (size, size), _border_colour(image))
    square.paste(image.resize((width, height), resampling), ((size - width) // 2, (size - height) // 2))
    return square


def _border_colour(image: Image.Image) -> int | tuple[int, ...]:
    """The median of the outermost pixels, which is the paper's in a drawing."""
    median = np.median(border(np.asarray(image)), axis=0)
    return int(median) if median.ndim == 0 else tuple(int(level) for level in median)
