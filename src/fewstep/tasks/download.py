"""Data sets that may be downloaded, where there is a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.errors import DataError
from fewstep.tasks import omniglot
from fewstep.tasks.archives import folder_or_archive

if TYPE_CHECKING:
    from pathlib import Path

OMNIGLOT = "https://github.com/brendenlake/omniglot/raw/master/python"
OMNIGLOT_MD5 = {
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}


def download_omniglot(folder: Path, source: str = OMNIGLOT, progress: bool = False) -> None:
    """Put the two archives of Omniglot into `folder/omniglot`; what is there already stays.

    Args:
        folder: The data folder; made if need be.
        source: Where the archives are.
        progress: Show a bar on stderr.

    Raises:
        DataError: There is no pooch, no network or another file; says what to put where.
    """
    by_hand = (
        f"Put images_background.zip and images_evaluation.zip from {omniglot.HOME} into {folder / 'omniglot'} yourself."
    )
    missing = [
        part
        for part in omniglot.PARTS
        if not any(folder_or_archive(place, part) for place in (folder, folder / "omniglot"))
    ]
    if not missing:
        return
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            f"Downloading needs pooch: it is not installed. Run `pip install 'fewstep[data]'`. Or: {by_hand}"
        ) from error
    for part in missing:
        try:
            pooch.retrieve(
                f"{source}/{part}.zip",
                known_hash=f"md5:{OMNIGLOT_MD5[part]}",
                fname=f"{part}.zip",
                path=folder / "omniglot",
                progressbar=progress,
            )
        except (OSError, ValueError) as error:  # requests' errors are among the first, a wrong checksum is the second
            reason = str(error).partition("\n")[0]
            raise DataError(f"Omniglot's {part}.zip could not be downloaded: {reason}. {by_hand}") from error
