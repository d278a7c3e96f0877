"""Write `src/fewstep/tasks/data/dose_response.csv`, the small table that is bundled as an example.

    python benchmarks/make_dose_response.py

240 simulated compounds, each measured at 10 to 16 doses, follow the four-parameter logistic of pharmacology:

    response = bottom + (top - bottom) / (1 + 10^((log_ec50 - log_dose) * hill))

| parameter        | unit         | distribution                                                      |
|------------------|--------------|-------------------------------------------------------------------|
| log_ec50         | log10(molar) | triangular on [-9, -4], most often -6.5                           |
| hill             | -            | log-uniform on [0.6, 2.5]; negative (a falling curve) for 3 in 10 |
| top              | % of control | triangular on [60, 120], most often 100                           |
| bottom           | % of control | uniform on [0, 10]                                                |
| highest dose     | log10(molar) | uniform on [-4, -3]                                               |
| number of doses  | -            | uniform on 10, ..., 16                                            |

A compound's doses are a dilution series over 6.5 decades. Each is off by a normal dispensing error of 0.03
decades, which was measured and so is part of `log_dose`. Responses carry normal measurement noise of 3
percentage points. Rising curves are agonists, falling ones antagonists; no column says which: the support
rows have to tell.

The random numbers are those of numpy's `RandomState`, a stream that numpy has frozen: every machine and
version writes the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

PATH = Path(__file__).parents[1] / "src" / "fewstep" / "tasks" / "data" / "dose_response.csv"
SEED = 2017
COMPOUNDS = 240
ANTAGONISTS = 0.3
DECADES = 6.5
DISPENSING_ERROR = 0.03
NOISE = 3.0


def dose_response(seed: int = SEED) -> str:
    """The whole table as CSV text."""
    random = np.random.RandomState(seed)
    lines = ["compound,log_dose,response"]
    for number in range(1, COMPOUNDS + 1):
        lines += [f"C{number:03d},{x:.3f},{y:.2f}" for x, y in zip(*_compound(random), strict=True)]
    return "\n".join(lines) + "\n"


def _compound(random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Log doses and responses `[doses]` of one compound, from the lowest dose up."""
    log_ec50 = random.triangular(-9.0, -6.5, -4.0)
    hill = np.exp(random.uniform(np.log(0.6), np.log(2.5)))
    hill *= -1 if random.uniform() < ANTAGONISTS else 1
    top = random.triangular(60.0, 100.0, 120.0)
    bottom = random.uniform(0.0, 10.0)
    highest = random.uniform(-4.0, -3.0)
    doses = random.randint(10, 17)
    log_dose = np.linspace(highest - DECADES, highest, doses) + DISPENSING_ERROR * random.standard_normal(doses)
    log_dose = np.round(log_dose, 3)
    response = bottom + (top - bottom) / (1 + 10 ** ((log_ec50 - log_dose) * hill))
    return log_dose, np.round(response + NOISE * random.standard_normal(doses), 2)


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(dose_response(), encoding="utf-8", newline="\n")
