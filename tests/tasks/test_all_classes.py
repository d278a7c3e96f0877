"""All classes of a split as one task."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.rng import generator
from fewstep.tasks.all_classes import AllClasses

COUNTS = (1, 2, 5)


def marked():
    """Every image is filled with its own number."""
    return torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 4, 4).contiguous()


def test_images_come_with_the_place_of_their_class_however_many_it_has():
    task = AllClasses(marked(), COUNTS).sample(4000, generator(0, "a"))
    inputs, labels = task.query
    assert inputs.shape == (1, 4000, 3, 4, 4)
    number = (inputs[0, :, 0, 0, 0] * 255).round().long()
    assert torch.equal(torch.tensor([0, 1, 1, 2, 2, 2, 2, 2])[number], labels[0])
    assert (labels.bincount() if labels.dim() == 1 else labels[0].bincount()).tolist() == pytest.approx(
        [1333] * 3, abs=130
    )
    assert (number.bincount()[3:] - 4000 / 15).abs().max() < 70


def test_a_stream_gives_the_same_images_again():
    tasks = AllClasses(marked(), COUNTS)
    assert torch.equal(tasks.sample(9, generator(3, "a")).query.inputs, tasks.sample(9, generator(3, "a")).query.inputs)


def test_images_are_turned_one_by_one_where_that_is_asked_for():
    corner = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    corner[:, 0, 0, 0] = 255
    inputs = AllClasses(corner, (1, 1), rotate=True).sample(400, generator(0, "r")).query.inputs[0, :, 0]
    share = inputs.mean(0)
    assert share.sum() == pytest.approx(1.0)
    assert ((share - 0.25).abs() < 0.08).all()
    assert corner[:, 0, 0, 0].tolist() == [255, 255]


@pytest.mark.parametrize("counts", [(1, 2), (0, 8), ()])
def test_counts_that_do_not_fit_the_images_are_refused(counts):
    with pytest.raises(ValueError, match="8 images"):
        AllClasses(marked(), counts)
