"""What a comparison decides before it trains: when to stop, what makes it another one."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import tiny_training as tiny
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from safetensors.torch import save_file

from cardioray.data.shards import ShardIndex, ShardSet
from cardioray.models.video import VIDEO_BACKBONES
from cardioray.tasks.base import Monitor
from cardioray.training.run import _some_patients
from cardioray.training.settings import RunConfig
from cardioray.tuning.compare import compare, trials_digest
from cardioray.tuning.division import divide
from cardioray.tuning.settings import (
    GRIDS,
    AshaConfig,
    CompareConfig,
    SearchConfig,
    read_grid,
    select_backbones,
)
from cardioray.tuning.trial import TrialContext, search_overrides
from cardioray.tuning.trials import (
    TrialResult,
    _best_of_each,
    _space,
    asha_scheduler,
    cheapest_first,
    choose_survivors,
)

BACKBONES = ("test_resnet", "resnet10t", "resnet14t")


def run_of(*overrides: str) -> RunConfig:
    return tiny.tiny_run("train.recipe=auto", "train.epochs=6", *overrides)


def context_of(run: RunConfig, out: Path) -> TrialContext:
    return TrialContext(run.to_dict(), "shards", [], str(out), None)


def rungs(scheduler: ASHAScheduler | None) -> list[int]:
    assert scheduler is not None
    return sorted(int(epoch) for bracket in scheduler._brackets for epoch, _ in bracket._rungs)


def test_no_rung_is_on_the_last_epoch_of_a_run_without_weights(tmp_path: Path) -> None:
    stages = context_of(run_of(), tmp_path).stages(BACKBONES)
    assert [stage.epochs for stage in stages] == [6]  # the stage of the head is left out
    assert rungs(asha_scheduler(AshaConfig(grace_epochs=2), [6])) == [2]
    assert rungs(asha_scheduler(AshaConfig(grace_epochs=2), [16])) == [2, 6]
    assert asha_scheduler(AshaConfig(grace_epochs=6), [6]) is None


def test_a_trial_that_is_taken_up_again_is_compared_at_its_own_epoch() -> None:
    scheduler = asha_scheduler(AshaConfig(grace_epochs=2, reduction_factor=2), [9])
    assert scheduler is not None
    scheduler.set_search_properties("standing", "max")
    trials = [Trial("any", stub=True) for _ in range(2)]
    decisions = []
    for trial, standing in zip(trials, (0.9, 0.5), strict=True):
        scheduler.on_trial_add(None, trial)
        # Of its fourth epoch Tune says that it is the first report since it began again.
        report = {"training_iteration": 1, "epoch": 4, "standing": standing}
        decisions.append(scheduler.on_trial_result(None, trial, report))
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.STOP]


def test_grace_begins_when_the_whole_network_learns(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    net = run_of().task.build_model().backbone.net
    save_file(dict(net.state_dict()), weights)
    run = run_of(f"model.weights={weights}")
    epochs = [stage.epochs for stage in context_of(run, tmp_path).stages(["test_resnet"])]
    assert epochs == [10, 6]
    assert rungs(asha_scheduler(AshaConfig(grace_epochs=2, reduction_factor=4), epochs)) == [12]
    assert asha_scheduler(AshaConfig(grace_epochs=6), epochs) is None


def test_backbones_that_start_differently_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(run_of(), tmp_path)
    context.stages(BACKBONES)
    assert "tells them apart" not in caplog.text
    from cardioray.tasks.ffr import FfrTask

    def starting_weights(task: FfrTask, cache: str) -> str | None:
        return None if task.settings.model.backbone == "resnet14t" else "weights.safetensors"

    monkeypatch.setattr(FfrTask, "starting_weights", starting_weights)
    stages = context.stages(BACKBONES)
    assert [stage.epochs for stage in stages] == [6]
    assert "resnet14t start from random weights" in caplog.text


def test_a_search_draws_around_the_rate_of_the_recipe() -> None:
    assert SearchConfig().learning_rates(1e-3) == (1.25e-4, 4e-3)
    assert SearchConfig(learning_rate=(1e-5, 1e-3)).learning_rates(1) == (1e-5, 1e-3)
    with pytest.raises(ValueError, match="dropout: the lower bound 0.5 is not below"):
        SearchConfig(dropout=(0.5, 0.5))


def trial_of(name: str, standing: float, *, stopped: bool = False, seed: int = 0) -> TrialResult:
    return TrialResult(
        backbone=name,
        fold=0,
        overrides=[f"train.seed={seed}"],
        stopped_early=stopped,
        validation_score=round(standing, 2),
        standing=standing,
        epochs=3,
        seconds=1.0,
        folder=name,
        checkpoint=None,
    )


def test_the_best_of_those_that_finished_the_first_fold_go_on() -> None:
    standings = {"a": 0.70, "b": 0.99996, "c": 0.99998, "d": 0.9}
    trials = [trial_of(name, standing) for name, standing in standings.items()]
    trials += [trial_of(name, 0.8, stopped=True) for name in "efghij"]

    def survivors(**asha: Any) -> list[str]:
        return [trial.backbone for trial in choose_survivors(trials, AshaConfig(**asha))]

    assert survivors(reduction_factor=4) == ["c", "b", "d"]
    assert survivors(reduction_factor=10) == ["c"]
    assert survivors(reduction_factor=1.5) == ["c", "b", "d", "a"]
    chosen = choose_survivors(trials, AshaConfig(reduction_factor=10), refits=2)
    assert [trial.backbone for trial in chosen] == ["c", "b"]


def test_the_cheapest_set_the_standard(ray_local: None, tmp_path: Path) -> None:
    run = run_of("preprocess.image_size=80")
    shards = tiny.tiny_shards(tmp_path, run)
    context = TrialContext(run.to_dict(), shards.path, [], str(tmp_path), None)
    names = ["vgg19", "densenet121", "densenet201", "mobilenetv3large"]
    ordered = ["mobilenetv3large", "densenet121", "densenet201", "vgg19"]
    assert cheapest_first(context, names) == ordered


def test_without_stopping_all_go_on() -> None:
    trials = [trial_of(name, 0.5) for name in "abc"]
    assert len(choose_survivors(trials, AshaConfig(enabled=False))) == 3


def test_of_the_draws_of_a_backbone_the_best_that_finished_counts() -> None:
    draws = [
        trial_of("a", 0.9, stopped=True, seed=1),
        trial_of("a", 0.7, seed=2),
        trial_of("a", 0.8, seed=3),
        trial_of("b", 0.6, stopped=True, seed=4),
        trial_of("b", 0.7, stopped=True, seed=5),
    ]
    assert [t.overrides for t in _best_of_each(draws)] == [["train.seed=3"], ["train.seed=5"]]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_loss_decides_between_equal_figures_alone(mode: Literal["max", "min"]) -> None:
    monitor = Monitor(name="figure", mode=mode)
    sign = 1 if mode == "max" else -1

    def standing(figure: float, loss: float) -> float:
        return monitor.standing({"figure": sign * figure, "val_loss": loss})

    assert standing(0.9, 0.2) > standing(0.9, 0.3) > standing(0.9, 1e6)
    assert standing(0.901, 1e6) > standing(0.9, 0.0)
    assert math.isnan(standing(0.9, math.nan))


def digest_of(*overrides: str, folds: tuple[str, ...] = ("train", "test"), **changes: Any) -> str:
    settings = CompareConfig(backbones=BACKBONES, **changes)
    return trials_digest(run_of(*overrides), settings, "data", [pd.Series(folds)])


def test_more_bundles_of_a_comparison_are_no_other_comparison() -> None:
    assert digest_of(refits=2) == digest_of()
    assert digest_of(max_concurrent=3) == digest_of()
    assert digest_of("train.max_failures=9") == digest_of()
    assert digest_of("scale.cpus_per_worker=0.5", "scale.spread=true") == digest_of()


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        (["scale.workers=2"], {}),
        (["train.seed=5"], {}),
        ([], {"folds": ("test", "train")}),
        ([], {"seed": 1}),
        ([], {"asha": AshaConfig(grace_epochs=3)}),
    ],
)
def test_what_changes_trials_is_another_comparison(
    overrides: list[str], changes: dict[str, Any]
) -> None:
    assert digest_of(*overrides, **changes) != digest_of()


def test_searched_settings_are_settings_of_a_run() -> None:
    search = SearchConfig(rotation_degrees=(5, 6), contrast=(0.2, 0.3), hidden=((64, 32),))
    context = context_of(run_of(), Path("out"))
    space = _space(search, context, ["test_resnet"], 1e-3)
    drawn = {name: domain.sample() for name, domain in space.items()}
    run = context.trial(drawn["backbone"], search_overrides(drawn))
    settings = run.task.settings
    assert 5 <= settings.augment.rotation_degrees <= 6
    assert 0.2 <= settings.augment.contrast <= 0.3
    assert settings.model.head.hidden == (64, 32)
    assert 0 <= settings.model.head.dropout <= 0.5
    assert 1.25e-4 <= (run.train.learning_rate or 0) <= 4e-3


def test_a_search_draws_what_the_task_has() -> None:
    context = context_of(RunConfig.build("echo-ef"), Path("out"))
    space = _space(SearchConfig(), context, ["r2plus1d_10"], 1e-3)
    assert set(space) == {"backbone", "train.learning_rate", "model.dropout"}
    drawn = {name: domain.sample() for name, domain in space.items()}
    run = context.trial("r2plus1d_10", search_overrides(drawn))
    assert run.task.settings.model.dropout == pytest.approx(drawn["model.dropout"], rel=1e-4)


@pytest.mark.parametrize(
    ("task", "patterns", "names"),
    [
        ("ffr", "densenet*", ("densenet121", "densenet169", "densenet201")),
        ("ffr", "VGG-16,resnet18", ("vgg16", "resnet18")),
        ("echo-ef", "r2plus1d*", ("r2plus1d_18", "r2plus1d_10", "r2plus1d_10_slim")),
        ("echo-cmr", "mc3_18, r3d_18", ("mc3_18", "r3d_18")),
        ("echo-cmr", "mc3_18, all", ("mc3_18", *(n for n in VIDEO_BACKBONES if n != "mc3_18"))),
    ],
)
def test_backbones_are_chosen_by_name_wildcard_and_all(
    task: str, patterns: str, names: tuple[str, ...]
) -> None:
    chosen = RunConfig.build(task).task
    assert select_backbones(patterns, chosen) == names
    known = {"ffr": "densenet169"}.get(task, "r3d_18")
    with pytest.raises(ValueError, match=known):
        select_backbones("densnet169", chosen)


def test_all_are_the_ten() -> None:
    assert len(select_backbones("all", RunConfig.build("ffr").task)) == 10


def test_a_grid_goes_through_all_combinations_with_every_backbone(tmp_path: Path) -> None:
    grid = read_grid(["sampling.frames=[8, 16]", "sampling.stride=[1,2,4]"])
    settings = CompareConfig(backbones=("r2plus1d_10", "r3d_18"), grid=grid)
    assert len(settings.candidates) == 12
    context = replace(
        context_of(RunConfig.build("echo-ef"), tmp_path), candidates=settings.candidates
    )
    run = context.trial("r3d_18-frames8-stride4", ["train.seed=3"])
    assert run.task.settings.model.backbone == "r3d_18"
    assert (run.task.sampler.frames, run.task.sampler.stride) == (8, 4)
    assert run.train.seed == 3


@pytest.mark.parametrize("name", list(GRIDS))
def test_named_grids_are_settings_of_a_run(name: str, tmp_path: Path) -> None:
    settings = CompareConfig(backbones=("r2plus1d_18",), grid=read_grid([name]))
    context = replace(
        context_of(RunConfig.build("echo-ef"), tmp_path), candidates=settings.candidates
    )
    written = [str(context.trial(each, ()).to_dict()) for each in settings.candidates]
    assert len(set(written)) == len(written) == math.prod(len(v) for v in GRIDS.get(name).values())


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["echonet"], "Unknown grid 'echonet'"),
        (["sampling.frames=8"], "values are written as"),
        (["model.backbone=[a/b]"], "without blanks"),
    ],
)
def test_what_is_no_grid_is_refused(texts: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        CompareConfig(backbones=("r3d_18",), grid=read_grid(texts))


def test_fewer_patients_are_a_part_of_more() -> None:
    samples = samples_of(40).samples
    training = np.arange(40) < 30
    drawn = [
        _some_patients(replace(run_of().train, max_patients=number), samples, training)
        for number in (8, 16, 99)
    ]
    assert [rows.sum() for rows in drawn] == [8, 16, 30]
    assert all((few <= many).all() for few, many in itertools.pairwise(drawn))


def test_stopping_needs_a_checkpoint_of_every_epoch(tmp_path: Path) -> None:
    run = run_of("train.checkpoint_every=2")
    with pytest.raises(ValueError, match="ASHA needs train.checkpoint_every=1.*--no-asha"):
        compare(run, samples_of(8), CompareConfig(backbones=BACKBONES), str(tmp_path))


# Folds


def samples_of(patients: int, positive: int | None = None, split: object = None) -> ShardSet:
    """Samples without pictures, one a patient, the first ones with a low FFR."""
    positive = patients // 2 if positive is None else positive
    table = pd.DataFrame(
        {
            "sample_id": [f"s{n}" for n in range(patients)],
            "patient_id": [f"p{n:03d}" for n in range(patients)],
            "source": "x.png",
            "ffr": np.where(np.arange(patients) < positive, 0.7, 0.9),
        }
    )
    if split is not None:
        table["split"] = split
    index = object.__new__(ShardIndex)  # dividing patients looks at the samples only
    return ShardSet("shards", index, table)


def test_a_split_column_keeps_its_test_patients_out_of_every_fold(
    caplog: pytest.LogCaptureFixture,
) -> None:
    split = np.resize(["train", "train", "validation", "calibration", "test"], 400)
    division = divide(
        run_of(), samples_of(400, split=split), CompareConfig(backbones=BACKBONES, folds=2)
    )
    assert (division.final == split).all()
    for fold in division.folds:
        assert ((fold == "") == (split == "test")).all()
        assert set(fold[split == "validation"]) > {"validation"}
    (said,) = caplog.messages
    assert "validation and calibration patients of the split column" in said


def test_nothing_is_said_where_every_wish_is_followed(caplog: pytest.LogCaptureFixture) -> None:
    split = np.resize(["train", "train", "test"], 396)
    settings = CompareConfig(backbones=BACKBONES, folds=2)
    divide(run_of("split.folds=2"), samples_of(396, split=split), settings)
    assert not caplog.messages
    divide(run_of("split.folds=4"), samples_of(396), settings)
    assert caplog.messages == ["split.folds=4 is not used: --folds says 2."]


def test_few_validation_patients_are_no_ground_to_choose_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    samples = samples_of(60, positive=24)
    division = divide(run_of(), samples, CompareConfig(backbones=BACKBONES, folds=2))
    (said,) = caplog.messages
    low = samples.samples["ffr"] <= 0.8
    validation = [fold == "validation" for fold in division.folds]
    fewest = min(min((low & chosen).sum(), (~low & chosen).sum()) for chosen in validation)
    assert f"{fewest} of 'FFR" in said
    assert "little better than chance" in said


def test_folds_that_cannot_choose_a_winner_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"fold 1 of 2 has no validation patient who is 'FFR<=0"):
        divide(run_of(), samples_of(60, positive=3), CompareConfig(backbones=BACKBONES, folds=2))
