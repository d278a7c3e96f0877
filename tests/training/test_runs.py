"""Run folders: determinism, resume, and everything that can go wrong on a disk."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import fewstep
from fewstep.core.types import Batch, Task
from fewstep.errors import DataError, Interrupted, NonFiniteError, RecipeError, RunError
from fewstep.experiments import resuming, train_run
from fewstep.experiments.recipe_files import load_recipe
from fewstep.experiments.runs import computing_as
from fewstep.models.mlp import mlp
from fewstep.tasks.sinusoid import Sinusoid
from fewstep.training import checkpoint, loop
from fewstep.training.records import RunFolder, locked
from fewstep.training.tensorboard import TensorBoard

TINY = [
    "meta.batch_size=4",
    "validation.tasks=8",
    "validation.every=4",
    "model.hidden=[8]",
    "evaluate.tasks=10",
]

USED = ("seconds", "peak_memory_mib")  # of the machine, not of the training


def train(out, *settings, recipe="sinusoid-10shot", **how):
    return fewstep.train(recipe, out=out, settings=[*TINY, *settings], **how)


def final(run):
    return load_file(run.path / "params.safetensors")


def assert_identical(one, other):
    left, right = final(one), final(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_one_seed_gives_one_result_bit_for_bit(tmp_path):
    runs = [train(tmp_path / name, "meta.iterations=6") for name in "ab"]
    assert_identical(*runs)
    timeless = [[{k: v for k, v in r.items() if k not in USED} for r in run.metrics()] for run in runs]
    assert timeless[0] == timeless[1]


def test_another_seed_gives_another_result(tmp_path):
    runs = [train(tmp_path / str(seed), "meta.iterations=2", f"seed={seed}") for seed in (0, 1)]
    assert not torch.equal(final(runs[0])["model.head.weight"], final(runs[1])["model.head.weight"])


@pytest.mark.parametrize("rule", ["algorithm.rule=sgd", "algorithm.rule=learned_sgd", "meta.clip_norm=0.5"])
def test_five_iterations_and_five_more_equal_ten_bit_for_bit(tmp_path, rule):
    whole = train(tmp_path / "whole", "meta.iterations=10", rule)
    train(tmp_path / "parts", "meta.iterations=5", rule)
    parts = train(tmp_path / "parts", "meta.iterations=10", rule, resume=True)
    assert_identical(whole, parts)


class StopAfter:
    """Asks to stop, as Ctrl-C would, once an iteration is done."""

    def __init__(self, iteration, number=signal.SIGINT):
        self.iteration, self.number = iteration, number

    def update(self, iteration, record):
        if iteration == self.iteration and "query_loss" in record:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path, number, schedule):
    settings = ["meta.iterations=10", f"meta.schedule={schedule}"]
    whole = train(tmp_path / "whole", *settings)
    with pytest.raises(Interrupted, match="iteration 7 of 10"):
        train(tmp_path / "parts", *settings, watchers=[StopAfter(7, number)])
    assert not RunFolder(tmp_path / "parts").is_finished
    resumed = train(tmp_path / "parts", *settings, resume=True)
    assert_identical(whole, resumed)
    keep = lambda run: [{k: v for k, v in r.items() if k not in USED} for r in run.metrics()]  # noqa: E731
    assert keep(whole) == keep(resumed)


def test_before_the_first_iteration_is_done_a_signal_stops_at_once(tmp_path):
    drawn = []

    class Stopping(Sinusoid):
        def sample(self, num_tasks, generator):
            drawn.append(num_tasks)
            if drawn.count(7) == 2:  # a meta-batch, after one that was only tried
                signal.raise_signal(signal.SIGTERM)
            return super().sample(num_tasks, generator)

    recipe = {"tasks": {"kind": "custom"}, "model": {"kind": "custom"}, "loss": {"kind": "mse"}}
    recipe |= {"algorithm": {"kind": "maml", "inner_lr": 0.01}, "meta": {"batch_size": 7}}
    with pytest.raises(Interrupted, match="before the first iteration was done"):
        fewstep.train(recipe, out=tmp_path / "run", model=mlp(1, 1, (8,)), task_distribution=Stopping())
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_distribution_that_draws_from_elsewhere_is_told_of_it(tmp_path, caplog):
    class Elsewhere(Sinusoid):
        def sample(self, num_tasks, generator):
            return super().sample(num_tasks, torch.default_generator)

    recipe = {"tasks": {"kind": "custom"}, "model": {"kind": "custom"}, "loss": {"kind": "mse"}}
    recipe |= {"algorithm": {"kind": "maml", "inner_lr": 0.01}, "meta": {"iterations": 1, "batch_size": 4}}

    class Padded(Sinusoid):
        def sample(self, num_tasks, generator):
            support, query = super().sample(num_tasks, generator)
            return Task(support, query._replace(targets=query.targets.masked_fill(query.targets > 1, torch.nan)))

    train_run._tell_of_chance(Padded(), seed=0)
    assert not caplog.records
    for tasks in (Sinusoid(), Elsewhere()):
        fewstep.train(recipe, out=tmp_path / type(tasks).__name__, model=mlp(1, 1, (8,)), task_distribution=tasks)
        assert ("Tasks of Elsewhere differ when they are drawn again" in caplog.text) == isinstance(tasks, Elsewhere)


def test_a_distribution_that_draws_other_numbers_of_tasks_is_refused(tmp_path):
    class Few(Sinusoid):
        def sample(self, num_tasks, generator):
            return super().sample(3, generator)

    recipe = {"tasks": {"kind": "custom"}, "model": {"kind": "custom"}, "loss": {"kind": "mse"}}
    recipe |= {"algorithm": {"kind": "maml", "inner_lr": 0.01}, "meta": {"iterations": 1, "batch_size": 4}}
    run = fewstep.train(recipe, out=tmp_path / "run", model=mlp(1, 1, (8,)), task_distribution=Sinusoid())
    with pytest.raises(DataError, match="got 3 of 600 from Few"):
        fewstep.evaluate(run, model=mlp(1, 1, (8,)), task_distribution=Few())
    for few in (Few(), {"train": Sinusoid(), "val": Few(), "test": Sinusoid()}):
        with pytest.raises(DataError, match=r"got 3 of .* from Few"):
            fewstep.train(recipe, out=tmp_path / "few", model=mlp(1, 1, (8,)), task_distribution=few)
    with pytest.raises(RecipeError, match=r"got the class Few, not one made of it"):
        fewstep.train(recipe, out=tmp_path / "other", model=mlp(1, 1, (8,)), task_distribution=Few)
    with pytest.raises(RecipeError, match=r"Tasks from Python are a distribution, .* got list"):
        fewstep.train(recipe, out=tmp_path / "other", model=mlp(1, 1, (8,)), task_distribution=[Few()])


def test_handlers_of_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(tmp_path / "run", "meta.iterations=1")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_killed_run_goes_on_to_the_same_result(tmp_path):
    script = (
        "import sys, fewstep, fewstep.experiments.runs as r\n"
        "from fewstep.training import loop\n"
        "plan = loop.Plan\n"
        "loop.Plan = lambda **k: plan(**k, checkpoint_seconds=0.0)\n"
        "fewstep.train('sinusoid-10shot', out=sys.argv[1], settings=sys.argv[2:])\n"
    )
    settings = [*TINY, "meta.iterations=400", "validation.every=50"]
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "killed"), *settings])
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    process.wait()
    reached = checkpoint.load_checkpoint(tmp_path / "killed" / "checkpoint.pt")["learner"]["iteration"]
    assert 0 < reached < 400
    resumed = fewstep.train("sinusoid-10shot", out=tmp_path / "killed", settings=settings, resume=True)
    whole = fewstep.train("sinusoid-10shot", out=tmp_path / "whole", settings=settings)
    assert_identical(whole, resumed)
    assert [r["iteration"] for r in resumed.metrics()] == [r["iteration"] for r in whole.metrics()]


def test_resume_starts_at_zero_where_nothing_was_saved(tmp_path):
    whole = train(tmp_path / "whole", "meta.iterations=3")
    started = train(tmp_path / "new", "meta.iterations=3")
    for name in ("checkpoint.pt", "params.safetensors", "best.safetensors", "metrics.jsonl"):
        (started.path / name).unlink(missing_ok=True)
    assert_identical(whole, train(tmp_path / "new", "meta.iterations=3", resume=True))
    assert_identical(whole, train(tmp_path / "never-begun", "meta.iterations=3", resume=True))


def test_resume_leaves_a_finished_run_alone(tmp_path):
    run = train(tmp_path / "run", "meta.iterations=3")
    before = {p.name: p.stat().st_mtime_ns for p in run.path.iterdir()}
    train(tmp_path / "run", "meta.iterations=3", resume=True)
    assert {p.name: p.stat().st_mtime_ns for p in run.path.iterdir()} == before


@pytest.mark.parametrize("why", ["damaged", "stopped in its first iteration"])
def test_a_finished_run_that_cannot_go_on_stays_as_it_is(tmp_path, monkeypatch, why):
    run = train(tmp_path / "run", "meta.iterations=4")
    before = final(run)
    if why == "damaged":
        (run.path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    else:
        monkeypatch.setattr(loop, "_iterate", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises((RunError, Interrupted)):
        train(run.path, "meta.iterations=40", resume=True)
    left = RunFolder(run.path)
    assert left.is_finished
    assert left.config["meta"]["iterations"] == 4
    assert all(torch.equal(value, before[name]) for name, value in final(left).items())


def test_a_finished_run_without_its_checkpoint_does_not_begin_again(tmp_path):
    run = train(tmp_path / "run", "meta.iterations=4")
    (run.path / "checkpoint.pt").unlink()
    before = run.metrics()
    with pytest.raises(
        RunError, match=r"finished, but its checkpoint is gone. Begin a new run from it with --set meta"
    ):
        train(run.path, "meta.iterations=8", resume=True)
    assert run.is_finished
    assert run.metrics() == before
    assert train(run.path, "meta.iterations=4", resume=True).is_finished
    further = train(tmp_path / "further", "meta.iterations=0", f"meta.start={run.path}")
    assert_identical(run, further)


def test_a_resume_with_another_module_is_refused_by_name(tmp_path):
    train(tmp_path / "run", "model={kind='custom'}", "meta.iterations=2", model=mlp(1, 1, (8,)))
    with pytest.raises(RunError, match="of another model or rule than this one"):
        train(tmp_path / "run", "model={kind='custom'}", "meta.iterations=4", model=mlp(1, 1, (9,)), resume=True)


def test_a_finished_run_says_that_its_recipe_now_asks_for_more(tmp_path, caplog):
    run = train(tmp_path / "run", "meta.iterations=2")
    recipe = run.config | {"meta": run.config["meta"] | {"iterations": 5}}
    fewstep.train(recipe, out=run.path, resume=True)
    assert "has its 2 iterations; the recipe now says 5" in caplog.text


def test_an_existing_run_is_never_overwritten(tmp_path):
    train(tmp_path / "run", "meta.iterations=1")
    with pytest.raises(RunError, match="--resume"):
        train(tmp_path / "run", "meta.iterations=1")


def test_resume_refuses_another_recipe_and_names_the_keys(tmp_path):
    train(tmp_path / "run", "meta.iterations=1")
    with pytest.raises(RunError, match=r"meta\.lr, seed"):
        train(tmp_path / "run", "meta.iterations=2", "seed=3", "meta.lr=0.1", resume=True)


def test_resume_refuses_more_iterations_where_the_schedule_depends_on_them(tmp_path):
    train(tmp_path / "run", "meta.iterations=1", "meta.schedule=cosine")
    with pytest.raises(RunError, match=r"meta\.schedule"):
        train(tmp_path / "run", "meta.iterations=2", "meta.schedule=cosine", resume=True)


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        train(tmp_path, "meta.iterations=1")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("precious")
    with pytest.raises(RunError, match="is a file"):
        train(tmp_path / "run", "meta.iterations=1")


def test_a_second_training_into_one_folder_is_refused(tmp_path):
    with locked(tmp_path / "run"), pytest.raises(RunError, match="one training at a time"):
        train(tmp_path / "run", "meta.iterations=1")


def test_a_bad_recipe_writes_nothing(tmp_path):
    with pytest.raises(fewstep.FewstepError, match="hiden"):
        train(tmp_path / "run", "model.hiden=[3]")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_loses_nothing_and_says_so(tmp_path, monkeypatch):
    train(tmp_path / "run", "meta.iterations=5")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(RunError, match="No space left on device"):
            train(tmp_path / "run", "meta.iterations=10", resume=True)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob("*.tmp"))
    whole = train(tmp_path / "whole", "meta.iterations=10")
    assert_identical(whole, train(tmp_path / "run", "meta.iterations=10", resume=True))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_checkpoint_is_named_and_not_touched(tmp_path, damage):
    run = train(tmp_path / "run", "meta.iterations=4")
    path = run.path / "checkpoint.pt"
    damaged = {"truncated": path.read_bytes()[:-500], "garbage": b"not a checkpoint", "empty": b""}[damage]
    path.write_bytes(damaged)
    with pytest.raises(RunError, match=r"checkpoint\.pt cannot be read"):
        train(tmp_path / "run", "meta.iterations=8", resume=True)
    assert path.read_bytes() == damaged


def test_a_checkpoint_of_another_version_is_named(tmp_path):
    run = train(tmp_path / "run", "meta.iterations=4")
    torch.save({"format": 99}, run.path / "checkpoint.pt")
    with pytest.raises(RunError, match="its format is 99"):
        train(tmp_path / "run", "meta.iterations=8", resume=True)


def test_a_checkpoint_never_runs_code(tmp_path):
    run = train(tmp_path / "run", "meta.iterations=4")
    torch.save({"format": 1, "evil": loop.Plan(1, 1)}, run.path / "checkpoint.pt")
    with pytest.raises(RunError, match="cannot be read"):
        train(tmp_path / "run", "meta.iterations=8", resume=True)


def test_a_run_of_another_format_is_named(tmp_path):
    run = train(tmp_path / "run", "meta.iterations=1")
    stored = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps(stored | {"format": 99}))
    with pytest.raises(RunError, match="its format is 99"):
        RunFolder(run.path)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1', "null"])
def test_a_damaged_config_is_named(tmp_path, text):
    run = train(tmp_path / "run", "meta.iterations=1")
    (run.path / "config.json").write_text(text)
    with pytest.raises(RunError, match=r"config\.json|its format"):
        fewstep.load(run.path)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(RunError, match=r"no config\.json"):
        fewstep.load(tmp_path)
    with pytest.raises(RunError, match=r"there is no .*nowhere"):
        fewstep.evaluate(tmp_path / "nowhere")


def test_an_unfinished_run_cannot_be_loaded_and_says_why(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path / "run", "meta.iterations=10", watchers=[StopAfter(2)])
    with pytest.raises(RunError, match="training has not come so far"):
        fewstep.load(tmp_path / "run")


def test_damaged_meta_parameters_are_named(tmp_path):
    run = train(tmp_path / "run", "meta.iterations=4")
    (run.path / "best.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(RunError, match=r"best\.safetensors cannot be read"):
        fewstep.load(run.path)


def test_divergence_stops_with_iteration_tasks_and_remedy_and_the_checkpoint_stands(tmp_path):
    run = train(tmp_path / "run", "meta.iterations=4")
    good = (run.path / "checkpoint.pt").read_bytes()

    class Poisoned:
        def sample(self, num_tasks, generator):
            inputs = torch.rand(num_tasks, 5, 1, generator=generator)
            inputs[2] = torch.nan
            return Task(Batch(inputs, inputs), Batch(inputs, inputs))

    learner = fewstep.load(run)
    learner.iteration = 0
    with pytest.raises(NonFiniteError, match=r"iteration 5 .*task 2 \(its support inputs\).*checkpoint.*stands"):
        loop.train(learner, Poisoned(), run, loop.Plan(8, 4), validate=dict)
    assert (run.path / "checkpoint.pt").read_bytes() == good


def test_a_metric_that_is_not_finite_on_some_tasks_is_told_of_with_the_tasks(caplog):
    def undefined_below_zero(outputs, targets):
        return (outputs - targets).mean().sqrt()

    metrics = {"root": undefined_below_zero}
    result = fewstep.evaluate("sinusoid-10shot", tasks=6, steps=1, metrics=metrics)
    assert result["metrics"]["root"][1]["mean"] is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert re.search(r"\d of 6 tasks of test have no finite root, and so it has no mean: task \d", message)


def test_a_validation_without_a_mean_is_told_of(tmp_path, caplog):
    settings = ("meta.iterations=2", "algorithm.inner_lr=1e30", "algorithm.kind=joint", "validation.steps=9")
    train(tmp_path / "run", *settings, "validation.every=1")
    assert "tasks of val have no finite loss" in caplog.text


def test_a_diverging_inner_loop_is_named_as_such(tmp_path):
    with pytest.raises(NonFiniteError, match=r"lower the inner learning rate"):
        train(tmp_path / "run", "meta.iterations=50", "algorithm.inner_lr=1e12", "algorithm.steps=5")


def test_early_stopping_keeps_the_best(tmp_path):
    run = train(tmp_path / "run", "meta.iterations=400", "validation.every=2", "validation.patience=2", "meta.lr=1.0")
    validations = [r for r in run.metrics() if r["split"] == "val"]
    assert run.is_finished
    assert validations[-1]["iteration"] < 400
    best = min(validations, key=lambda r: r["score"])
    assert best["iteration"] == validations[-3]["iteration"]
    assert fewstep.load(run).iteration == best["iteration"]
    assert fewstep.load(run, checkpoint="final").iteration == validations[-1]["iteration"]


def test_early_stopping_without_any_finite_score_is_told_of_as_divergence(tmp_path, caplog):
    settings = ["validation.every=2", "validation.steps=200", "validation.patience=1", "algorithm.inner_lr=0.9"]
    train(tmp_path / "run", "meta.iterations=8", *settings)
    assert "Stopped after iteration 2 of 8: no validation had a finite score, so training diverged" in caplog.text


def test_early_stopping_is_told_and_a_larger_patience_goes_on(tmp_path, caplog):
    settings = ["meta.iterations=60", "validation.every=2", "meta.lr=1.0"]
    stopped = train(tmp_path / "run", *settings, "validation.patience=1")
    iteration = fewstep.load(stopped, checkpoint="final").iteration
    assert iteration < 60
    assert f"Stopped after iteration {iteration} of 60: the last 1 validations were no better" in caplog.text
    went_on = train(tmp_path / "run", *settings, "validation.patience=1000", resume=True)
    assert fewstep.load(went_on, checkpoint="final").iteration == 60
    assert train(tmp_path / "run", *settings, resume=True).config["validation"]["patience"] == 1000
    assert_identical(went_on, train(tmp_path / "whole", *settings, "validation.patience=1000"))


def test_tensorboard_shows_no_iteration_twice_where_a_killed_run_goes_on(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for iterations in (range(1, 5), range(3, 7)):
        board = TensorBoard(tmp_path / "board", every=1)
        for iteration in iterations:
            board.update(iteration, {"query_loss": 1.0})
        board.close()
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/query_loss")] == [1, 2, 3, 4, 5, 6]


def test_zero_iterations_is_the_random_baseline(tmp_path):
    run = train(tmp_path / "run", "meta.iterations=0")
    assert run.is_finished
    assert fewstep.evaluate(run)["iteration"] == 0


def test_training_begins_at_another_run_where_asked(tmp_path):
    first = train(tmp_path / "first", "meta.iterations=2")
    start = f"meta.start={first.path}"
    assert_identical(first, train(tmp_path / "same", "meta.iterations=0", "seed=1", start))
    further = train(tmp_path / "further", "meta.iterations=2", "seed=1", start)
    assert not torch.equal(final(first)["model.head.weight"], final(further)["model.head.weight"])


def test_what_the_run_to_begin_at_does_not_have_begins_anew_and_is_named(tmp_path, caplog):
    first = train(tmp_path / "first", "meta.iterations=2")
    deeper = train(tmp_path / "deeper", "meta.iterations=0", "model.hidden=[8, 8]", f"meta.start={first.path}")
    same = {name for name, value in final(first).items() if torch.equal(value, final(deeper).get(name, value[:0]))}
    assert same == {"model.body.0.linear.weight", "model.body.0.linear.bias", "model.head.weight", "model.head.bias"}
    assert "begins anew: body.1.linear.weight, body.1.linear.bias" in caplog.text


def test_where_a_run_began_is_found_beside_the_recipe_and_remembered(tmp_path, monkeypatch):
    first = train(tmp_path / "first", "meta.iterations=2")
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'tasks = {kind = "sinusoid"}\nmodel = {kind = "mlp"}\nalgorithm = {kind = "maml", inner_lr = 0.01}\n'
        'meta = {start = "first", iterations = 0}\n',
        encoding="utf-8",
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = train(tmp_path / "run", recipe=recipe)
    assert_identical(first, run)
    start = json.loads((run.path / "versions.json").read_text(encoding="utf-8"))["start"]
    assert start["iteration"] == 2
    assert start["file"].startswith(str(first.path))
    assert len(start["sha256"]) == 64


def test_a_run_goes_on_where_its_table_and_its_recipe_were_moved(tmp_path):
    rows = [f"{task},{x},{task * x}" for task in range(20) for x in range(6)]
    text = (
        'tasks = {kind = "table", path = "t.csv", task = "t", inputs = ["x"], targets = ["y"], shots = 2, queries = 2}'
    )
    text += '\nmodel = {kind = "mlp"}\nalgorithm = {kind = "maml", inner_lr = 0.01}\n'
    for folder, name in (("one", "mine"), ("two", "renamed")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.csv").write_text("t,x,y\n" + "\n".join(rows), encoding="utf-8")
        (tmp_path / folder / f"{name}.toml").write_text(text, encoding="utf-8")
    train(tmp_path / "run", "meta.iterations=2", recipe=tmp_path / "one" / "mine.toml")
    (tmp_path / "one" / "t.csv").unlink()
    run = train(tmp_path / "run", "meta.iterations=4", recipe=tmp_path / "two" / "renamed.toml", resume=True)
    assert fewstep.evaluate(run)["iteration"] == 4
    (tmp_path / "two" / "t.csv").rename(tmp_path / "t.csv")
    how = {"recipe": tmp_path / "two" / "renamed.toml", "data": tmp_path / "t.csv", "resume": True}
    run = train(run.path, "meta.iterations=5", **how)
    assert fewstep.evaluate(run, checkpoint="final")["iteration"] == 5  # where the table lies is remembered
    (tmp_path / "t.csv").rename(tmp_path / "two" / "t.csv")
    (tmp_path / "one" / "t.csv").write_text("t,x,y\n" + "\n".join(reversed(rows)), encoding="utf-8")
    for iterations in (5, 6):  # though what it was trained on still lies in the other place
        with pytest.raises(DataError, match="content hash"):
            train(tmp_path / "run", f"meta.iterations={iterations}", recipe=tmp_path / "one" / "mine.toml", resume=True)


def test_a_run_to_begin_at_must_share_parameters(tmp_path):
    first = train(tmp_path / "first", "meta.iterations=0")
    with pytest.raises(RunError, match="shares none"):
        train(tmp_path / "other", f"meta.start={first.path}", recipe="navigation")
    with pytest.raises(RunError, match=r"meta\.start must be .* there is no nowhere"):
        train(tmp_path / "other", "meta.start=nowhere", "tasks.path=none.csv", recipe="dose-response")


def test_a_resume_goes_on_from_its_checkpoint_and_not_from_where_it_began(tmp_path):
    first = train(tmp_path / "first", "meta.iterations=1")
    settings = [f"meta.start={first.path}", "seed=1"]
    train(tmp_path / "run", "meta.iterations=2", *settings)
    resumed = train(tmp_path / "run", "meta.iterations=4", *settings, resume=True)
    assert_identical(resumed, train(tmp_path / "whole", "meta.iterations=4", *settings))


def test_evaluation_tasks_do_not_depend_on_training_or_its_seed(tmp_path):
    runs = [train(tmp_path / str(i), f"meta.iterations={i}", f"seed={i}") for i in (1, 2)]
    one, other = (fewstep.evaluate(run) for run in runs)
    assert one["fingerprint"] == other["fingerprint"]
    assert one["steps"] != other["steps"]
    assert fewstep.evaluate(runs[0], split="val")["fingerprint"] != one["fingerprint"]


def test_a_tuned_step_size_comes_from_the_candidates_and_validation_tasks(tmp_path):
    settings = ["meta.iterations=300", "evaluate.tasks=100", "evaluate.tune_inner_lr=[1e-6, 0.02, 100.0]"]
    settings += ["meta.batch_size=25", "model.hidden=[40]", "evaluate.shots=20"]
    run = train(tmp_path / "run", *settings, recipe="sinusoid-pretrained")
    result = fewstep.evaluate(run)
    assert result["inner_lr"] == 0.02
    assert result["steps"][-1]["mean"] < result["steps"][0]["mean"]


@pytest.mark.parametrize("how", ["at once", "one by one", "compiled"])
def test_dropout_is_replayed_by_a_resume(tmp_path, how, monkeypatch):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = torch.nn.Linear(1, 8), torch.nn.Linear(8, 1)

        def forward(self, x):
            if how == "one by one":
                x.sum().item()  # has no vmap rule
            return self.two(torch.nn.functional.dropout(self.one(x), 0.5, self.training))

    torch.manual_seed(0)
    net = Net()
    settings = ["model={kind='custom'}", f"execution.compile={str(how == 'compiled').lower()}"]
    whole = train(tmp_path / "whole", *settings, "meta.iterations=6", model=net)
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", *settings, "meta.iterations=6", model=net, watchers=[StopAfter(3)])
    torch.rand(5)  # the global stream has moved on meanwhile
    assert_identical(whole, train(tmp_path / "parts", *settings, "meta.iterations=6", model=net, resume=True))


def test_a_run_trained_with_the_users_own_module_is_loaded_with_it(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    run = train(tmp_path / "run", "model={kind='custom'}", "meta.iterations=3", model=net)
    learner = fewstep.load(run, model=net)
    assert torch.equal(learner.meta.model["0.weight"], final(run)["model.0.weight"])
    assert not torch.equal(learner.meta.model["0.weight"], net[0].weight)
    with pytest.raises(fewstep.FewstepError, match="model="):
        fewstep.load(run)
    with pytest.raises(RunError, match="does not fit the model"):
        fewstep.load(run, model=torch.nn.Linear(1, 1))


def test_a_validation_that_diverges_is_never_the_best(tmp_path):
    run = train(
        tmp_path / "run", "meta.iterations=4", "validation.every=2", "validation.steps=200", "algorithm.inner_lr=0.9"
    )
    validations = [r for r in run.metrics() if r["split"] == "val"]
    assert [r["score"] for r in validations] == [None, None]
    assert not (run.path / "best.safetensors").exists()
    assert fewstep.load(run).iteration == 4
    assert fewstep.evaluate(run, steps=200)["steps"][-1] == {"step": 200, "mean": None, "ci95": None}


def test_iterations_may_not_shrink_on_resume(tmp_path):
    run = train(tmp_path / "run", "meta.iterations=6")
    before = (run.path / "config.json").read_bytes()
    with pytest.raises(RunError, match="may only grow"):
        train(tmp_path / "run", "meta.iterations=3", resume=True)
    assert (run.path / "config.json").read_bytes() == before


def test_validation_and_patience_do_not_notice_an_interruption(tmp_path):
    settings = ["validation.every=2", "validation.patience=2", "meta.lr=0.3"]
    whole = train(tmp_path / "whole", "meta.iterations=60", *settings)
    train(tmp_path / "parts", "meta.iterations=3", *settings)
    parts = train(tmp_path / "parts", "meta.iterations=60", *settings, resume=True)
    assert_identical(whole, parts)
    assert fewstep.load(whole).iteration == fewstep.load(parts).iteration


def test_a_run_killed_before_its_config_was_written_begins_anew(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data.json").write_text("{}")
    (tmp_path / "run" / "versions.json").write_text("{")
    assert train(tmp_path / "run", "meta.iterations=1").is_finished


def test_a_run_killed_before_its_first_checkpoint_repeats_no_metrics(tmp_path):
    run = train(tmp_path / "run", "meta.iterations=8")
    whole = [r["iteration"] for r in run.metrics()]
    for name in ("checkpoint.pt", "params.safetensors"):
        (run.path / name).unlink()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 9, "spl')
    again = train(tmp_path / "run", "meta.iterations=8", resume=True)
    assert [r["iteration"] for r in again.metrics()] == whole


def test_short_runs_record_their_training_too(tmp_path):
    run = train(tmp_path / "run", "meta.iterations=7")
    assert [r["iteration"] for r in run.metrics() if r["split"] == "train"] == [4, 7]


def test_other_constants_in_the_users_module_are_refused(tmp_path):
    class Scaled(torch.nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.register_buffer("scale", torch.tensor(scale))

        def forward(self, x):
            return self.scale * self.layer(x)

    run = train(tmp_path / "run", "model={kind='custom'}", "meta.iterations=2", model=Scaled(2.0))
    assert fewstep.load(run, model=Scaled(2.0)).iteration == 2
    with pytest.raises(RunError, match="other buffers or frozen parameters"):
        fewstep.load(run, model=Scaled(3.0))


def test_frozen_parameters_are_told_of_before_a_run_that_needs_them(tmp_path, caplog):
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Linear(8, 1))
    net[0].requires_grad_(False)
    train(tmp_path / "run", "model={kind='custom'}", "meta.iterations=1", model=net)
    assert "2 frozen parameters are not stored" in caplog.text


def test_files_of_a_run_can_be_read_by_whoever_may_read_its_folder(tmp_path):
    run = train(tmp_path / "run", "meta.iterations=4")
    modes = {p.name: p.stat().st_mode & 0o777 for p in run.path.glob("*.*")}
    assert len(set(modes.values())) == 1, modes


def test_bfloat16_and_structured_targets_are_evaluated(tmp_path):
    class Pairs:
        def sample(self, num_tasks, generator):
            inputs = torch.randn(num_tasks, 6, 1, generator=generator).bfloat16()
            batch = Batch(inputs, {"double": 2 * inputs})
            return Task(batch, batch)

    recipe = {
        "tasks": {"kind": "custom"},
        "model": {"kind": "custom"},
        "loss": {"kind": "custom"},
        "algorithm": {"kind": "maml"},
        "meta": {"iterations": 2, "batch_size": 3},
        "validation": {"every": 1, "tasks": 4},
        "evaluate": {"tasks": 5},
    }
    own = {"model": torch.nn.Linear(1, 1).bfloat16(), "loss": lambda out, y: (out - y["double"]).square().mean()}
    run = fewstep.train(recipe, out=tmp_path / "run", task_distribution=Pairs(), **own)
    result = fewstep.evaluate(run, task_distribution=Pairs(), **own)
    assert (result["tasks"], result["shots"]) == (5, None)
    with pytest.raises(fewstep.FewstepError, match="their own shots"):
        fewstep.evaluate(run, task_distribution=Pairs(), shots=3, **own)


OWN_ALGORITHM = {
    "tasks": {"kind": "custom"},
    "model": {"kind": "custom"},
    "loss": {"kind": "mse"},
    "algorithm": {"kind": "custom", "inner_lr": 0.02, "steps": 2},
    "meta": {"iterations": 6, "batch_size": 3},
    "validation": {"every": 2, "tasks": 4},
    "evaluate": {"tasks": 5, "steps": 3},
}


class TestAnAlgorithmOfOnesOwn:
    def train(self, out, algorithm, kind="custom", **how):
        torch.manual_seed(0)
        recipe = OWN_ALGORITHM | {"algorithm": OWN_ALGORITHM["algorithm"] | {"kind": kind}}
        own = {} if algorithm is None else {"algorithm": algorithm}
        return fewstep.train(recipe, out=out, task_distribution=Sinusoid(), model=mlp(1, 1, (8,)), **own, **how)

    def test_trains_resumes_and_is_evaluated_like_the_one_that_it_equals(self, tmp_path):
        named = self.train(tmp_path / "named", None, kind="fomaml")
        with pytest.raises(Interrupted):
            self.train(tmp_path / "own", fewstep.fomaml, watchers=[StopAfter(3)])
        own = self.train(tmp_path / "own", fewstep.fomaml, resume=True)
        how = {"task_distribution": Sinusoid(), "model": mlp(1, 1, (8,))}
        expected = fewstep.evaluate(named, **how)
        result = fewstep.evaluate(own, algorithm=fewstep.fomaml, **how)
        assert result["steps"] == expected["steps"]
        assert (result["algorithm"], result["inner_lr"]) == ("custom", 0.02)
        learner = fewstep.load(own, algorithm=fewstep.fomaml, model=mlp(1, 1, (8,)))
        assert learner.algorithm == fewstep.fomaml(fewstep.Sgd(0.02), 2)

    def test_the_inner_rule_of_the_recipe_is_tuned(self, tmp_path):
        run = self.train(tmp_path / "run", fewstep.maml, settings=["evaluate.tune_inner_lr=[1e-8, 0.01, 1e6]"])
        how = {"task_distribution": Sinusoid(), "model": mlp(1, 1, (8,)), "algorithm": fewstep.maml}
        assert fewstep.evaluate(run, **how)["inner_lr"] < 1

    def test_recipe_and_function_go_together(self, tmp_path):
        with pytest.raises(RecipeError, match=r"pass it as `algorithm=`"):
            self.train(tmp_path / "run", None)
        with pytest.raises(RecipeError, match=r"algorithm.kind is 'maml'. Set algorithm.kind = 'custom'"):
            self.train(tmp_path / "run", fewstep.maml, kind="maml")
        with pytest.raises(RecipeError, match=r"An algorithm is what a function such as fewstep\.maml makes"):
            self.train(tmp_path / "run", lambda rule, steps: rule)

    def test_what_cannot_be_given_the_algorithm_says_who_can(self, tmp_path):
        run = self.train(tmp_path / "run", fewstep.maml)
        with pytest.raises(RecipeError, match=r"`fewstep\.load\(run, algorithm=\.\.\.\)\.adapt"):
            fewstep.FewShotRegressor.from_run(run)
        with pytest.raises(RecipeError, match=r"as fewstep\.maml is: got str"):
            self.train(tmp_path / "other", "maml")
        with pytest.raises(RecipeError, match=r"reinforcement learning takes no `algorithm=`"):
            fewstep.train("navigation", out=tmp_path / "rl", algorithm=fewstep.maml)

    def test_metrics_of_ones_own_are_told_beside_the_recipes(self, tmp_path):
        run = self.train(tmp_path / "run", fewstep.maml)
        how = {"task_distribution": Sinusoid(), "model": mlp(1, 1, (8,)), "algorithm": fewstep.maml}
        result = fewstep.evaluate(run, metrics={"mae": torch.nn.functional.l1_loss, "twice": twice_the_error}, **how)
        means = [[point["mean"] for point in curve] for curve in (result["steps"], result["metrics"]["twice"])]
        assert means[1] == pytest.approx([2 * mean for mean in means[0]])
        lines = list(csv.DictReader((run.path / "evaluations" / result["per_task"]).read_text().splitlines()))
        first = [float(line["mae"]) for line in lines if line["step"] == "0"]
        assert sum(first) / 5 == pytest.approx(result["metrics"]["mae"][0]["mean"], rel=1e-5)
        for name in ("loss", "mse", "step"):
            with pytest.raises(RecipeError, match=f"got {name}, which is there already"):
                fewstep.evaluate(run, metrics={name: twice_the_error}, **how)


def twice_the_error(outputs, targets):
    return 2 * (outputs - targets).square().mean()


def test_resume_goes_on_to_the_iterations_that_the_run_was_begun_with(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path / "run", "meta.iterations=9", watchers=[StopAfter(3)])
    run = train(tmp_path / "run", resume=True)
    assert run.is_finished
    assert run.config["meta"]["iterations"] == 9


def test_a_first_attempt_that_failed_blocks_nothing(tmp_path):
    with pytest.raises(NonFiniteError, match="no checkpoint was due yet"):
        train(tmp_path / "run", "meta.iterations=50", "algorithm.inner_lr=1e12", "algorithm.steps=5")
    assert train(tmp_path / "run", "meta.iterations=2").is_finished


def test_tasks_too_small_to_test_on_are_found_before_training(tmp_path):
    rows = [f"{task},{i},{i}" for task in range(12) for i in range(8)]
    path = tmp_path / "table.csv"
    recipe = {
        "tasks": {"kind": "table", "path": str(path), "task": "t", "inputs": ["x"], "targets": ["y"], "shots": 3},
        "model": {"kind": "mlp", "hidden": [4]},
        "algorithm": {"kind": "maml"},
        "meta": {"iterations": 1, "batch_size": 2},
    }
    for short in range(12):  # wherever the split puts it
        kept = [row for row in rows if not row.startswith(f"{short},") or row.split(",")[1] in "01"]
        path.write_text("\n".join(["t,x,y", *kept]))
        with pytest.raises(fewstep.FewstepError, match="at least 4 rows"):
            fewstep.train(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_targets_of_another_shape_are_refused_instead_of_broadcast(tmp_path):
    learner = fewstep.load(train(tmp_path / "run", "meta.iterations=1"))
    with pytest.raises(ValueError, match="unsqueeze"):
        learner.adapt(Batch(torch.zeros(5, 1), torch.zeros(5)))
    small = ["meta.iterations=1", "meta.batch_size=2", "model.hidden=[4]"]
    scale = fewstep.standardization(fewstep.train("dose-response", out=tmp_path / "table", settings=small))
    with pytest.raises(ValueError, match="unsqueeze"):
        scale.standardize(Batch(torch.zeros(5, 1), torch.zeros(5)))


def test_records_say_how_much_memory_the_run_has_used(tmp_path):
    run = train(tmp_path / "run", "meta.iterations=4")
    (record,) = (r for r in run.metrics() if r["split"] == "train")
    assert 20 < record["peak_memory_mib"] < 100_000  # what Python with torch takes, at least


def test_a_resume_for_more_iterations_executes_as_the_run_was_begun(tmp_path):
    train(tmp_path / "run", "meta.iterations=4")
    settings = resuming.with_recorded_choices(tmp_path / "run", ["meta.iterations=50_000"])
    assert load_recipe("sinusoid-10shot", settings).execution.compile is False
    assert load_recipe("sinusoid-10shot", ["meta.iterations=50_000"]).execution.compile is True


def test_a_loaded_recipe_of_more_iterations_extends_its_run(tmp_path):
    recipe = {"tasks": {"kind": "sinusoid"}, "model": {"kind": "mlp"}, "algorithm": {"kind": "maml"}}
    for iterations in (20, 40):
        loaded = load_recipe(recipe, [f"meta.iterations={iterations}"])
        run = fewstep.train(loaded, out=tmp_path / "run", resume=True)
    assert run.metrics()[-1]["iteration"] == 40


@pytest.mark.parametrize("fails", [1, 12])
def test_an_extension_that_fails_before_its_checkpoint_leaves_nothing_of_itself_in_a_finished_run(
    tmp_path, monkeypatch, fails
):
    run = train(tmp_path / "run", "meta.iterations=10")
    before, iterate, seen = sorted(run.path.rglob("*.*")), loop._iterate, []

    def failing(*given):
        seen.append(1)
        if len(seen) == fails:
            raise NonFiniteError("diverged")
        return iterate(*given)

    monkeypatch.setattr(loop, "_iterate", failing)
    with pytest.raises(NonFiniteError):
        train(run.path, "meta.iterations=40", resume=True)
    left = RunFolder(run.path)
    if fails == 1:
        assert left.is_finished
        assert sorted(run.path.rglob("*.*")) == before
        assert left.metrics() == run.metrics()
        assert left.metrics()[-1]["iteration"] == 10
    else:  # something of it is there: it is a run that has further to go
        assert not left.is_finished
        assert left.config["meta"]["iterations"] == 40


def test_a_resume_completes_the_last_record_instead_of_adding_to_it(tmp_path):
    whole = train(tmp_path / "whole", "meta.iterations=200", "validation.every=1000")
    train(tmp_path / "run", "meta.iterations=150", "validation.every=1000")
    resumed = train(tmp_path / "run", "meta.iterations=200", "validation.every=1000", resume=True)
    records = [[{k: v for k, v in r.items() if k not in USED} for r in run.metrics()] for run in (whole, resumed)]
    assert records[0] == records[1]


def test_one_task_after_the_other_may_follow_chunks(tmp_path):
    train(tmp_path / "run", "meta.iterations=2", "execution.chunk_size=2")
    resumed = train(tmp_path / "run", "meta.iterations=3", "execution.over_tasks=sequential", resume=True)
    assert resumed.config["execution"]["chunk_size"] is None


def test_a_machine_that_a_run_goes_on_with_is_written_down(tmp_path):
    run = train(tmp_path / "run", "meta.iterations=2", "execution.threads=1")
    first = json.loads((run.path / "versions.json").read_text())
    assert first["threads"] == 1
    (run.path / "versions.json").write_text(json.dumps(first | {"processor": "another"}))
    train(tmp_path / "run", "meta.iterations=3", resume=True)
    train(tmp_path / "run", "meta.iterations=4", resume=True)
    now = json.loads((run.path / "versions.json").read_text())
    assert now == first | {"processor": "another", "resumed": [{"processor": first["processor"]}]}


def test_a_run_goes_on_with_other_threads_on_another_machine_and_says_so(tmp_path):
    whole = train(tmp_path / "whole", "meta.iterations=6", "execution.threads=1")
    train(tmp_path / "run", "meta.iterations=3", "execution.threads=1")
    resumed = train(tmp_path / "run", "meta.iterations=6", "execution.threads=2", resume=True)
    assert all(torch.allclose(final(whole)[name], final(resumed)[name], atol=1e-6) for name in final(whole))
    assert resumed.config["execution"]["threads"] == 2
    train(tmp_path / "run", "execution={threads=1}", resume=True)  # finished: left as it is
    assert RunFolder(tmp_path / "run").config["execution"]["threads"] == 2
    with pytest.raises(RunError, match=r"execution\.precision"):
        train(tmp_path / "run", "execution.precision=bf16", resume=True)


@pytest.mark.parametrize("settings", [["execution.remat=true"], ["execution.remat=true", "execution.chunk_size=3"]])
def test_recomputed_steps_train_to_the_same(tmp_path, settings):
    common = ["meta.iterations=4", "algorithm.steps=3"]
    plain, recomputed = train(tmp_path / "plain", *common), train(tmp_path / "recomputed", *common, *settings)
    one, other = final(plain), final(recomputed)
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    assert fewstep.evaluate(recomputed, tasks=5)


def test_a_compiled_run_trains_to_the_same_and_resumes_bit_for_bit(tmp_path):
    compiled = [*TINY, "execution.compile=true"]
    whole = fewstep.train("sinusoid-10shot", out=tmp_path / "whole", settings=[*compiled, "meta.iterations=6"])
    parts = tmp_path / "parts"
    fewstep.train("sinusoid-10shot", out=parts, settings=[*compiled, "meta.iterations=3"])
    resumed = fewstep.train("sinusoid-10shot", out=parts, settings=[*compiled, "meta.iterations=6"], resume=True)
    assert_identical(whole, resumed)
    eager = final(train(tmp_path / "eager", "meta.iterations=6"))
    assert all(torch.allclose(eager[name], value, atol=1e-5) for name, value in final(whole).items())


@pytest.mark.parametrize("tf32", [True, False])
def test_products_have_the_precision_of_the_recipe_while_it_computes(tf32: bool) -> None:
    def flags() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = flags()
    with computing_as(load_recipe("sinusoid-10shot", [f"execution.precision={'tf32' if tf32 else 'float32'}"])):
        assert flags() == (tf32, tf32)
    assert flags() == before != (tf32, tf32)


NEWER = """
import torch
from fewstep.experiments.recipe_files import load_recipe
from fewstep.experiments.runs import computing_as
from fewstep.experiments.runs import computing_as
torch.backends.cuda.matmul.fp32_precision = "tf32"
with computing_as(load_recipe("sinusoid-10shot")):
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
"""


def test_a_precision_set_the_newer_way_is_left_alone() -> None:
    subprocess.run([sys.executable, "-c", NEWER], check=True)
