"""What `fewstep adapt` and `fewstep predict` do: the user's own pictures, from files to a table and a contact sheet."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from rich.table import Table
    from torch import Tensor

    from fewstep.adapting.classifier import AdaptedClassifier, Prediction
    from fewstep.adapting.exporting import Format
    from fewstep.learners.heads import HeadPolicy
    from fewstep.reporting.contact_sheet import Shown


class Predicted(NamedTuple):
    """Pictures that were classified.

    Attributes:
        images: Prepared, uint8 `[pictures, channels, height, width]`.
        predictions: One for each.
    """

    images: Tensor
    predictions: list[Prediction]


class Outcome(NamedTuple):
    """What `fewstep adapt` leaves behind.

    Attributes:
        classifier: The adapted model.
        predicted: Pictures that were asked about.
        folder: Where the adapted model is.
        files: Written besides it.
    """

    classifier: AdaptedClassifier
    predicted: Predicted | None
    folder: Path
    files: list[Path]


def adapt_to_pictures(
    run: str,
    support: Path,
    predict: Path | None = None,
    *,
    steps: int | None = None,
    head: HeadPolicy | None = None,
    out: Path | None = None,
    exports: Sequence[Format] = (),
    device: str = "cpu",
) -> Outcome:
    """Adapt, classify, and keep; nothing is written before everything is computed.

    Args:
        run: A run, a ready initialisation or an adapted model, which goes on in its folder.
        support: A folder of pictures for each class.
        predict: Pictures to classify.
        steps: As for `fewstep.adapt`; `head` and `device` likewise.
        head: See there.
        out: The folder to write, by default adapted/SUPPORT.
        exports: Formats to export the module in.
        device: See there.
    """
    from fewstep.adapting.adapt import adapt
    from fewstep.adapting.classifier import check_place, is_adapted
    from fewstep.adapting.exporting import FILES, check_exportable
    from fewstep.files import replaced
    from fewstep.reporting.contact_sheet import contact_sheet

    own = Path(run) if is_adapted(run) else None
    folder = out or own or Path("adapted") / support.resolve().stem
    check_place(folder, own)
    for export in exports:
        check_exportable(export)
    classifier = adapt(run, support, steps=steps, head=head, device=device)
    predicted = None if predict is None else predict_pictures(classifier, predict)
    raw = {FILES[export]: classifier.exported(export) for export in exports}
    classifier.save(folder)
    sheet = folder / "contact-sheet.png"
    contact_sheet({name: _pixels(images) for name, images in classifier.support.items()}, _shown(predicted), sheet)
    files = [sheet]
    for name, content in raw.items():
        with replaced(folder / name) as temporary:
            temporary.write_bytes(content)
        files.append(folder / name)
    return Outcome(classifier, predicted, folder, files)


def predict_pictures(classifier: AdaptedClassifier, path: Path) -> Predicted:
    """Classify a picture, or all pictures of a folder or zip archive, at any depth."""
    from fewstep.tasks.images import read_pictures
    from fewstep.tasks.picture_files import list_pictures

    files = list_pictures(path)
    images = read_pictures(files, classifier.preparation)
    return Predicted(images, classifier.named_predictions([str(file) for file in files], images))


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """Image, class and probability, for the terminal; mistakes stand out where it is known what they are."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    right = rightly_taken(predictions) or [True] * len(predictions)
    remarks = ["nothing seen" if p.empty else "" if r else "mistake" for p, r in zip(predictions, right, strict=True)]
    if marked := any(remarks):
        table.add_column("")
    for each, remark in zip(predictions, remarks, strict=True):
        cells = [Text(each.image), Text(each.label), _percent(each.probabilities[each.label])]
        table.add_row(*cells, *([remark] if marked else []))
    return table


def _percent(probability: float) -> str:
    """No more certain than the digits tell."""
    return f"{100 * probability:.1f} %" if probability < 0.9995 else "> 99.9 %"


def rightly_taken(predictions: Sequence[Prediction]) -> list[bool]:
    """Whether each picture was taken for the class whose folder it lies in; empty unless all lie in such folders."""
    folders = [_class_of_folder(each) for each in predictions]
    if None in folders:
        return []
    return [folder == each.label for folder, each in zip(folders, predictions, strict=True)]


def _class_of_folder(prediction: Prediction) -> str | None:
    """The class whose folder a picture lies in, as `list_classes` names it: by several levels where there are some."""
    folder = f"/{_composed(Path(prediction.image).parent.as_posix())}"
    names = [name for name in prediction.probabilities if folder.endswith(f"/{_composed(name)}")]
    return max(names, key=len, default=None)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS writes accents apart


def predictions_json(predictions: Sequence[Prediction]) -> str:
    """`{"predictions": [{"image", "class", "probabilities": {class: p}}, ...]}`."""
    return json.dumps({"predictions": [each.to_dict() for each in predictions]}, ensure_ascii=False)


def predictions_csv(predictions: Sequence[Prediction]) -> str:
    """Columns image, class, probability, and then the probability of each class under its name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", "probability", *(f"p({name})" for name in predictions[0].probabilities)])
    for each in predictions:
        values = [f"{value:.6g}" for value in each.probabilities.values()]
        writer.writerow([each.image, each.label, f"{each.probabilities[each.label]:.6g}", *values])
    return text.getvalue()


def _pixels(images: Tensor) -> list[np.ndarray]:
    """As the contact sheet takes them: grey `[height, width]`, or `[height, width, 3]`."""
    return [image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy() for image in images]


def _shown(predicted: Predicted | None) -> list[Shown]:
    from fewstep.reporting.contact_sheet import Shown

    if predicted is None:
        return []
    files = [Path(each.image) for each in predicted.predictions]
    often = Counter(file.name for file in files)
    names = [file.name if often[file.name] == 1 else f"{file.parent.name}/{file.name}" for file in files]
    right = rightly_taken(predicted.predictions) or [None] * len(names)
    return [
        Shown(pixels, name, each.label, each.probabilities[each.label], judged)
        for pixels, name, each, judged in zip(
            _pixels(predicted.images), names, predicted.predictions, right, strict=True
        )
    ]
