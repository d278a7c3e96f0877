"""The command line, as a user meets it: output, exit codes, and no traceback for anything that they type."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata

import pytest
from PIL import Image

from fewstep.errors import Interrupted
from fewstep.experiments.recipe_files import load_recipe
from fewstep.training.records import RunFolder

TINY = ["--set", "meta.iterations=6", "--set", "meta.batch_size=4", "--set", "model.hidden=[8]"]
TINY += ["--set", "validation={every=3, tasks=8}", "--set", "evaluate.tasks=10"]


@pytest.fixture
def trained(fewstep):
    def train(name="run", *more):
        code, _, err = fewstep("train", "sinusoid-10shot", *TINY, "--out", name, *more)
        assert code == 0, err
        return name

    return train


def test_help_names_the_commands_and_does_not_import_torch():
    script = "import sys; sys.argv = ['fewstep', '--help']\nfrom fewstep import cli\n"
    script += "try: cli.main()\nexcept SystemExit: pass\nprint('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    commands = ("recipes", "train", "evaluate", "inspect", "plot", "compare", "reproduce", "adapt", "demo", "data")
    assert all(word in done.stdout for word in commands)
    assert done.stderr.strip() == "False"


def test_recipes_lists_every_bundled_recipe_with_what_it_is(fewstep):
    code, out, _ = fewstep("recipes")
    assert code == 0
    assert "sinusoid-10shot" in out
    assert "MAML on sinusoid regression, 10 shots" in out


def test_a_bundled_recipe_can_be_read_and_trained_as_a_file(fewstep, tmp_path):
    code, out, _ = fewstep("recipes", "navigation-random")
    assert code == 0
    assert "iterations = 0" in out
    (tmp_path / "mine.toml").write_text(out)
    assert load_recipe(tmp_path / "mine.toml").meta.iterations == 0


def test_a_recipe_and_all_keys_are_not_shown_at_once(fewstep):
    code, _, err = fewstep("recipes", "navigation", "--keys")
    assert code == 2
    assert "not both" in err


def test_the_version_is_told(fewstep):
    code, out, _ = fewstep("--version")
    assert (code, out) == (0, f"fewstep {metadata.version('fewstep')}\n")


def test_train_evaluate_plot_and_compare_work_together(fewstep, trained, tmp_path):
    one, two = trained("one"), trained("two", "--seed", "1")
    for run in (one, two):
        code, out, _ = fewstep("evaluate", run)
        assert code == 0
        assert "step 10" in out
        assert "5-shot" in out or "shots" in out
    assert fewstep("plot", one)[0] == 0
    assert {p.name for p in (tmp_path / "one" / "plots").iterdir()} == {"training.png", "steps.png", "adaptation.png"}
    assert fewstep("plot", one, two, "--figure", "steps", "--out", "both.svg")[0] == 0
    assert (tmp_path / "both.svg").read_text().startswith("<?xml")
    code, out, _ = fewstep("compare", one, two, "--json")
    assert code == 0
    assert [each["label"] for each in json.loads(out)["evaluations"]] == ["sinusoid-10shot"] * 3
    assert json.loads(out)["differences"] == []
    assert not (tmp_path / "compare.png").exists()
    code, out, _ = fewstep("compare", one, two, "--out", "figure.pdf")
    assert code == 0
    assert "2 seeds" in out
    assert (tmp_path / "figure.pdf").stat().st_size > 1000


def test_evaluate_json_is_one_object_of_the_documented_form(fewstep, trained):
    code, out, _ = fewstep("evaluate", trained(), "--json", "--shots", 7, "--queries", 3, "--steps", 4, "--tasks", 5)
    result = json.loads(out)
    assert code == 0
    documented = [
        "recipe",
        "algorithm",
        "metric",
        "split",
        "tasks",
        "ways",
        "shots",
        "queries",
        "normalization",
        "seed",
    ]
    assert set(documented) <= set(result)
    assert (result["shots"], result["queries"], result["tasks"], result["split"]) == (7, 3, 5, "test")
    assert [row["step"] for row in result["steps"]] == [0, 1, 2, 3, 4]
    assert set(result["steps"][0]) == {"step", "mean", "ci95"}


def test_evaluate_on_validation_tasks_says_so(fewstep, trained):
    code, out, _ = fewstep("evaluate", trained(), "--split", "val", "--json")
    assert json.loads(out)["split"] == "val"
    assert code == 0


def test_inspect_prints_tables_and_draws_a_figure(fewstep, trained, tmp_path):
    code, out, _ = fewstep("inspect", trained(), "--steps", 2, "--tasks", 5)
    assert code == 0
    assert "body.0.linear" in out
    assert "the head's share of the gain" in out
    assert (tmp_path / "run" / "plots" / "inspection.png").stat().st_size > 1000
    code, out, _ = fewstep("inspect", "run", "--tasks", 5, "--split", "val", "--head", "body.*", "--json")
    result = json.loads(out)
    assert (code, result["split"], len(result["steps"])) == (0, "val", 11)
    assert result["head"]["parameters"] == ["body.0.linear.weight", "body.0.linear.bias"]


def test_seeds_makes_one_run_for_each(fewstep, tmp_path):
    code, _, err = fewstep("train", "sinusoid-10shot", *TINY, "--seeds", "0,3", "--out", "many")
    assert code == 0, err
    assert [RunFolder(tmp_path / f"many-seed{s}").config["seed"] for s in (0, 3)] == [0, 3]


@pytest.mark.parametrize(
    ("words", "again"),
    [
        (
            ["train", "navigation", "--seeds", "0,3", "--out", "many"],
            "train navigation --seeds 0,3 --out many --resume",
        ),
        (["train", "navigation", "--seeds", "0,3"], "train navigation --seeds 0,3 --resume"),
        (["train", "navigation", "--seed", "3"], "train navigation --seed 3 --out runs/navigation-seed3 --resume"),
        (["demo", "--out", "my runs"], "demo --out 'my runs'"),
    ],
)
def test_what_was_interrupted_goes_on_with_the_command_that_is_told(fewstep, monkeypatch, words, again):
    def interrupted(*_, **__):
        raise Interrupted("Stopped.")

    monkeypatch.setattr("fewstep.experiments.train_run.train", interrupted)
    code, _, err = fewstep(*words)
    assert (code, err) == (130, f"Stopped. Go on with: fewstep {again}\n")


def test_the_default_folder_is_named_after_recipe_and_seed(fewstep, tmp_path):
    assert fewstep("train", "sinusoid-10shot", *TINY, "--seed", 2)[0] == 0
    assert RunFolder(tmp_path / "runs" / "sinusoid-10shot-seed2").is_finished


def test_a_run_is_plain_and_short_when_not_on_a_terminal(fewstep):
    _, out, err = fewstep("train", "sinusoid-10shot", *TINY, "--out", "run")
    assert "\x1b" not in out + err
    assert len(err.splitlines()) == 2
    assert "tasks/s" in err


def test_resume_of_a_finished_run_exits_at_once_with_zero(fewstep, trained):
    run = trained()
    assert fewstep("train", "sinusoid-10shot", *TINY, "--out", run, "--resume")[0] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "sinusoid-11shot"], "Bundled are: "),
        (["train", "nowhere.toml"], "nowhere.toml"),
        (["train", "sinusoid-10shot", "--set", "tasks.shotz=3"], "tasks.shotz: unknown key. Valid keys here: kind"),
        (["train", "sinusoid-10shot", "--set", "meta.lr"], "key=value"),
        (["train", "sinusoid-10shot", "--set", "meta.lr=fast"], "meta.lr"),
        (["train", "sinusoid-10shot", "--seeds", "1,x"], "--seeds must be whole numbers"),
        (["train", "sinusoid-10shot", "--seeds", "1,1"], "must differ"),
        (["train", "sinusoid-10shot", "--seeds", "1", "--seed", "1"], "not both"),
        (["train", "sinusoid-10shot", "--seed", "-1"], "seed"),
        (["train", "sinusoid-10shot", "--seeds", "0,1", "--out", "."], "--out must end in a name"),
        (["train", "sinusoid-10shot", "--device", "abacus"], "--device must be one that torch can use"),
        (["train", "omniglot-5way-1shot", "--data", "nowhere"], "nowhere"),
        (["train", "dose-response", "--set", "tasks.path=none.csv"], "none.csv"),
        (["train", "dose-response", "--set", "tasks.shots=30"], "tasks.shots"),
        (["train", "omniglot-5way-1shot", "--data", "~nobody-of-this-name/x"], "data folder must be a path"),
        (["train", "dose-response", "--set", "tasks.path=~nobody-of-this-name/x"], "tasks.path must be a path"),
        (
            ["train", "sinusoid-10shot", "--set", "evaluate.variants=[{shotz=3}]"],
            "Valid keys here: shots, queries, norm",
        ),
        (["data", "check", "nowhere"], "there is no nowhere"),
        (["data", "check", "."], "there are none. Check the path"),
        (["data", "miniimagenet", "."], "Put miniimagenet/ there, with train, val and test"),
        (["evaluate", "nowhere"], "there is no nowhere. Ready are: glyphs-5way-1shot"),
        (["evaluate", "."], "no config.json"),
        (["plot", "nowhere"], "no such folder"),
        (["compare", "nowhere"], "no such folder"),
        (["evaluate"], "RUN"),
        (["frobnicate"], "frobnicate"),
        (["train", "navigaton"], "Did you mean navigation?"),
        (["recipes", "navigaton"], "Did you mean navigation?"),
        (["train", "navigation", "--set", "meta.max_kl=0"], "navigation with meta.max_kl=0 is not a possible recipe"),
        (["evaluate", "x", "--shots", "0"], "--shots"),
        (["inspect", "nowhere"], "there is no nowhere"),
        (["inspect", "sinusoid-10shot", "--steps", "0"], "--steps"),
        (["inspect", "sinusoid-10shot", "--head", "neck.*"], "--head must match a parameter of the model: 'neck.*'"),
        (["inspect", "sinusoid-10shot", "--out", "figure.bmp"], "figure.bmp"),
    ],
)
def test_bad_input_is_one_clear_error_with_code_2_and_writes_nothing(fewstep, tmp_path, words, told):
    code, out, err = fewstep(*words)
    assert code == 2
    assert told in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of three classes with 1, 2 and 3 pictures."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    for number, name in enumerate(("ä", "b", "c")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for picture in range(number + 1):
            Image.new("L", (5, 5)).save(tmp_path / "mine" / name / f"{picture}.png")
    return tmp_path / "mine"


def test_data_check_tells_what_is_there(fewstep, pictures):
    code, out, err = fewstep("data", "check", "mine")
    assert (code, err) == (0, "")
    assert out.startswith("A folder of pictures: train 1 class, ")
    shutil.rmtree(pictures / "b")
    assert "A folder of pictures: all 2 classes, 4 pictures (1 to 3 each)" in fewstep("data", "check", "mine")[1]


def test_data_check_lists_what_is_unreadable(fewstep, pictures):
    (pictures / "c" / "text.png").write_text("text")
    code, out, err = fewstep("data", "check", "mine")
    assert (code, out) == (2, "")
    assert "Each of 7 pictures must be readable; unreadable: 1 found" in err
    assert "text.png: no picture of a kind that is read" in err


def test_data_check_finds_data_sets_and_tells_the_good_before_the_bad(
    fewstep, tmp_path, monkeypatch, small_miniimagenet, shared_cache
):
    monkeypatch.setenv("FEWSTEP_CACHE", str(shared_cache))
    for name in ("check", "miniimagenet"):
        code, out, _ = fewstep("data", name, small_miniimagenet)
        assert code == 0
        assert "MiniImagenet: train 64 classes, 1,280 pictures (20 each); val 16" in out
    shutil.copytree(small_miniimagenet, tmp_path / "data")
    (tmp_path / "data" / "omniglot" / "images_background").mkdir(parents=True)
    code, out, err = fewstep("data", "check", "data")
    assert code == 2
    assert out.startswith("MiniImagenet")
    assert "no images_evaluation there" in err


def test_too_little_memory_is_one_message(fewstep):
    code, _, err = fewstep("train", "sinusoid-10shot", "--set", "model.hidden=[1000000, 1000000]", "--out", "run")
    assert code == 1
    assert "memory does not suffice" in err


def test_a_finished_run_goes_on_where_more_iterations_are_asked_for(fewstep, trained):
    run = trained()
    longer = [*TINY, "--set", "meta.iterations=9"]
    assert fewstep("train", "sinusoid-10shot", *longer, "--out", run, "--resume")[0] == 0
    assert RunFolder(run).metrics()[-1]["iteration"] == 9


def test_a_recipe_that_asks_for_more_iterations_than_a_run_was_begun_with_says_how_to_get_them(
    fewstep, trained, caplog
):
    assert fewstep("train", "sinusoid-10shot", *TINY[2:], "--out", trained(), "--resume")[0] == 0
    (said,) = [record.getMessage() for record in caplog.records if "now says" in record.getMessage()]
    assert said.startswith("The run has its 6 iterations; the recipe now says 70000. To go on to these, set")
    assert "--set meta.iterations=70000" in said


def test_one_file_gets_the_first_figure_that_all_runs_have_data_for(fewstep, trained, tmp_path):
    code, _, err = fewstep("train", "sinusoid-10shot", *TINY, "--set", "meta.iterations=0", "--out", "random")
    assert code == 0, err
    for run in (trained(), "random"):
        assert fewstep("evaluate", run)[0] == 0
    code, out, _ = fewstep("plot", "run", "random", "--out", "both.png")
    assert (code, out) == (0, "Wrote both.png\n")
    assert fewstep("plot", "run")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "plots").iterdir()}
    assert fewstep("plot", "run", "random", "--figure", "steps")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_existing_run_is_refused_by_name_of_resume(fewstep, trained):
    code, _, err = fewstep("train", "sinusoid-10shot", *TINY, "--out", trained())
    assert code == 2
    assert "--resume" in err


def test_compare_asks_for_an_evaluation_first(fewstep, trained):
    code, _, err = fewstep("compare", trained())
    assert code == 2
    assert "fewstep evaluate run" in err


def test_plot_names_the_formats_it_can_write(fewstep, trained):
    code, _, err = fewstep("plot", trained(), "--out", "figure.bmp")
    assert code == 2
    assert "png" in err


def test_divergence_is_one_message_and_another_code(fewstep):
    words = ["--set", "algorithm.inner_lr=1e12", "--set", "algorithm.steps=5", "--out", "run"]
    code, _, err = fewstep("train", "sinusoid-10shot", *TINY, *words)
    assert code == 1
    assert "iteration 1" in err
    assert "inner learning rate" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_says_how_to_resume_and_exits_non_zero(tmp_path, number):
    command = [sys.executable, "-m", "fewstep.cli", "train", "sinusoid-10shot"]
    command += ["--set", "meta.iterations=100000", "--set", "validation.every=5", "--out", "run"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "best.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Go on with: fewstep train sinusoid-10shot" in err
    assert "--resume" in err
    assert "Traceback" not in err
    assert (tmp_path / "run" / "checkpoint.pt").exists()
