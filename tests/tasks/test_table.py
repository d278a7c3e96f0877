"""Tables: reading, splitting, standardising and drawing tasks from the user's own rows."""

from __future__ import annotations

import builtins
import json
import runpy
from pathlib import Path

import pytest
import torch

from fewstep.core.rng import generator
from fewstep.core.types import Batch, Task
from fewstep.errors import DataError
from fewstep.experiments.data import load_data
from fewstep.experiments.recipe_files import load_recipe
from fewstep.tasks.features import features
from fewstep.tasks.rows import read_rows
from fewstep.tasks.splitting import split_tasks
from fewstep.tasks.table import DOSE_RESPONSE, GroupedRows, Standardization, read_table

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "make_dose_response.py"
SMALL = "site,x,z,y\nb,1,10,0.5\na,2,20,1.5\nb,3,30,2.5\n"


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "table.csv"
    path.write_bytes(text.encode(encoding))
    return path


def read(path: Path, inputs: tuple[str, ...] = ("x",), targets: tuple[str, ...] = ("y",)):
    return read_table(path, "site", inputs, targets)


def numbered(*sizes: int) -> dict[str, Batch]:
    """Tasks whose every row holds its own number: task 2's third row is 202."""
    rows = [100.0 * task + torch.arange(size).view(size, 1) for task, size in enumerate(sizes)]
    return {f"t{task}": Batch(values, values) for task, values in enumerate(rows)}


def as_list(tasks: Task | list[Task]) -> list[Task]:
    return [tasks] if isinstance(tasks, Task) else tasks


def rows_of(tasks: Task | list[Task]) -> list[tuple[list[float], list[float]]]:
    """Support and query rows of every task drawn."""
    return [
        (support.flatten().tolist(), query.flatten().tolist())
        for task in as_list(tasks)
        for support, query in zip(task.support.inputs, task.query.inputs, strict=True)
    ]


# --- reading


def test_rows_are_grouped_by_task_in_order_of_first_appearance(tmp_path):
    table = read(write(tmp_path, SMALL), inputs=("z", "x"))
    assert list(table.groups) == ["b", "a"]
    assert table.groups["b"].inputs.tolist() == [[10, 1], [30, 3]]
    assert table.groups["b"].targets.tolist() == [[0.5], [2.5]]
    assert table.groups["a"].inputs.dtype == torch.float64
    assert (table.task, table.inputs, table.targets) == ("site", ("z", "x"), ("y",))


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + SMALL,
        SMALL.replace("\n", "\r\n"),
        SMALL.replace(",", ", "),
        SMALL + "\n\n",
        '"site"' + SMALL[4:],
    ],
    ids=["byte-order mark", "CRLF", "spaces", "blank lines", "quotes"],
)
def test_dialects_of_csv_read_alike(tmp_path, text):
    plain = read(write(tmp_path, SMALL)).content_hash
    assert read(write(tmp_path, text)).content_hash == plain


def test_the_hash_follows_the_values_and_the_roles_of_columns(tmp_path):
    path = write(tmp_path, SMALL)
    hashes = {
        read(path).content_hash,
        read(path, ("z",)).content_hash,
        read(path, ("y",), ("x",)).content_hash,
    }
    hashes.add(read(write(tmp_path, SMALL.replace("2.5", "2.6"))).content_hash)
    hashes.add(read(write(tmp_path, SMALL.replace("a,", "c,"))).content_hash)
    assert len(hashes) == 5


def test_parquet_equals_csv(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"y": [0.5, 1.5, 2.5], "note": ["", None, "-"], "site": ["b", "a", "b"], "x": [1, 2, 3]}
    path = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    table = read(path)
    assert table.content_hash == read(write(tmp_path, SMALL)).content_hash
    assert table.groups["b"].inputs.tolist() == [[1], [3]]


def test_parquet_may_repeat_columns_that_nobody_asked_for(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = [["a", "b"], [1, 2], ["", "-"], [None, "."]]
    parquet.write_table(pyarrow.table(columns, names=["site", "x", "note", "note"]), tmp_path / "table.parquet")
    rows = read_rows(tmp_path / "table.parquet", "site", ["x"], whole=True)
    assert rows.header == ["site", "x", "note", "note"]
    assert rows.cells == [("a", 1, "", None), ("b", 2, "-", ".")]


def test_parquet_names_bad_cells_missing_columns_and_broken_files(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.table({"site": ["a", None], "x": [1.0, 2.0], "y": [None, float("nan")]}), path)
    with pytest.raises(DataError, match=r"3 other cells, row 1, 'y': empty; row 2, 'site': empty; row 2, 'y': nan"):
        read(path)
    with pytest.raises(DataError, match=r"lacks 'z', and has 'site', 'x', 'y'"):
        read(path, ("z",))
    path.write_text("not parquet")
    with pytest.raises(DataError, match="A Parquet file was expected"):
        read(path)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "absent.parquet")


def test_parquet_without_pyarrow_names_the_extra_to_install(tmp_path, monkeypatch):
    plain = builtins.__import__

    def without_pyarrow(name, *args):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return plain(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(DataError, match=r"pip install 'fewstep\[parquet\]'"):
        read(tmp_path / "table.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds nothing"),
        ("site,x,y\n", "holds column names only"),
        ("site;x;y\na;1.234,56,7;2\n", r"line 2, 'x': '1\.234,56,7'"),
        ("site;x;y\na;1;1.500\nb;2;950\n", r"'1\.500' in the column 'y' .* three decimals or be thousands"),
        ("site\tx\ty\na\t1\t1,500\nb\t2\t950\n", r"'1,500' in the column 'y'"),
        ("site;x;y\na;1,5;1.500\nb;0.25;2\n", r"'1\.500' in the column 'y'"),
        ("site,x,y\na,lo,1\nb,hi,2\n", r"'x' .* hold numbers: it has none, but 'lo', 'hi'\. Name these in tasks.cat"),
        ("Results of May,,\n\nsite,x,y\na,1,2\n", r"line 3 does, and lines stand above it"),
        ("Site,x,y\na,1,2\n", r"lacks 'site', .* \('site' is perhaps 'Site'\)"),
        ("site,x,y\na;1;2\n", r"must have 3 cells, .* with ',' between them: .* line 2 \(1\)"),
        ("site|x|y\na|1|2\n", r"one column 'site\|x\|y', which looks separated by '\|'"),
        ("site x y\na 1 2\n", r"one column 'site x y'\. Save it with commas"),
        (
            "site,x,w\na,1,2\n",
            r"must have the columns 'site', 'x', 'y': it lacks 'y', and has 'site', 'x', 'w'",
        ),
        ("site,x,y,x\na,1,2,3\n", r"must have different names: got 'x' more than once"),
        (
            "site,x,y\na,1,5,2\nb,1,2\nc,1\n",
            r"must have 3 cells, .* got 2 with fewer or more, line 2 \(4\), line 4 \(2\)",
        ),
        (
            "site,x,y\na,1,2\n,1,2\na,n/a,\n",
            r"3 other cells, line 3, 'site': empty; line 4, 'x': 'n/a'; line 4, 'y': empty",
        ),
        ("site,x,y\na,inf,2\na,1_0,nan\na,1,1\n", r"line 2, 'x': 'inf'; line 3, 'x': '1_0'; line 3, 'y': 'nan'"),
        ("site,x,y\n" + "a,?,1\n" * 25, r"25 other cells, line 2, .* line 11, 'x': '\?'; and 15 more\."),
    ],
)
def test_an_unusable_csv_says_what_was_expected_and_what_came(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, text))


def test_line_numbers_count_lines_within_quotes(tmp_path):
    text = 'site,x,note,y\na,1,"two\nlines",2\na,?,,2\n'
    with pytest.raises(DataError, match="line 4, 'x'"):
        read(write(tmp_path, text))


def test_workbooks_and_other_files_are_refused(tmp_path):
    path = tmp_path / "table.csv"
    for content, said in (
        (b"PK\x03\x04\x14\x00", "is a workbook"),
        (b"site,x\x00", "neither"),
        (b"\xff\xfes", "neither"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=said + r".* Save it"):
            read(path)


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_encodings_of_excel_are_read(tmp_path, encoding, caplog):
    text = SMALL.replace("site", "g\u00fc\u00e9").replace("x", "\u00b5 M", 1)
    table = read_table(write(tmp_path, text, encoding), "g\u00fc\u00e9", ["\u03bc  M"], ["y"])  # looks the same
    assert table.groups["b"].inputs.tolist() == [[1], [3]]
    assert ("read as Windows-1252" in caplog.text) == (encoding == "cp1252")


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\n" + SMALL.replace(",", ";"),
        "sep=\t\n" + SMALL.replace(",", "\t"),
        SMALL.replace("\n", "\r"),
        SMALL.replace("\n", ",,\n").replace("\n", "\n,,,,,\n", 2),
        SMALL.replace("\n", ",notes,notes\n"),
    ],
    ids=["told separator", "told tab", "newlines of old", "empty cells", "repeated columns that nobody asked for"],
)
def test_what_spreadsheets_leave_in_files_counts_for_nothing(tmp_path, text):
    assert read(write(tmp_path, text)).content_hash == read(write(tmp_path, SMALL)).content_hash


def test_a_line_break_in_a_name_is_as_good_as_a_space(tmp_path):
    table = read_table(write(tmp_path, '"x\n(mg)";site;y\n1;a;2\n'), "site", ["x (mg)"], ["y"])
    assert table.groups["a"].inputs.tolist() == [[1]]


def test_separators_of_thousands_are_read_where_other_numbers_tell_them(tmp_path, caplog):
    german = "site;x;y\na;0,5;1.500\na;1,25;950\nb;2;1.234.567,5\nb;3;2 015,3\nb;4;\u22121'500\n"
    table = read(write(tmp_path, german))
    assert torch.cat([group.targets for group in table.groups.values()]).flatten().tolist() == [
        1500,
        950,
        1234567.5,
        2015.3,
        -1500,
    ]
    assert "'1.500' in the column 'y' is read as 1500" in caplog.text
    english = 'site,x,y\na,0.5,"1,500"\na,1.25,950\nb,2,1.500\n'
    assert [*read(write(tmp_path, english)).groups["a"].targets.flatten()] == [1500, 950]
    alone = "site;x;y\na;1;500.000\na;2;1.500.000\n"  # none has a decimal mark, and one has two others
    assert [*read(write(tmp_path, alone)).groups["a"].targets.flatten()] == [500_000, 1_500_000]
    plain = "site;x;y\na;1;1.500\na;2;2.250\n"  # all with as many decimals
    assert [*read(write(tmp_path, plain)).groups["a"].targets.flatten()] == [1.5, 2.25]


def test_files_that_cannot_be_opened_are_named(tmp_path):
    with pytest.raises(DataError, match=r"expected at .*absent.csv`: there is no such file"):
        read(tmp_path / "absent.csv")
    with pytest.raises(DataError, match=r"A table must be a path: got '~nobody-of-this-name/t\.csv'"):
        read(Path("~nobody-of-this-name/t.csv"))
    with pytest.raises(DataError, match="must be a file: got the folder"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"must be readable: got '.*'"):
        read(write(tmp_path, SMALL) / "within-a-file.csv")


@pytest.mark.parametrize(
    ("task", "inputs", "targets", "message"),
    [
        ("site", ["x"], [], "at least one target column: got none"),
        ("site", [], ["y"], "at least one input column: got none"),
        ("site", ["x", "y"], ["y"], "one role.*: got 'y' more than once"),
        ("site", ["x", "x"], ["y"], "one role.*: got 'x' more than once"),
        ("site", ["site"], ["y"], "one role.*: got 'site' more than once"),
    ],
)
def test_each_column_has_one_role(tmp_path, task, inputs, targets, message):
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path, SMALL), task, inputs, targets)


LABELLED = "site,x,state\nb,1,good\na,2, bad\nb,3,bad\nb,4,good\n"


def read_classes(path: Path, classes: tuple[str, ...] = ("bad", "good"), **how):
    return read_table(path, "site", ["x"], ["state"], classes=classes, **how)


def test_a_target_may_be_one_of_classes(tmp_path):
    table = read_classes(write(tmp_path, LABELLED))
    assert table.groups["b"].targets.tolist() == [1, 0, 1]
    assert table.groups["a"].targets.dtype == torch.int64
    assert table.groups["b"].inputs.tolist() == [[1], [3], [4]]


@pytest.mark.parametrize("kind", [int, float, str])
def test_classes_of_a_parquet_file_are_read_as_its_csv_file_would_be(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"site": ["a", "a"], "x": [1.0, 2.0], "state": [kind(1), kind(0)]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "table.parquet")
    assert read_classes(tmp_path / "table.parquet", ("0", "1")).groups["a"].targets.tolist() == [1, 0]


def test_a_cell_of_another_class_is_named(tmp_path):
    with pytest.raises(
        DataError,
        match=r"cells of 'state' in .* the names in the recipe, 'bad', 'fine': got 'good' \(line 2\)\. Correct or",
    ):
        read_classes(write(tmp_path, LABELLED), ("bad", "fine"))


def test_a_row_without_its_class_is_told_or_left_out(tmp_path):
    path = write(tmp_path, LABELLED + "a,5,\na,6,NaN\n")
    with pytest.raises(DataError, match=r"name its task and 'state' .* line 6, 'state': empty; line 7, 'state': 'NaN'"):
        read_classes(path)
    assert read_classes(path, drop=["state"]).groups["a"].targets.tolist() == [0]
    assert read_classes(write(tmp_path, "site,x,state\na,1,None\na,2,n/a\n"), ("None", "n/a")).groups[
        "a"
    ].targets.tolist() == [0, 1]


def test_a_curve_of_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"one target column of numbers: got \[1\] and \[\]"):
        GroupedRows({"b": read_classes(write(tmp_path, LABELLED)).groups["b"]}, shots=1).curve(generator(0))


def test_words_where_numbers_are_expected_are_told_of_classes(tmp_path):
    with pytest.raises(DataError, match=r"in tasks.classes if it is what to predict; or leave it out"):
        read(write(tmp_path, LABELLED), targets=("state",))


MIXED = "site,x,salt,y,kind\na,1,KCl,10,p\nb,2, NaCl,20,q\na,3,NaCl,30,q\n"
CATEGORIES = {"kind": ["q", "p"], "salt": ["NaCl", "KCl", "LiCl"]}


def read_mixed(path: Path, categories=CATEGORIES, **how):
    return read_table(path, "site", ["x", "salt", "kind"], ["y"], categories=categories, **how)


def test_categories_are_indicators_in_the_order_of_the_inputs(tmp_path):
    groups = read_mixed(write(tmp_path, MIXED)).groups
    assert groups["a"].inputs.tolist() == [[1, 0, 1, 0, 0, 1], [3, 1, 0, 0, 1, 0]]
    assert groups["a"].targets.tolist() == [[10], [30]]
    names = ["x", "salt=NaCl", "salt=KCl", "salt=LiCl", "kind=q", "kind=p"]
    assert [feature.name for feature in features(["x", "salt", "kind"], CATEGORIES)] == names


def test_a_table_may_have_categories_alone_and_classes_beside_them(tmp_path):
    table = read_table(
        write(tmp_path, MIXED), "site", ["salt"], ["kind"], classes=["p", "q"], categories={"salt": CATEGORIES["salt"]}
    )
    assert table.groups["a"].inputs.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert table.groups["a"].targets.tolist() == [0, 1]


def test_categories_stay_indicators_when_columns_are_standardised(tmp_path):
    groups = read_mixed(write(tmp_path, MIXED)).groups
    scale = Standardization.fit(groups.values(), features(["x", "salt", "kind"], CATEGORIES))
    inputs = torch.cat([scale.standardize(group).inputs for group in groups.values()])
    assert inputs[:, 1:].tolist() == torch.cat([group.inputs for group in groups.values()])[:, 1:].tolist()
    assert inputs[:, 0].mean().item() == pytest.approx(0, abs=1e-6)
    assert scale.columns == (6, 1)


def test_other_categories_change_what_a_table_is_and_the_order_of_its_columns_does_not(tmp_path):
    path = write(tmp_path, MIXED)
    first, again, other = (
        read_mixed(path, categories).content_hash
        for categories in (CATEGORIES, dict(reversed(CATEGORIES.items())), CATEGORIES | {"kind": ["p", "q"]})
    )
    assert first == again != other


def test_a_feature_may_be_called_as_a_column_is(tmp_path):
    path = write(tmp_path, "site,salt=b,salt,y\na,7,b,10\na,8,c,20\n")
    group = read_table(path, "site", ["salt=b", "salt"], ["y"], categories={"salt": ["b", "c"]}).groups["a"]
    assert group.inputs.tolist() == [[7, 1, 0], [8, 0, 1]]
    assert group.targets.tolist() == [[10], [20]]


@pytest.mark.parametrize("categories", [{"y": ["p", "q"]}, {"salt": ["KCl"]}, {"salt": ["KCl", "KCl"]}])
def test_categories_that_cannot_be_are_refused(tmp_path, categories):
    with pytest.raises(ValueError, match=r"tasks\.categories must be"):
        read_mixed(write(tmp_path, MIXED), categories)


def test_names_match_that_look_the_same_and_whole_numbers_with_a_point(tmp_path):
    text = "site,x,town,y\na,1,Ko\u0308ln,1\na,1.0,Bad  Ems,2\na,2.0,Bonn,3\n"
    categories = {"town": ["K\u00f6ln", "Bad Ems", "Bonn"], "x": ["1", "2"]}
    group = read_table(write(tmp_path, text), "site", ["town", "x"], ["y"], categories=categories).groups["a"]
    assert group.inputs.tolist() == [[1, 0, 0, 1, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 1]]


@pytest.mark.parametrize("kind", [bool, float, str, int])
def test_categories_of_a_parquet_file_are_read_as_its_csv_file_would_be(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"site": ["a", "a"], "x": [kind(1), kind(0)], "y": [1.0, 2.0]}
    table = pyarrow.table(columns)
    if kind is str:
        table = table.set_column(1, "x", table["x"].dictionary_encode())
    parquet.write_table(table, tmp_path / "table.parquet")
    names = ["False", "True"] if kind is bool else ["0", "1"]
    group = read_table(tmp_path / "table.parquet", "site", ["x"], ["y"], categories={"x": names}).groups["a"]
    assert group.inputs.tolist() == [[0, 1], [1, 0]]


def test_a_category_that_is_not_named_is_told_of(tmp_path):
    with pytest.raises(DataError, match=r"cells of 'salt' in .* 'NaCl', 'LiCl': got 'KCl' \(line 2\)\. Corr"):
        read_mixed(write(tmp_path, MIXED), CATEGORIES | {"salt": ["NaCl", "LiCl"]})


def test_a_row_without_its_category_is_told_or_left_out(tmp_path):
    path = write(tmp_path, MIXED + "b,4,,40,p\n")
    with pytest.raises(DataError, match=r"name its task and 'kind' and 'salt' .* line 5, 'salt': empty"):
        read_mixed(path)
    assert len(read_mixed(path, drop=["salt"]).groups["b"].targets) == 1


def test_words_among_the_inputs_are_told_with_what_to_write(tmp_path):
    with pytest.raises(DataError, match=r"an input \(categories = \{ salt = \[\"KCl\", \"NaCl\"\] \}\)"):
        read_table(write(tmp_path, MIXED), "site", ["x", "salt"], ["y"])
    for count, end in ((50, '"s49"] }'), (51, '"s49", ...] }')):
        many = "site,x,a salt,y\n" + "".join(f"a,1,s{i} ,2\na,1, s{i},2\n" for i in range(count))
        with pytest.raises(DataError, match=r'categories = \{ "a salt" = \["s0", "s1", "s2"') as caught:
            read_table(write(tmp_path, many), "site", ["x", "a salt"], ["y"])
        assert end in str(caught.value)


def test_tasks_of_classes_are_drawn_as_others_and_their_classes_have_no_scale(tmp_path):
    groups = read_classes(write(tmp_path, LABELLED)).groups
    scale = Standardization.fit(groups.values())
    assert scale.columns == (1, 0)
    assert Standardization.from_dict(scale.to_dict()).columns == (1, 0)
    standardised = {name: scale.standardize(batch) for name, batch in groups.items()}
    assert standardised["b"].targets.equal(groups["b"].targets)
    task = GroupedRows({"b": standardised["b"]}, shots=2).sample(3, generator(0))
    assert isinstance(task, Task)
    assert task.support.targets.shape == (3, 2)
    assert task.query.targets.shape == (3, 1)
    drawn = torch.cat([task.support.inputs, task.query.inputs], 1).squeeze(2).flatten().tolist()
    state = dict(zip(standardised["b"].inputs.flatten().tolist(), [1, 0, 1], strict=True))
    assert torch.cat([task.support.targets, task.query.targets], 1).flatten().tolist() == [state[x] for x in drawn]


# --- splitting


def test_the_split_is_a_fixed_rule():
    names = ["iron", "zinc", "gold", "lead", "tin", "neon", "argon"]
    expected = {"train": ["iron", "neon", "gold", "tin", "lead"], "val": ["argon"], "test": ["zinc"]}
    assert split_tasks(names) == expected
    assert split_tasks(reversed(names)) == expected


@pytest.mark.parametrize("count", [3, 4, 5, 6, 10, 47, 240])
def test_splits_are_disjoint_complete_and_never_empty(count):
    names = [f"task {i}" for i in range(count)]
    splits = split_tasks(names)
    assert sorted(splits["train"] + splits["val"] + splits["test"]) == sorted(names)
    assert min(map(len, splits.values())) >= 1
    assert len(splits["train"]) == pytest.approx(0.7 * count, abs=1.2)


def test_extreme_fractions_leave_every_split_a_task():
    names = [f"task {i}" for i in range(9)]
    assert [len(part) for part in split_tasks(names, (0.98, 0.01, 0.01)).values()] == [7, 1, 1]
    assert [len(part) for part in split_tasks(names, (0.01, 0.01, 0.98)).values()] == [1, 1, 7]


def test_a_split_needs_three_tasks_and_three_shares():
    with pytest.raises(DataError, match=r"at least 3 tasks.*: got 2 \(.*'a'.*\)\. Add tasks"):
        split_tasks(["a", "b", "a"])
    with pytest.raises(ValueError, match="three positive shares that sum to 1"):
        split_tasks("abc", (0.7, 0.3, 0.0))
    with pytest.raises(ValueError, match="three positive shares that sum to 1"):
        split_tasks("abc", (0.7, 0.2, 0.2))


# --- standardising


def test_standardised_meta_train_columns_have_zero_mean_and_unit_variance():
    groups = [Batch(torch.tensor([[1.0, 5], [2, 5]]).double(), torch.tensor([[10.0], [20]]).double())]
    groups.append(Batch(torch.tensor([[6.0, 5]]).double(), torch.tensor([[60.0]]).double()))
    scale = Standardization.fit(groups)
    assert scale.input_mean.tolist() == [3, 5]
    assert scale.input_std.tolist() == pytest.approx([(14 / 3) ** 0.5, 1])  # the constant column keeps its unit
    inputs, targets = (torch.cat(parts) for parts in zip(*map(scale.standardize, groups), strict=True))
    assert inputs.dtype == targets.dtype == torch.float32
    assert torch.allclose(inputs.mean(0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(targets.std(0, correction=0), torch.ones(1))


def test_a_constant_column_stays_constant_whatever_rounding_makes_of_its_deviation():
    groups = [Batch(torch.full((7, 1), 0.1).double(), torch.arange(7.0).double().view(7, 1))]
    scale = Standardization.fit(groups)
    assert scale.input_std.item() == 1
    assert scale.inputs(groups[0].inputs).abs().max() < 1e-6


def test_large_offsets_survive_standardisation():
    seconds = 1.7e9 + torch.arange(5.0).double().view(5, 1)  # float32 could not tell these apart
    scale = Standardization.fit([Batch(seconds, seconds)])
    assert scale.inputs(seconds).flatten().tolist() == pytest.approx([-(2**0.5), -(0.5**0.5), 0, 0.5**0.5, 2**0.5])


def test_restore_is_the_inverse_and_survives_json():
    table = read_table(DOSE_RESPONSE, "compound", ["log_dose"], ["response"])
    scale = Standardization.fit(table.groups.values())
    again = Standardization.from_dict(json.loads(json.dumps(scale.to_dict())))
    targets = table.groups["C007"].targets
    assert torch.allclose(again.restore(scale.targets(targets)), targets, rtol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(scale, again, strict=True))


def test_values_whose_variance_overflows_are_refused():
    values = torch.tensor([[1e300], [-1e300]], dtype=torch.float64)
    with pytest.raises(DataError, match=r"over the rows that it is computed from: got values as large as 1e\+300"):
        Standardization.fit([Batch(values, values)])


# --- drawing


def test_support_and_query_are_disjoint_rows_of_one_task():
    tasks = GroupedRows(numbered(8, 8, 8), shots=3, queries=4).sample(3, generator(0))
    assert isinstance(tasks, Task)
    assert tasks.support.inputs.shape == (3, 3, 1)
    assert tasks.query.targets.shape == (3, 4, 1)
    for support, query in rows_of(tasks):
        assert len(set(support + query)) == 7
        assert len({row // 100 for row in support + query}) == 1
    assert torch.equal(tasks.support.inputs, tasks.support.targets)


def test_all_remaining_rows_are_queries_unless_a_number_is_given():
    for support, query in rows_of(GroupedRows(numbered(5, 9), shots=2).sample(2, generator(0))):
        assert sorted(support + query) == sorted(numbered(5, 9)[f"t{int(support[0] // 100)}"].inputs.flatten().tolist())


def test_ragged_tasks_are_stacked_by_size():
    tasks = GroupedRows(numbered(4, 9, 6, 4, 7), shots=3, queries=3).sample(5, generator(0))
    assert isinstance(tasks, list)
    assert [tuple(task.support.inputs.shape) for task in tasks] == [(2, 3, 1), (3, 3, 1)]
    assert [tuple(task.query.inputs.shape) for task in tasks] == [(2, 1, 1), (3, 3, 1)]


def test_drawing_as_many_tasks_as_there_are_visits_each_once():
    tasks = GroupedRows(numbered(*[4] * 6), shots=2)
    visited = [support[0] // 100 for support, _ in rows_of(tasks.sample(6, generator(1)))]
    assert sorted(visited) == [0, 1, 2, 3, 4, 5]
    assert len(rows_of(tasks.sample(20, generator(1)))) == 20


def test_names_come_in_the_order_of_the_tasks_drawn():
    groups = {f"t{i}": Batch(torch.full((3 + i % 3, 1), float(i)), torch.zeros(3 + i % 3, 1)) for i in range(9)}
    tasks = GroupedRows(groups, shots=2)
    drawn = tasks.sample(7, generator(0, "names"))
    values = [value for task in drawn for value in task.support.inputs[:, 0, 0].tolist()]
    assert tasks.names(7, generator(0, "names")) == [f"t{value:.0f}" for value in values]


def test_the_same_stream_draws_the_same_tasks():
    tasks = GroupedRows(numbered(5, 9, 6, 9, 7), shots=3, queries=5)
    first, again, other = (rows_of(tasks.sample(4, generator(seed))) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_every_row_is_drawn_for_support_equally_often():
    tasks = GroupedRows(numbered(5), shots=2)
    draws = [row for support, _ in rows_of(tasks.sample(1000, generator(0))) for row in support]
    counts = [draws.count(row) for row in range(5)]
    assert counts == pytest.approx([400] * 5, abs=70)  # 4.5 standard deviations of a binomial(1000, 0.4)


def test_tasks_with_too_few_rows_are_listed_in_one_error():
    with pytest.raises(DataError, match=r"at least 4 rows.*: got 2 with fewer, 't0' \(3\), 't2' \(1\)\. Lower `tasks"):
        GroupedRows(numbered(3, 4, 1), shots=3)
    with pytest.raises(DataError, match=r"got 14 with fewer, .*'t9' \(2\), and 4 more\."):
        GroupedRows(numbered(*[2] * 14), shots=5)


@pytest.mark.parametrize(("shots", "queries"), [(0, 1), (1, 0)])
def test_shots_and_queries_are_at_least_one(shots, queries):
    with pytest.raises(ValueError, match=f"got shots={shots} and queries={queries}"):
        GroupedRows(numbered(3), shots, queries)
    with pytest.raises(ValueError, match="at least one task"):
        GroupedRows({}, 1)


def test_a_curve_shows_all_rows_of_one_task_by_ascending_input():
    x = torch.tensor([[3.0], [1], [2], [0]])
    curve = GroupedRows({"a": Batch(x, 10 * x)}, shots=2).curve(generator(0))
    assert curve.inputs.flatten().tolist() == [0, 1, 2, 3]
    assert curve.targets.flatten().tolist() == [0, 10, 20, 30]
    assert curve.task.support.inputs.shape == curve.task.query.inputs.shape == (2, 1)
    with pytest.raises(DataError, match=r"one target column of numbers: got \[2\] and \[1\]"):
        GroupedRows({"a": Batch(x.expand(4, 2), x)}, shots=2).curve(generator(0))


# --- bundled example


def test_the_bundled_table_is_what_its_script_writes():
    assert runpy.run_path(str(SCRIPT))["dose_response"]().encode() == DOSE_RESPONSE.read_bytes()


def test_the_bundled_table_is_a_ragged_distribution_of_tasks():
    table = read_table(DOSE_RESPONSE, "compound", ["log_dose"], ["response"])
    splits = split_tasks(table.groups)
    assert {name: len(tasks) for name, tasks in splits.items()} == {"train": 168, "val": 36, "test": 36}
    assert {len(batch.targets) for batch in table.groups.values()} == set(range(10, 17))
    scale = Standardization.fit([table.groups[name] for name in splits["train"]])
    tasks = GroupedRows({name: scale.standardize(table.groups[name]) for name in splits["test"]}, shots=5)
    drawn = as_list(tasks.sample(36, generator(0, "test")))
    assert sum(len(task.support.inputs) for task in drawn) == 36
    assert [task.query.inputs.shape[1] for task in drawn] == [5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_semicolons_and_tabs_separate_columns_as_commas_do(tmp_path, mark):
    text = '"site, room",x,y\n"a, 1",1.5,2\nb,3,4\n'
    (tmp_path / "commas.csv").write_text(text)
    (tmp_path / "other.csv").write_text(text.replace(", ", "&").replace(",", mark).replace("&", ", "))
    tables = [read_table(tmp_path / name, "site, room", ["x"], ["y"]) for name in ("commas.csv", "other.csv")]
    assert tables[0].content_hash == tables[1].content_hash
    assert list(tables[1].groups) == ["a, 1", "b"]


def test_without_commas_between_columns_those_in_numbers_are_decimal_marks(tmp_path):
    (tmp_path / "german.csv").write_text("site;x;y\na;1,5;-0,25\na;2;1.5\n")
    (group,) = read_table(tmp_path / "german.csv", "site", ["x"], ["y"]).groups.values()
    assert group.inputs.flatten().tolist() == [1.5, 2.0]
    assert group.targets.flatten().tolist() == [-0.25, 1.5]


def test_a_number_that_may_be_thousands_or_decimals_is_told_of(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("site;x;y\na;1.500;2\na;2.500;3\n")
    (group,) = read_table(tmp_path / "t.csv", "site", ["x"], ["y"]).groups.values()
    assert group.inputs.flatten().tolist() == [1.5, 2.5]
    assert "'1.500' in the column 'x' is read as 1.5" in caplog.text
    caplog.clear()
    (tmp_path / "t.csv").write_text("site;x;y\na;1.500;2\na;2.5;3\n")
    read_table(tmp_path / "t.csv", "site", ["x"], ["y"])
    assert not caplog.text


def test_incomplete_rows_and_small_tasks_are_dropped_and_told_of_where_asked(tmp_path, caplog):
    rows = [f"{site},{x},{x}" for site in "abcdef" for x in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(["site,x,y", *rows, "g,1,1", "a,,2", ",3,3"]))
    tasks = {"kind": "table", "path": str(tmp_path / "t.csv"), "task": "site", "inputs": ["x"], "targets": ["y"]}
    recipe = {"tasks": tasks, "model": {"kind": "mlp"}, "algorithm": {"kind": "maml"}}
    settings = ["tasks.shots=2", "tasks.incomplete=drop"]
    with pytest.raises(DataError, match=r"line 27, 'x': empty; line 28, 'site': empty"):
        load_data(load_recipe(recipe, settings[:1]))
    data = load_data(load_recipe(recipe, settings))
    assert sorted(name for names in data.record["splits"].values() for name in names) == list("abcdef")
    assert "left out 2 of 27 rows: line 27, 'x': empty" in caplog.text
    assert "left out 1 of 7 tasks, which have fewer than 3 rows" in caplog.text
