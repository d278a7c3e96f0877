"""The harness's end of a worker process."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType


class WorkerError(Exception):
    """A worker gave no answer; the message says why."""


def environment(threads: int) -> dict[str, str]:
    """What every worker runs in, whatever its peer."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return os.environ | counts | {"JAX_PLATFORMS": "cpu"}


class Client:
    """Starts `benchmarks.speed.worker` and talks to it; ends it on leaving the `with` block."""

    def __init__(self, spec: dict[str, Any], log: IO[str], patience: float) -> None:
        self.patience = patience
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(spec["threads"]),
            start_new_session=True,  # Ctrl-C reaches the harness alone, which then ends its workers
        )

    def receive(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            WorkerError: It died, or took longer than the harness waits.
        """
        stdout = self.process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], self.patience)[0]:
            raise WorkerError(f"no answer within {self.patience:.0f} s")
        line = stdout.readline()
        if not line:
            raise WorkerError(f"its process ended with exit code {self.process.wait()}")
        answer = json.loads(line)
        if "cannot" in answer:
            raise WorkerError(answer["cannot"])
        return answer

    def run(self, iterations: int) -> dict[str, Any]:
        """Have it do meta-iterations; their seconds, and its peak memory so far."""
        stdin = self.process.stdin
        assert stdin is not None
        print(json.dumps({"run": iterations}), file=stdin, flush=True)
        return self.receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
