from __future__ import annotations

import torch

# The tests are many small computations: more threads only cost time, and pytest-xdist runs several of us.
torch.set_num_threads(1)
