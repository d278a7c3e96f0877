"""fewstep: few shots, few steps. Model-agnostic meta-learning for any PyTorch module.

    learner = fewstep.load(fewstep.train("sinusoid-10shot", out="runs/sine"))
    adapted = learner.adapt(fewstep.Batch(inputs, targets), steps=5)
    adapted(new_inputs)

Names are imported at first use, so that `import fewstep` costs nothing until torch is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.adapting.adapt import adapt
    from fewstep.adapting.loading import load
    from fewstep.adapting.tables import predict_table
    from fewstep.core.algorithms import Algorithm, anil, boil, fomaml, joint, maml, meta_sgd, reptile
    from fewstep.core.groups import Groups
    from fewstep.core.over_tasks import auto, sequential, vectorized
    from fewstep.core.rules import Adam, Clipped, Detached, Except, LearnedSgd, Momentum, Only, Sgd
    from fewstep.core.types import Batch, MetaParams, Task
    from fewstep.errors import FewstepError
    from fewstep.estimators import FewShotClassifier, FewShotRegressor
    from fewstep.experiments.evaluate_run import evaluate
    from fewstep.experiments.runs import ready, standardization
    from fewstep.experiments.train_run import train
    from fewstep.learners.reinforcement import ReinforcementLearner
    from fewstep.learners.supervised import SupervisedLearner
    from fewstep.tasks.few_shot import FewShot

_HOME = {
    "fewstep.core.algorithms": (
        "Algorithm",
        "anil",
        "boil",
        "fomaml",
        "joint",
        "maml",
        "meta_sgd",
        "reptile",
    ),
    "fewstep.core.groups": ("Groups",),
    "fewstep.core.over_tasks": ("auto", "sequential", "vectorized"),
    "fewstep.core.rules": ("Adam", "Clipped", "Detached", "Except", "LearnedSgd", "Momentum", "Only", "Sgd"),
    "fewstep.core.types": ("Batch", "MetaParams", "Task"),
    "fewstep.errors": ("FewstepError",),
    "fewstep.estimators": ("FewShotClassifier", "FewShotRegressor"),
    "fewstep.adapting.adapt": ("adapt",),
    "fewstep.experiments.evaluate_run": ("evaluate",),
    "fewstep.adapting.loading": ("load",),
    "fewstep.adapting.tables": ("predict_table",),
    "fewstep.experiments.runs": ("ready", "standardization"),
    "fewstep.experiments.train_run": ("train",),
    "fewstep.learners.reinforcement": ("ReinforcementLearner",),
    "fewstep.learners.supervised": ("SupervisedLearner",),
    "fewstep.tasks.few_shot": ("FewShot",),
}

__all__ = [
    "Adam",
    "Algorithm",
    "Batch",
    "Clipped",
    "Detached",
    "Except",
    "FewShot",
    "FewShotClassifier",
    "FewShotRegressor",
    "FewstepError",
    "Groups",
    "LearnedSgd",
    "MetaParams",
    "Momentum",
    "Only",
    "ReinforcementLearner",
    "Sgd",
    "SupervisedLearner",
    "Task",
    "adapt",
    "anil",
    "auto",
    "boil",
    "evaluate",
    "fomaml",
    "joint",
    "load",
    "maml",
    "meta_sgd",
    "predict_table",
    "ready",
    "reptile",
    "sequential",
    "standardization",
    "train",
    "vectorized",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'fewstep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
