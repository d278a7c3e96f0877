"""Words that stand for choices, each said once; importing them costs nothing."""

from __future__ import annotations

from typing import Literal, TypeAlias

Split: TypeAlias = Literal["train", "val", "test"]
"""Meta-train, meta-validation, meta-test."""

Checkpoint: TypeAlias = Literal["best", "final"]
"""Meta-parameters of a run: best by validation, or of its last iteration."""

Normalization: TypeAlias = Literal["transductive", "support", "running"]
"""Whose statistics batch normalisation uses.

- transductive: each batch its own, support and query apart (the paper).
- support: queries are normalised by the support set's statistics under the adapted parameters, so that a prediction
  does not depend on which other queries come with it: what a deployed classifier of single pictures needs.
- running: the running statistics stored in the module, frozen: a pretrained network.
"""

Method: TypeAlias = Literal["finetune", "nearest_neighbour"]
"""How a pretrained classifier solves tasks."""

Distance: TypeAlias = Literal["euclidean", "cosine"]
"""Between features of a nearest neighbour."""
