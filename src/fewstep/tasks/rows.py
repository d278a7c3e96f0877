"""The rows of the user's table files, as other programs write them: CSV in many dialects, and Parquet."""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import re
import unicodedata
from collections import Counter
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from fewstep.errors import DataError, listed, quoted
from fewstep.tasks.archives import expanded
from fewstep.tasks.numerals import Numerals

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

log = logging.getLogger(__name__)

_NOTHING = ("na", "n/a", "nan", "null", "none")
"""What a cell says, in any case of letters, where there is no class."""

_MOST = 50
"""Categories that an error lists."""


class Form(NamedTuple):
    """How a text file is written.

    Attributes:
        delimiter: Between columns.
        encoding: As Python names it.
        newline: At the end of a line.
    """

    delimiter: str = ","
    encoding: str = "utf-8"
    newline: str = "\n"


class Rows(NamedTuple):
    """The rows of a file, in its order.

    Attributes:
        header: The names of all its columns.
        cells: Of each row, as they stand in the file.
        tasks: The task of each row.
        numbers: Of each column of numbers that was asked for, that of each row.
        labels: Of each column of names that was asked for, that of each row.
        further: Of each further column that was asked for and is there, its numbers, None where there is none.
        numerals: How its numbers are read.
        form: How it is written; of Parquet, how CSV would be.
    """

    header: list[str]
    cells: list[Sequence[Any]]
    tasks: list[str]
    numbers: dict[str, list[float]]
    labels: dict[str, list[str]]
    further: dict[str, list[float | None]]
    numerals: Numerals
    form: Form

    def labels_of(self, column: str, names: Collection[str]) -> list[str]:
        """What the cells of a column say, if `cells` were read whole and have it; "" where one says nothing."""
        place, known = _place(self.header, column), _by_look(names)
        return [] if place is None else [_label(row[place], known) for row in self.cells]

    def shown(self, columns: Sequence[str]) -> list[list[str]]:
        """What the rows have in columns that were asked for, as text."""
        numbers = {name: [f"{value:.12g}" for value in values] for name, values in self.numbers.items()}
        of_columns = [(self.labels | numbers)[name] for name in columns]
        return [list(row) for row in zip(*of_columns, strict=True)]


def read_rows(
    path: str | Path,
    task: str,
    columns: Sequence[str],
    *,
    named: Mapping[str, Collection[str]] | None = None,
    further: Sequence[str] = (),
    drop: Collection[str] = (),
    whole: bool = False,
    remedy: str = "Correct or remove these rows.",
) -> Rows:
    """Read a CSV or Parquet file.

    A file whose name ends in `.parquet` is read by pyarrow. Any other is text with commas, semicolons or tabs between
    the columns, in UTF-8, UTF-16 with a byte-order mark or Windows-1252, as Excel writes them. The first line names
    the columns; empty lines and a first line `sep=;` count for nothing. Names of columns match if they look the same.
    Numbers have decimal points or commas, see `fewstep.tasks.numerals`.

    Args:
        path: The file.
        task: The column that names the task; its values are taken as text.
        columns: Numeric columns.
        named: Columns of names, and for each all that its cells may say: names match if they look the same, 1.0
            is 1, and nan and the like are empty unless they are one of these.
        further: Numeric columns that may be missing, or lack numbers; with `whole` only.
        drop: Columns without whose content a row is left out, and told of, rather than refused.
        whole: Whether to read all columns of a Parquet file, for `cells`.
        remedy: What to do about cells that hold no number.

    Raises:
        DataError: The file cannot be read, lacks a column, has a cell that is no finite number, one that may be read
            as two, or another name.
    """
    if not isinstance(cast("Any", path), str | Path):
        raise DataError(
            f"A table is a CSV or Parquet file: got a {type(path).__name__}. For arrays there is `FewShotRegressor`."
        )
    path = expanded(path, "A table")
    is_parquet = path.suffix.lower() == ".parquet"
    asked = _Asked(task, columns, named or {}, further)
    wanted = [task, *asked.named, *columns]
    raw = _read_parquet(path, wanted, whole=whole) if is_parquet else _read_csv(path, wanted)
    return _numeric_rows(path, raw, asked, drop, remedy)


class _Asked(NamedTuple):
    """The columns that are asked for."""

    task: str
    columns: Sequence[str]
    named: Mapping[str, Collection[str]]
    further: Sequence[str]


class _Raw(NamedTuple):
    """Cells as they stand in a file: the column names, then each row after its number, counted in `unit`s."""

    header: list[str]
    rows: Sequence[tuple[int, Sequence[Any]]]
    unit: str
    form: Form = Form()


def _read_csv(path: Path, columns: list[str]) -> _Raw:
    text, encoding = _text_of(path)
    newline = "\r\n" if "\r\n" in text else "\n" if "\n" in text else "\r"
    told = re.match(r"\s*\"?sep=(.)\"?[ ]*(?:\r\n?|\n)", text)  # Excel's own line
    rest = text[told.end() :] if told else text
    skipped = len(text[: told.end()].splitlines()) if told else 0
    try:
        mark = told[1] if told else _delimiter(rest, columns)
        reader = csv.reader(io.StringIO(rest, newline=""), delimiter=mark, skipinitialspace=True)
        rows = [(skipped + reader.line_num, row) for row in reader if "".join(row).strip()]
    except csv.Error as error:
        raise _no_table(path, error) from error
    if not rows:
        raise _empty(path, "nothing")
    header = [name.strip() for name in rows[0][1]]
    if len(header) == 1:
        raise _one_column(path, header[0])
    later = next((line for line, row in rows[1:6] if all(_place(row, name) is not None for name in columns)), None)
    _check_header(path, header, columns, later)
    rows = [(line, _without_rest(row, len(header))) for line, row in rows[1:]]
    odd = [f"line {line} ({len(row)})" for line, row in rows if len(row) != len(header)]
    if odd:
        raise DataError(
            f"Every line of `{path}` must have {len(header)} cells, as its first has, with {mark!r} between them: got "
            f"{len(odd)} with fewer or more, {listed(odd)}. Complete these lines, and quote cells that hold "
            f"{mark!r}."
        )
    return _Raw(header, rows, "line", Form(mark, encoding, newline))


def _text_of(path: Path) -> tuple[str, str]:
    """What a text file holds, and its encoding."""
    try:
        if path.is_dir():
            raise DataError(f"A table must be a file: got the folder `{path}`. Name the CSV file in it.")
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    if content.startswith(b"PK\x03\x04"):
        raise DataError(f"A table must be CSV or Parquet: `{path}` is a workbook. Save its sheet as 'CSV UTF-8'.")
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = next((name for mark, name in marks.items() if content.startswith(mark)), "utf-8")
    try:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            if encoding != "utf-8":
                raise
            text, encoding = content.decode("cp1252"), "cp1252"
    except UnicodeDecodeError as error:
        raise _no_table(path, error) from error
    if "\0" in text:
        raise _no_table(path, "it holds zeros")
    if encoding == "cp1252":
        log.warning("%s is not in UTF-8: read as Windows-1252", path)
    return text, encoding


def _delimiter(text: str, columns: Sequence[str]) -> str:
    """Of comma, semicolon and tab the one by which the first row names most of the columns, or else has most."""

    def names(mark: str) -> tuple[int, int]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True)
        header = next((row for row in reader if "".join(row).strip()), list[str]())
        return sum(_place(header, name) is not None for name in columns), len({name.strip() for name in header})

    return max(",;\t", key=names)


def _without_rest(row: list[str], length: int) -> list[str]:
    """A row without empty cells beyond the last column."""
    return row[:length] if len(row) > length and not "".join(row[length:]).strip() else row


def _read_parquet(path: Path, columns: list[str], *, whole: bool) -> _Raw:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"Reading `{path}` needs pyarrow: it is not installed. Run `pip install 'fewstep[parquet]'`, or "
            "save the table as CSV."
        ) from error
    try:
        if path.is_dir():
            raise DataError(f"A table must be a file: got the folder `{path}`. Name one Parquet file in it.")
        with path.open("rb") as file, pyarrow.parquet.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            _check_header(path, names, columns)
            found = [names[place] for place in (_place(names, name) for name in columns) if place is not None]
            content = parquet.read(None if whole else found)
    except pyarrow.ArrowException as error:
        raise DataError(f"A Parquet file was expected: `{path}` is not one ({error}). Write it again.") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    cells = [column.to_pylist() for column in content.columns]
    return _Raw(content.column_names, list(enumerate(zip(*cells, strict=True), start=1)), "row")


def _places(header: Sequence[str], names: Iterable[str]) -> list[int]:
    """Those of columns that are there."""
    return [place for name in names if (place := _place(header, name)) is not None]


def _by_look(names: Iterable[str]) -> dict[str, str]:
    return {_look(name): name for name in names}


def _label(cell: Any, known: Mapping[str, str]) -> str:
    """The name in a cell, else its text, "" where it says nothing; 1.0 may be the 1 of a column with gaps."""
    text = "" if cell is None else _look(str(cell))
    whole = re.sub(r"(?<=\d)\.0+$", "", text)
    if text in known or whole in known:
        return known.get(text) or known[whole]
    return "" if text.casefold() in _NOTHING else text


def _place(header: Sequence[str], name: str) -> int | None:
    """Where a column stands: the one of this very name, or else the only one whose name looks the same."""
    stripped = [each.strip() for each in header]
    if name in stripped:
        return stripped.index(name)
    alike = [place for place, each in enumerate(stripped) if _look(each) == _look(name)]
    return alike[0] if len(alike) == 1 else None


def _look(name: str) -> str:
    """Of two signs for micro, say, or a line break for a space, nobody sees which it is."""
    return " ".join(unicodedata.normalize("NFKC", name).split())


def _check_header(path: Path, header: list[str], columns: list[str], later: int | None = None) -> None:
    repeated = [name for name in columns if header.count(name) > 1]
    if repeated:
        raise DataError(
            f"The columns of `{path}` must have different names: got {quoted(repeated)} more than once. "
            "Rename or remove the repeated columns."
        )
    missing = [name for name in columns if _place(header, name) is None]
    if not missing:
        return
    if later is not None:
        raise DataError(
            f"The first line of `{path}` must name the columns: line {later} does, and lines stand above it. Remove "
            "these lines."
        )
    by_look = {_look(name).casefold(): name for name in header}
    near = [get_close_matches(_look(name).casefold(), by_look, 1) for name in missing]
    perhaps = [f"{name!r} is perhaps {by_look[found[0]]!r}" for name, found in zip(missing, near, strict=True) if found]
    raise DataError(
        f"`{path}` must have the columns {quoted(columns)}: it lacks {quoted(missing)}, and has "
        f"{quoted(header)}{f' ({listed(perhaps)})' if perhaps else ''}. Rename its columns, or correct `tasks.task`, "
        "`tasks.inputs`, `tasks.targets` or `tasks.categories`."
    )


def _numeric_rows(path: Path, raw: _Raw, asked: _Asked, drop: Collection[str], remedy: str) -> Rows:
    """Rows with their task, their names, where there are columns for these, and their numbers."""
    if not raw.rows:
        raise _empty(path, "column names only")
    at = _located(path, raw, asked)
    rows = Rows(
        raw.header, [], [], _lists(asked.columns), _lists(asked.named), _lists(at.further), at.numerals, raw.form
    )
    droppable = {*_places(raw.header, drop)}
    left_out, faults, fewer = list[str](), list[str](), 0
    strangers: dict[str, dict[str, str]] = {column: {} for column in asked.named}
    for number, cells in raw.rows:
        row = _parsed(cells, at)
        if row.lacks:
            told = [f"{raw.unit} {number}, {raw.header[place]!r}: {_shown(cells[place])}" for place in row.lacks]
            fewer += droppable.issuperset(row.lacks)
            (left_out if droppable.issuperset(row.lacks) else faults).extend(told)
            continue
        _append(rows, cells, row, at)
        for (column, names), label in zip(asked.named.items(), row.labels, strict=True):
            if label not in names:
                strangers[column].setdefault(label, f"{label!r} ({raw.unit} {number})")
    if faults:
        raise DataError(
            f"Every row of `{path}` must name {' and '.join(['its task', *map(repr, asked.named)])} and have finite "
            f"numbers where numbers are read: got {len(faults)} other cells, {listed(faults, '; ')}. {remedy}"
        )
    if not rows.tasks:
        raise DataError(
            f"`{path}` must have rows that are complete: all {len(raw.rows)} lack something, "
            f"{listed(left_out, '; ')}. Fill in some of them."
        )
    for column, told in strangers.items():
        if told:
            raise DataError(
                f"The cells of {column!r} in `{path}` must be one of the names in the recipe, "
                f"{quoted([*asked.named[column]])}: got {listed([*told.values()])}. Correct or remove these rows, or "
                "name all in the recipe and train with that."
            )
    if left_out:
        log.warning("%s: left out %d of %d rows: %s", path, fewer, len(raw.rows), listed(left_out, "; "))
    return rows


class _Located(NamedTuple):
    """Where in a row the asked columns stand, and how to read them.

    Attributes:
        task: The column that names the task.
        named: Columns of names, and for each what these may look like.
        numbers: Numeric columns.
        further: Those that are there of the numeric columns that may be missing.
        numerals: How numbers are written.
    """

    task: int
    named: list[tuple[int, dict[str, str]]]
    numbers: list[int]
    further: dict[str, int]
    numerals: Numerals


def _located(path: Path, raw: _Raw, asked: _Asked) -> _Located:
    (task,), numbers = _places(raw.header, [asked.task]), _places(raw.header, asked.columns)
    named = zip(_places(raw.header, asked.named), map(_by_look, asked.named.values()), strict=True)
    further = {name: place for name in asked.further if (place := _place(raw.header, name)) is not None}
    by_column = {place: [cells[place] for _, cells in raw.rows] for place in (*numbers, *further.values())}
    every = (cell for cells in by_column.values() for cell in cells)
    numerals = Numerals.of(every, comma_separated=raw.form.delimiter == ",")
    for place, cells in by_column.items():
        if place in numbers:
            _require_numbers(path, raw.header[place], cells, numerals)
        _check_numerals(path, raw.header[place], cells, numerals)
    return _Located(task, list(named), numbers, further, numerals)


class _Row(NamedTuple):
    """What a row says, and the places of cells in which something is missing."""

    task: str
    labels: list[str]
    numbers: list[float | None]
    lacks: list[int]


def _parsed(cells: Sequence[Any], at: _Located) -> _Row:
    task = "" if cells[at.task] is None else str(cells[at.task]).strip()
    labels = [_label(cells[place], known) for place, known in at.named]
    numbers = [at.numerals.number(cells[place]) for place in at.numbers]
    text = zip((at.task, *(place for place, _ in at.named)), (task, *labels), strict=True)
    lacks = [place for place, said in text if not said]
    lacks += [place for place, number in zip(at.numbers, numbers, strict=True) if number is None]
    return _Row(task, labels, numbers, lacks)


def _append(rows: Rows, cells: Sequence[Any], row: _Row, at: _Located) -> None:
    rows.cells.append(cells)
    rows.tasks.append(row.task)
    for column, label in zip(rows.labels.values(), row.labels, strict=True):
        column.append(label)
    for column, number in zip(rows.numbers.values(), row.numbers, strict=True):
        column.append(cast("float", number))
    for name, place in at.further.items():
        rows.further[name].append(at.numerals.number(cells[place]))


def _lists(names: Iterable[str]) -> dict[str, list[Any]]:
    return {name: [] for name in names}


def _require_numbers(path: Path, name: str, cells: Sequence[Any], numerals: Numerals) -> None:
    """See that a column holds numbers, and not words."""
    has_number = any(numerals.number(cell) is not None for cell in cells)
    words = [] if has_number else [*dict.fromkeys(_look(cell) for cell in cells if isinstance(cell, str))]
    words = [word for word in words if word and word.casefold() not in _NOTHING]
    if len(words) > 1:
        raise DataError(
            f"The column {name!r} of `{path}` must hold numbers: it has none, but {quoted(words)}. Name these in "
            f"tasks.categories if it is an input (categories = {{ {_key(name)} = {_some(words)} }}), in tasks.classes "
            "if it is what to predict; or leave it out."
        )


def _key(name: str) -> str:
    """A column's name as a key of TOML."""
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _some(words: Sequence[str]) -> str:
    """A list in TOML, or its beginning."""
    first = [json.dumps(word, ensure_ascii=False) for word in words[:_MOST]]
    return f"[{', '.join(first)}{', ...' if len(words) > _MOST else ''}]"


def _check_numerals(path: Path, name: str, cells: Sequence[Any], numerals: Numerals) -> None:
    """See that a column's numbers can be read in one way; tell where thousands are separated."""
    doubtful = numerals.doubt(cells)
    if doubtful is not None:
        raise DataError(
            f"Numbers must be written in one way: {doubtful!r} in the column {name!r} of `{path}` may have three "
            "decimals or be thousands. Save the table without separators of thousands, or with the same number of "
            "decimals everywhere."
        )
    told = next(
        (cell for cell in cells if numerals.separates_thousands(cell) or numerals.is_taken_as_usual(cell)), None
    )
    if told is not None:
        log.warning("%s: %r in the column %r is read as %g", path, told, name, numerals.number(told))


def _shown(cell: Any) -> str:
    return "empty" if cell is None or (isinstance(cell, str) and not cell.strip()) else repr(cell)


def _no_table(path: Path, fault: object) -> DataError:
    return DataError(
        "A table must be text with commas, semicolons or tabs between the columns, or Parquet in a file that "
        f"ends in `.parquet`: `{path}` is neither ({fault}). Save it as 'CSV UTF-8'."
    )


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        start = "" if path.is_absolute() else f", which starts from `{Path.cwd()}`"
        return DataError(
            f"A table was expected at `{path}`: there is no such file. Check the path{start}. The table of a run that "
            "has moved is given as --data."
        )
    return DataError(
        f"The table `{path}` must be readable: got '{error.strerror or error}'. Check the path and its permissions."
    )


def _empty(path: Path, got: str) -> DataError:
    return DataError(
        f"A table needs a first line of column names and a row for each example: `{path}` holds {got}. "
        "Check that it was written to the end."
    )


def _one_column(path: Path, header: str) -> DataError:
    found = ", which looks separated by '|'" if "|" in header else ""
    return DataError(
        f"Columns must be separated by commas, semicolons or tabs: `{path}` has the one column {header!r}{found}. "
        "Save it with commas between the columns and points in the numbers."
    )


def repeated(names: Iterable[str]) -> list[str]:
    """Those that come more than once."""
    return [name for name, count in Counter(names).items() if count > 1]
