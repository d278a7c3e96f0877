"""TensorBoard curves, where the extra `tensorboard` is installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from pathlib import Path


def available() -> bool:
    """Whether TensorBoard is installed."""
    return find_spec("tensorboard") is not None


@final
class TensorBoard:
    """Writes what a training passes by, every so many iterations.

    Args:
        folder: Where the event files go; made at the first record.
        every: Iterations between training records; validations are all written.
    """

    def __init__(self, folder: Path, every: int = 100) -> None:
        self._folder, self._every = folder, every
        self._writer: Any = None

    def update(self, iteration: int, record: dict[str, Any]) -> None:
        """See `Watcher`."""
        if iteration % self._every and "val_score" not in record:
            return
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            # What a run that was killed had written beyond its checkpoint, it writes again when it goes on.
            again = iteration if self._folder.is_dir() else None
            self._writer = SummaryWriter(str(self._folder), purge_step=again, flush_secs=20)
        for name, value in record.items():
            group = "validation" if name.startswith("val_") else "train"
            self._writer.add_scalar(f"{group}/{name.removeprefix('val_')}", value, iteration)

    def close(self) -> None:
        """Write what is left, and let go of the file."""
        if self._writer is not None:
            self._writer.close()
