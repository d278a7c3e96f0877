"""Commands about data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.cli.shared import FolderArgument, messages, say
from fewstep.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def check_data(folder: FolderArgument) -> None:
    """Tell what is in DIR: Omniglot, MiniImagenet, or pictures in a folder for each class. Reads every picture."""
    _report_data(folder)


def omniglot_data(folder: FolderArgument) -> None:
    """Download Omniglot (15 MB) into DIR/omniglot, or tell what to put there; then check it."""
    with messages.status("Loading"):
        from fewstep.tasks.download import download_omniglot
    download_omniglot(folder, progress=messages.is_terminal)
    _report_data(folder)


def miniimagenet_data(folder: FolderArgument) -> None:
    """Tell what to put into DIR for MiniImagenet, which cannot be downloaded freely, or check what is there."""
    with messages.status("Loading"):
        from fewstep.tasks.miniimagenet import check_images, list_images
    check_images(list_images(folder))
    _report_data(folder)


def _report_data(folder: Path) -> None:
    with messages.status("Reading"):
        from fewstep.tasks.check import check

        found = check(folder)
    for one in found:
        if one.problem is None:
            say(str(one))
    problems = [one.problem for one in found if one.problem is not None]
    if problems:
        raise DataError("\n".join(problems))
