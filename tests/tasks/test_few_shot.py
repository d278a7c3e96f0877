"""Episodes: what a task holds, and that every draw is uniform."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from fewstep.core.rng import generator
from fewstep.tasks.few_shot import FewShot

if TYPE_CHECKING:
    from fewstep.core.types import Task


def numbered(classes: int = 12, examples: int = 20) -> torch.Tensor:
    """2x2 images of pixels (class, example, 100, 200), which tell what was drawn and how it was turned."""
    images = torch.zeros(classes, examples, 1, 2, 2, dtype=torch.uint8)
    images[..., 0, 0] = torch.arange(classes).view(-1, 1, 1)
    images[..., 0, 1] = torch.arange(examples).view(1, -1, 1)
    images[..., 1, 0], images[..., 1, 1] = 100, 200
    return images


def pixels(inputs: torch.Tensor) -> torch.Tensor:
    """The four pixels as integers `[tasks, examples, 4]`."""
    return (inputs * 255).round().long().flatten(2)


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


def test_shapes_types_and_range() -> None:
    images = torch.randint(256, (30, 20, 3, 8, 6), dtype=torch.uint8, generator=generator(0))
    task = FewShot(images, ways=7, shots=2, queries=3).sample(4, generator(1))
    assert task.support.inputs.shape == (4, 14, 3, 8, 6)
    assert task.query.inputs.shape == (4, 21, 3, 8, 6)
    assert task.support.targets.tolist() == [[way for way in range(7) for _ in range(2)]] * 4
    assert task.query.targets.tolist() == [[way for way in range(7) for _ in range(3)]] * 4
    assert task.support.inputs.dtype == torch.float32
    assert task.support.targets.dtype == torch.int64
    assert 0 <= task.support.inputs.min() < 0.1
    assert 0.9 < task.support.inputs.max() <= 1


def test_images_are_those_of_the_split_divided_by_255() -> None:
    images = torch.randint(256, (5, 4, 1, 3, 3), dtype=torch.uint8, generator=generator(0))
    task = FewShot(images, ways=5, shots=1, queries=3).sample(2, generator(1))
    drawn = torch.cat([task.support.inputs, task.query.inputs], 1).flatten(2).sort(1).values
    everything = (images.flatten(0, 1).flatten(1) / 255).sort(0).values
    torch.testing.assert_close(drawn, everything.expand(2, -1, -1), rtol=0, atol=0)


def test_a_task_has_distinct_classes_and_one_label_for_each() -> None:
    task = FewShot(numbered(), ways=12, shots=2, queries=5).sample(50, generator(2))
    support, query = pixels(task.support.inputs)[..., 0], pixels(task.query.inputs)[..., 0]
    by_label = support.view(50, 12, 2)
    assert (by_label[..., 0] == by_label[..., 1]).all()
    assert (by_label[..., 0].sort(-1).values == torch.arange(12)).all()
    assert (query.view(50, 12, 5) == by_label[..., :1]).all()


def test_support_and_query_share_no_image() -> None:
    task = FewShot(numbered(), ways=5, shots=8, queries=12).sample(40, generator(3))
    support = pixels(task.support.inputs)[..., 1].view(40, 5, 8)
    query = pixels(task.query.inputs)[..., 1].view(40, 5, 12)
    assert (torch.cat([support, query], -1).sort(-1).values == torch.arange(20)).all()


def test_every_class_is_equally_likely_to_get_every_label() -> None:
    task = FewShot(numbered(classes=8), ways=4).sample(8000, generator(4))
    drawn = pixels(task.support.inputs)[..., 0]
    counts = torch.stack([torch.bincount(drawn[:, label], minlength=8) for label in range(4)]).float()
    assert chi_square(counts) < 60  # 28 degrees of freedom: exceeded with probability 4e-4


def test_every_example_is_equally_likely_to_be_support_and_query() -> None:
    task = FewShot(numbered(examples=10), ways=3, shots=1, queries=2).sample(4000, generator(5))
    for batch in task:
        assert chi_square(torch.bincount(pixels(batch.inputs)[..., 1].flatten(), minlength=10).float()) < 32


def test_rotation_is_shared_by_support_and_query_of_a_class() -> None:
    task = FewShot(numbered(), ways=6, shots=2, queries=3, rotate=True).sample(200, generator(6))
    place = [(pixels(batch.inputs) == 200).long().argmax(-1) for batch in task]
    support, query = place[0].view(200, 6, 2), place[1].view(200, 6, 3)
    assert (torch.cat([support, query], -1) == support[..., :1]).all()
    assert (support[:, 0] != support[:, 1]).any()


def test_rotation_is_uniform_over_the_four_quarter_turns() -> None:
    task = FewShot(numbered(), ways=5, rotate=True).sample(2000, generator(7))
    quads = pixels(task.support.inputs).flatten(0, 1)
    counts = torch.zeros(4)
    for turns in range(4):
        back = torch.rot90(quads.view(-1, 2, 2), -turns, (-2, -1)).flatten(1)
        counts[turns] = ((back[:, 2] == 100) & (back[:, 3] == 200)).sum()
    assert counts.sum() == 10_000
    assert chi_square(counts) < 18  # 3 degrees of freedom: exceeded with probability 4e-4


def test_without_rotation_images_stay_upright() -> None:
    task = FewShot(numbered()).sample(100, generator(8))
    assert (pixels(task.support.inputs)[..., 2:] == torch.tensor([100, 200])).all()


def test_same_stream_same_tasks() -> None:
    tasks = FewShot(numbered(), shots=2, queries=2, rotate=True)
    first, again, other = (tasks.sample(8, generator(9, "train", i)) for i in (0, 0, 1))
    assert torch.equal(first.support.inputs, again.support.inputs)
    assert torch.equal(first.query.inputs, again.query.inputs)
    assert not torch.equal(first.support.inputs, other.support.inputs)


def fingerprint(task: Task) -> str:
    digest = hashlib.sha256()
    for batch in task:
        for tensor in batch:
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("shape", "choice", "expected"),
    [
        ((12, 20, 3, 4, 4), {"queries": 15}, "02c536b55ecf9f027df71203e5a6522b9f5863e04337df7a5cf23641e82d2284"),
        (
            (9, 7, 1, 5, 5),
            {"ways": 4, "shots": 2, "queries": 3, "rotate": True},
            "3cf5cf66a49f1e1e89b67fd23557ea7c7866577ae02325cb2ff5450bb98eb64b",
        ),
    ],
)
def test_the_stream_of_tasks_is_the_one_of_every_version(shape: tuple, choice: dict, expected: str) -> None:
    images = (torch.arange(math.prod(shape)) * 7919 % 251).to(torch.uint8).view(shape)
    assert fingerprint(FewShot(images, **choice).sample(6, generator(3, "train", 2))) == expected
    counts = {str(number): shape[1] for number in range(shape[0])}
    counted = FewShot(images.flatten(0, 1), **choice, classes=counts)
    assert fingerprint(counted.sample(6, generator(3, "train", 2))) == expected


def ragged() -> tuple[torch.Tensor, dict[str, int]]:
    """Classes 0 to 4 with 4, 9, 5, 20 and 4 images."""
    counts = {"a": 4, "b": 9, "c": 5, "d": 20, "e": 4}
    images = numbered(classes=5)
    return torch.cat([images[i, :count] for i, count in enumerate(counts.values())]), counts


def test_classes_of_different_sizes_give_each_of_their_images_alike() -> None:
    images, counts = ragged()
    task = FewShot(images, ways=5, shots=1, queries=3, classes=counts).sample(3000, generator(11))
    drawn = torch.cat([pixels(batch.inputs) for batch in task], 1).flatten(0, 1)
    for number, count in enumerate(counts.values()):
        found = torch.bincount(drawn[drawn[:, 0] == number, 1])
        assert len(found) == count
        assert chi_square(found.float()) < 60  # at most 19 degrees of freedom
    support, query = (pixels(batch.inputs)[..., 1] for batch in task)
    by_class = torch.cat([support.view(-1, 5, 1), query.view(-1, 5, 3)], -1)
    assert (by_class.sort(-1).values.diff() > 0).all()  # no image twice


def test_classes_with_too_few_images_are_named() -> None:
    images, counts = ragged()
    with pytest.raises(ValueError, match=r"and 3 classes with fewer than 6: a has 4, c has 5, e has 4\. Lower"):
        FewShot(images, shots=1, queries=5, classes=counts)
    with pytest.raises(ValueError, match="`classes` must count all images: got 42 in `classes` and 41 images"):
        FewShot(images[1:], classes=counts)
    alike = {str(number): 20 for number in range(12)}
    with pytest.raises(ValueError, match=r"and 20 examples\. Lower"):  # no list of all of them
        FewShot(numbered().flatten(0, 1), shots=1, queries=20, classes=alike)


def test_numbers_may_be_numpy_s() -> None:
    plain, other = (FewShot(numbered(), *sizes).sample(3, generator(12)) for sizes in ((4, 2, 3), np.array([4, 2, 3])))
    assert torch.equal(plain.query.inputs, other.query.inputs)


def test_sampling_leaves_the_images_as_they_were() -> None:
    images = numbered()
    FewShot(images, rotate=True).sample(50, generator(10)).support.inputs.zero_()
    assert torch.equal(images, numbered())


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"ways": 20},
            "`ways` must be at most the number of classes: got ways=20 and 12 classes. "
            "Lower `tasks.ways`, or give the split more classes: of a folder of your own by `tasks.fractions` or "
            "folders train/, val/ and test/.",
        ),
        (
            {"shots": 5, "queries": 16},
            "`shots` and `queries` together must be at most the examples per class: "
            "got shots=5, queries=16 and 20 examples. Lower `tasks.shots` or `tasks.queries` (--shots, --queries).",
        ),
        ({"ways": 0}, "`ways` must be a whole number, at least 1: got 0."),
        ({"shots": -1}, "`shots` must be a whole number, at least 1: got -1."),
        (
            {"queries": 1.5},
            "`queries` must be a whole number, at least 1: got 1.5.",
        ),
        (
            {"images": torch.zeros(12, 20, 1, 4, 6, dtype=torch.uint8), "rotate": True},
            "`rotate` needs square images: got height 4 and width 6. Set `tasks.rotate` to false or use square images.",
        ),
        (
            {"images": torch.zeros(12, 20, 4, 6)},
            "`images` must be uint8 [classes, examples, channels, height, width]: "
            "got float32 [12, 20, 4, 6]. Stack the classes, and store pixels as 0 to 255.",
        ),
    ],
)
def test_impossible_tasks_say_what_to_change(choice: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        FewShot(**{"images": numbered(), **choice})
    assert str(error.value) == message
