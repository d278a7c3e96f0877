"""The paper's own numbers (Finn et al. 2017, arXiv 1703.03400) for the bundled recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Published(NamedTuple):
    """What the paper reports for one setting.

    Attributes:
        source: The table.
        protocol: How it was measured, as far as the paper or its code says.
        metric: "mse", "accuracy" as a fraction, or "return".
        values: Mean and half-width of the 95 % interval (None: not given), by number of gradient steps.
        decimals: With which it is printed, of percent where it is an accuracy.
    """

    source: str
    protocol: str
    metric: str
    values: Mapping[int, tuple[float, float | None]]
    decimals: int = 2


class _Setting(NamedTuple):
    tasks: str
    algorithm: str
    regularizer: str | None
    ways: int | None
    shots: int | None


_TASKS = {
    "sinusoid-5shot": "sinusoid",
    "sinusoid-10shot": "sinusoid",
    "sinusoid-20shot": "sinusoid",
    "sinusoid-pretrained": "sinusoid",
    "sinusoid-averaging": "sinusoid",
    "omniglot-5way-1shot": "omniglot",
    "omniglot-5way-1shot-nonconv": "omniglot, no conv",
    "omniglot-5way-1shot-context": "omniglot, context",
    "omniglot-20way-1shot": "omniglot",
    "miniimagenet-5way-1shot": "miniimagenet",
    "miniimagenet-5way-5shot": "miniimagenet",
    "miniimagenet-5way-1shot-first-order": "miniimagenet",
    "miniimagenet-5way-5shot-first-order": "miniimagenet",
    "miniimagenet-5way-pretrained": "miniimagenet",
    "navigation": "navigation",
    "navigation-pretrained": "navigation",
    "navigation-random": "navigation, random",
    "navigation-oracle": "navigation, oracle",
    "navigation-context": "navigation, context",
    "cheetah-velocity": "cheetah-velocity",
    "cheetah-velocity-pretrained": "cheetah-velocity",
    "cheetah-velocity-random": "cheetah-velocity, random",
    "cheetah-velocity-oracle": "cheetah-velocity, oracle",
    "cheetah-direction": "cheetah-direction",
    "cheetah-direction-pretrained": "cheetah-direction",
    "cheetah-direction-random": "cheetah-direction, random",
    "cheetah-direction-oracle": "cheetah-direction, oracle",
    "ant-velocity": "ant-velocity",
    "ant-velocity-pretrained": "ant-velocity",
    "ant-velocity-random": "ant-velocity, random",
    "ant-velocity-oracle": "ant-velocity, oracle",
    "ant-direction": "ant-direction",
    "ant-direction-pretrained": "ant-direction",
    "ant-direction-random": "ant-direction, random",
    "ant-direction-oracle": "ant-direction, oracle",
    "cheetah-direction-context": "cheetah-direction, context",
}
"""Tasks of the recipes that the paper has numbers for; of sinusoids' oracle it shows a curve only."""


_HORIZONS = {"navigation": 100, "cheetah": 200, "ant": 200}
"""Time steps of the paper's episodes, which returns are sums over."""


def _sinusoid(one: float, five: float, ten: float) -> Published:
    return Published("Table 2", "600 tasks", "mse", {1: (one, None), 5: (five, None), 10: (ten, None)})


_PROTOCOL = "600 tasks, as many queries as shots, transductive"


def _omniglot(steps: int, accuracy: float, ci95: float, source: str = "Table 1") -> Published:
    return Published(source, _PROTOCOL, "accuracy", {steps: (accuracy, ci95)}, decimals=1)


def _miniimagenet(accuracy: float, ci95: float) -> Published:
    return Published("Table 1", _PROTOCOL, "accuracy", {10: (accuracy, ci95)})


def _baseline(accuracy: float, ci95: float, step: int) -> Published:
    protocol = "quoted from Ravi and Larochelle 2017; steps not stated"
    return Published("Table 1", protocol, "accuracy", {step: (accuracy, ci95)})


def _returns(source: str, *returns: float, ci95: tuple[float, ...] = ()) -> Published:
    """Average returns after 0, 1, 2 ... steps; where the paper has a curve alone, from its code's results."""
    intervals = [*ci95, *[None] * (len(returns) - len(ci95))]
    return Published(source, "40 tasks", "return", dict(enumerate(zip(returns, intervals, strict=True))))


_NUMBERS = {
    _Setting("sinusoid", "maml", None, None, 5): _sinusoid(0.67, 0.38, 0.35),
    _Setting("sinusoid", "joint", None, None, 5): _sinusoid(2.41, 2.23, 2.19),
    _Setting("sinusoid", "averaging", "none", None, 5): _sinusoid(4.19, 3.85, 3.69),
    _Setting("sinusoid", "averaging", "l2", None, 5): _sinusoid(7.18, 5.69, 5.60),
    _Setting("sinusoid", "averaging", "to_mean", None, 5): _sinusoid(2.91, 2.72, 2.71),
    _Setting("omniglot", "maml", None, 5, 1): _omniglot(3, 0.987, 0.004),
    _Setting("omniglot", "maml", None, 5, 5): _omniglot(3, 0.999, 0.001),
    _Setting("omniglot", "maml", None, 20, 1): _omniglot(5, 0.958, 0.003),
    _Setting("omniglot", "maml", None, 20, 5): _omniglot(5, 0.989, 0.002),
    _Setting("miniimagenet", "maml", None, 5, 1): _miniimagenet(0.4870, 0.0184),
    _Setting("miniimagenet", "maml", None, 5, 5): _miniimagenet(0.6311, 0.0092),
    _Setting("miniimagenet", "fomaml", None, 5, 1): _miniimagenet(0.4807, 0.0175),
    _Setting("miniimagenet", "fomaml", None, 5, 5): _miniimagenet(0.6315, 0.0091),
    _Setting("omniglot, no conv", "maml", None, 5, 1): _omniglot(3, 0.897, 0.011),
    _Setting("omniglot, no conv", "maml", None, 5, 5): _omniglot(3, 0.975, 0.006),
    _Setting("omniglot, context", "maml", None, 5, 1): _omniglot(3, 0.949, 0.009, "Table 3"),
    _Setting("omniglot, context", "maml", None, 5, 5): _omniglot(3, 0.977, 0.003, "Table 3"),
    _Setting("miniimagenet", "finetune", None, 5, 1): _baseline(0.2886, 0.0054, 10),
    _Setting("miniimagenet", "finetune", None, 5, 5): _baseline(0.4979, 0.0079, 10),
    _Setting("miniimagenet", "nearest_neighbour", None, 5, 1): _baseline(0.4108, 0.0070, 0),
    _Setting("miniimagenet", "nearest_neighbour", None, 5, 5): _baseline(0.5104, 0.0065, 0),
    _Setting("navigation", "maml", None, None, None): _returns(
        "Table 4", -40.41, -11.68, -3.33, -3.23, -3.35, ci95=(4.0, 2.2, 0.55, 0.58)
    ),
    _Setting("navigation", "joint", None, None, None): _returns("Figure 4", -40.81, -19.73, -11.72, -8.47, -7.49),
    _Setting("navigation, random", "joint", None, None, None): _returns(
        "Figure 4", -82.66, -57.96, -53.84, -46.81, -42.91
    ),
    _Setting("navigation, oracle", "joint", None, None, None): _returns("Figure 4", -2.29, ci95=(0.14,)),
    _Setting("navigation, context", "maml", None, None, None): _returns("Table 4", -42.42, -13.90, -5.17, -3.18),
    _Setting("cheetah-velocity", "maml", None, None, None): _returns(
        "Figure 5", -129.53, -78.57, -66.62, -60.78, ci95=(16.5, 9.9, 8.9, 8.6)
    ),
    _Setting("cheetah-velocity", "joint", None, None, None): _returns("Figure 5", -158.0, -135.39, -128.47, -133.61),
    _Setting("cheetah-velocity, random", "joint", None, None, None): _returns(
        "Figure 5", -254.83, -254.33, -246.79, -230.83
    ),
    _Setting("cheetah-velocity, oracle", "joint", None, None, None): _returns("Figure 5", -54.47, ci95=(6.9,)),
    _Setting("cheetah-direction", "maml", None, None, None): _returns(
        "Table 5", -50.69, 293.19, 313.48, 315.65, ci95=(5.7, 17, 15.8, 13.9)
    ),
    _Setting("cheetah-direction", "joint", None, None, None): _returns("Figure 5", -43.03, -24.75, -12.85, 19.57),
    _Setting("cheetah-direction, random", "joint", None, None, None): _returns("Figure 5", -35.73, 21.83, 62.32, 86.18),
    _Setting("cheetah-direction, oracle", "joint", None, None, None): _returns("Figure 5", 442.69, ci95=(8.4,)),
    _Setting("ant-velocity", "maml", None, None, None): _returns(
        "Figure 5", 30.58, 96.74, 100.06, 101.41, ci95=(30, 20.7, 21.5, 21)
    ),
    _Setting("ant-velocity", "joint", None, None, None): _returns("Figure 5", -1.83, 6.11, 8.47, 9.47),
    _Setting("ant-velocity, random", "joint", None, None, None): _returns("Figure 5", -78.64, -62.81, -48.55, -35.56),
    _Setting("ant-velocity, oracle", "joint", None, None, None): _returns("Figure 5", 107.89, ci95=(20,)),
    _Setting("ant-direction", "maml", None, None, None): _returns(
        "Figure 5", 8.66, 499.15, 500.68, 499.11, ci95=(14, 32, 31.5, 32.5)
    ),
    _Setting("ant-direction", "joint", None, None, None): _returns("Figure 5", 3.16, 1.27, 6.51, 6.86),
    _Setting("ant-direction, random", "joint", None, None, None): _returns("Figure 5", 3.11, 9.25, 15.96, 26.11),
    _Setting("ant-direction, oracle", "joint", None, None, None): _returns("Figure 5", 524.8, ci95=(12.4,)),
    _Setting("cheetah-direction, context", "maml", None, None, None): _returns(
        "Table 5", -40.49, -44.08, -38.27, -42.50
    ),
}


def published(evaluation: Mapping[str, Any]) -> Published | None:
    """The paper's numbers for the setting of an evaluation.

    Args:
        evaluation: As `reading.evaluations` gives it, which adds the `regularizer` of averaging.

    Returns:
        The numbers, or None where the paper has none: another recipe, algorithm, metric, number of ways or
        shots, tasks of another recipe, meta-validation tasks, images normalised otherwise than transductively,
        episodes of another length, or other physics.
    """
    setting = _Setting(
        _TASKS.get(evaluation["recipe"], ""),
        evaluation["algorithm"],
        evaluation.get("regularizer"),
        evaluation.get("ways"),
        evaluation["shots"],
    )
    found = _NUMBERS.get(setting)
    if found is None or found.metric != evaluation["metric"] or evaluation["split"] != "test":
        return None
    if evaluation.get("tasks_from") is not None:  # the paper tests on the data set that it trains on
        return None
    if evaluation.get("horizon") not in (None, _HORIZONS.get(evaluation["recipe"].partition("-")[0])):
        return None
    if evaluation.get("physics") not in (None, "paper"):
        return None
    if "transductive" in found.protocol and evaluation.get("normalization") != "transductive":
        return None
    return found
