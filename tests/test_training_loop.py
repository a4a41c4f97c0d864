"""The loop in one process: determinism, freezing, accumulation, what is scored and streamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tiny_training as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from cardioray.config import to_dict
from cardioray.data.reading import read_rows
from cardioray.data.sampling import Whole
from cardioray.data.shards import ShardSet
from cardioray.tasks import make_task
from cardioray.tasks.base import TASKS
from cardioray.tasks.ffr import FFR_VALUE, FfrTask
from cardioray.training import loop
from cardioray.training.feed import RowFeed, epoch_order, mix
from cardioray.training.outcome import Outcome
from cardioray.training.run import require_fitting, train

pytestmark = [pytest.mark.ray, pytest.mark.slow]

GOLDEN = Path(__file__).parent / "golden" / "ffr_losses.json"
STILL = ("rotation_degrees", "translate", "zoom", "contrast", "brightness")


@pytest.fixture(scope="module")
def shards(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return tiny.tiny_shards(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def outcome(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return tiny.train_here(tiny.tiny_run(), shards, tmp_path_factory.mktemp("first"))


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(5)
    path = str(tmp_path / "weights.safetensors")
    save_file(tiny.tiny_run().task.build_model().backbone.net.state_dict(), path)
    return path


def losses(outcome: Outcome) -> list[float]:
    lines = tiny.texts(outcome)["losses.csv"].decode().split()[1:]
    return [float(line.split(",")[1]) for line in lines]


def test_the_same_seed_gives_the_same_bytes(
    shards: ShardSet, outcome: Outcome, tmp_path: Path
) -> None:
    again = tiny.train_here(tiny.tiny_run(), shards, tmp_path / "again")
    assert tiny.texts(again) == tiny.texts(outcome)
    for key, value in again.weights().items():
        assert torch.equal(value, outcome.weights()[key])
    other = tiny.train_here(tiny.tiny_run("train.seed=1"), shards, tmp_path / "other")
    assert tiny.texts(other) != tiny.texts(outcome)


def test_losses_are_as_they_were(outcome: Outcome) -> None:
    found = losses(outcome)[:6]
    if os.environ.get("CARDIORAY_WRITE_GOLDEN") == "1":
        record = {
            "what": "first losses of the tiny run of tests/tiny_training.py, fp32, one worker",
            "tolerance": 1e-4,
            "why": "other processors round otherwise, and every step enlarges the difference",
            "anew": "CARDIORAY_WRITE_GOLDEN=1 pytest tests/test_training_loop.py",
            "losses": found,
        }
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(record, indent=2) + "\n")
    golden = json.loads(GOLDEN.read_text())
    np.testing.assert_allclose(found, golden["losses"], atol=golden["tolerance"], rtol=0)


def test_every_row_is_scored_once(shards: ShardSet, outcome: Outcome) -> None:
    table, split = outcome.predictions(), tiny.tiny_split(shards)
    for name in ("validation", "calibration", "test"):
        rows = table.loc[table["split"] == name, "row"]
        assert sorted(rows) == sorted(shards.samples.loc[split == name, "row"])
    assert (split == "train").any()
    assert table["score"].between(0, 1).all()


def test_logs_agree_with_each_other(outcome: Outcome) -> None:
    log, folder = outcome.log(), Path(outcome.folder)
    assert list(log["epoch"]) == [1, 2, 3]
    assert log["step"].iloc[-1] == len(losses(outcome)) == 15
    np.testing.assert_allclose(log["train_loss"], np.reshape(losses(outcome), (3, 5)).mean(axis=1))
    assert outcome.best == log["val_auc"].max()
    assert "images_per_second" not in log
    assert (folder / "timing.csv").read_text().splitlines()[0] == (
        "epoch,images_per_second,data_wait_share,epoch_seconds"
    )
    assert list((folder / "tensorboard").glob("events.*"))


def test_a_finished_run_is_not_run_again(shards: ShardSet, outcome: Outcome) -> None:
    folder = Path(outcome.folder)
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*")}
    split = tiny.tiny_split(shards)
    again = train(tiny.tiny_run(), shards, split, str(folder.parent), name=folder.name)
    assert again == outcome
    assert {f: f.stat().st_mtime_ns for f in folder.rglob("*")} == before


def test_a_folder_of_another_run_is_refused(shards: ShardSet, outcome: Outcome) -> None:
    folder, split = Path(outcome.folder), tiny.tiny_split(shards)
    moved = split.where(shards.samples["patient_id"] != "p00", "test")
    for run, division in ((tiny.tiny_run("train.seed=5"), split), (tiny.tiny_run(), moved)):
        with pytest.raises(ValueError, match="holds a run of other settings or data"):
            train(run, shards, division, str(folder.parent), name=folder.name)
    same = tiny.tiny_run("train.max_failures=0")
    assert train(same, shards, split, str(folder.parent), name=folder.name) == outcome


def test_where_weights_come_from_is_decided_once(
    shards: ShardSet, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([None, weights])
    monkeypatch.setattr(FfrTask, "starting_weights", lambda *_: next(found))
    run = tiny.tiny_run("train.recipe=auto")
    first = tiny.plan_of(run, shards, tmp_path / "run")
    again = tiny.plan_of(run, shards, tmp_path / "run")
    assert first.weights is again.weights is None
    assert first.stages == again.stages
    other = tiny.plan_of(run, shards, tmp_path / "other")
    assert other.weights == weights
    assert len(other.stages) == 2


def test_shards_of_other_settings_are_refused(shards: ShardSet, tmp_path: Path) -> None:
    for overrides, text in (
        (["preprocess.image_size=48"], r"image_size=32 \(not 48\).*--set preprocess.image_size=32"),
        (["frames=all"], r"frames=contrast \(not all\)"),
    ):
        with pytest.raises(ValueError, match=text):
            tiny.plan_of(tiny.tiny_run(*overrides), shards, tmp_path / "run")
    with pytest.raises(ValueError, match="shards of task 'ffr', not 'image'"):
        require_fitting(make_task("image"), shards)


def test_a_run_whose_loss_is_no_number_keeps_what_was_good(
    shards: ShardSet, tmp_path: Path
) -> None:
    wild = {"name": "wild", "learning_rate": 1e30, "schedule": "constant", "epochs": 4}
    values = stages({"name": "calm", "epochs": 1}, wild)
    run = tiny.tiny_run("train.epochs=4", "train.learning_rate=1e30", values=values)
    found = tiny.train_here(run, shards, tmp_path / "later")
    log = found.log()
    assert list(log["stage"]) == ["calm", "wild"]
    assert np.isfinite(log["train_loss"]).tolist() == [True, False]
    assert found.best_epoch == 1
    assert all(torch.isfinite(v).all() for v in found.weights().values())
    [note] = found.notes
    assert "epoch 2 of stage wild" in note
    assert "Lower the learning rate" in note

    run = tiny.tiny_run("train.epochs=2", "train.learning_rate=1e30", values=stages(wild))
    with pytest.raises(ValueError, match="no number in the first epoch"):
        tiny.train_here(run, shards, tmp_path / "at-once")


def test_a_last_step_that_spoils_the_weights_ends_the_stage_with_the_best_ones(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.tiny_run("train.epochs=4")
    steps: list[int] = []
    step = loop._Trainer._step_optimizer

    def spoiling(self: Any, optimizer: torch.optim.Optimizer) -> None:
        step(self, optimizer)
        steps.append(len(steps))
        per_epoch = len(self.feeds["train"]) // self.settings.batch_size
        if len(steps) == 2 * per_epoch:  # the last of the second epoch
            with torch.no_grad():
                next(iter(self.model.parameters())).fill_(torch.nan)

    monkeypatch.setattr(loop._Trainer, "_step_optimizer", spoiling)
    found = tiny.train_here(run, shards, tmp_path / "run")
    assert np.isfinite(found.log()["train_loss"]).tolist() == [True, False]
    assert found.best_epoch == 1
    assert all(torch.isfinite(v).all() for v in found.weights().values())
    assert "Lower the learning rate" in found.notes[0]


def stages(*of: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"train": {"stages": list(of), **settings}}


def test_a_frozen_backbone_does_not_change(shards: ShardSet, weights: str, tmp_path: Path) -> None:
    values = stages({"frozen": "backbone", "epochs": 1})
    run = tiny.tiny_run(f"model.weights={weights}", "train.epochs=1", values=values)
    kept = tiny.train_here(run, shards, tmp_path / "run").weights()
    torch.manual_seed(run.train.seed)
    model = run.task.build_model()
    run.task.load_starting_weights(model, weights)
    for key, value in model.state_dict().items():
        same = torch.equal(kept[key], value)
        assert same if key.startswith("backbone.") else not same, key


def test_frozen_first_blocks_do_not_change(shards: ShardSet, weights: str, tmp_path: Path) -> None:
    values = stages({"frozen": "first_blocks", "epochs": 1, "freeze_batch_norm": True})
    run = tiny.tiny_run(f"model.weights={weights}", "train.epochs=1", values=values)
    kept = tiny.train_here(run, shards, tmp_path / "run").weights()
    model = run.task.build_model()
    run.task.load_starting_weights(model, weights)
    run.task.freeze(model, "first_blocks")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    statistics = {name for name, _ in model.backbone.named_buffers(prefix="backbone")}
    for key, value in model.state_dict().items():
        if key.startswith("backbone."):
            assert torch.equal(kept[key], value) == (key in frozen | statistics), key


def test_batch_norm_of_frozen_blocks_stays_in_eval_mode(
    shards: ShardSet, weights: str, tmp_path: Path
) -> None:
    values = stages({"frozen": "first_blocks", "epochs": 1})
    run = tiny.tiny_run(f"model.weights={weights}", "train.epochs=1", values=values)
    kept = tiny.train_here(run, shards, tmp_path / "run").weights()
    model = run.task.build_model()
    run.task.load_starting_weights(model, weights)
    run.task.freeze(model, "first_blocks")
    for name, module in model.backbone.named_modules(prefix="backbone"):
        if isinstance(module, nn.BatchNorm2d):
            same = torch.equal(kept[f"{name}.running_mean"], module.running_mean)
            assert same == (not module.weight.requires_grad), name


def test_a_running_average_is_validated_and_kept(
    shards: ShardSet, outcome: Outcome, tmp_path: Path
) -> None:
    fast = tiny.tiny_run("train.optimizer.ema_decay=0.000001")
    followed = tiny.train_here(fast, shards, tmp_path / "fast")
    assert losses(followed) == losses(outcome)
    for key, value in followed.weights().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, outcome.weights()[key], rtol=1e-4, atol=1e-4)
    slow = tiny.train_here(
        tiny.tiny_run("train.optimizer.ema_decay=0.9"), shards, tmp_path / "slow"
    )
    assert losses(slow) == losses(outcome)
    assert list(slow.log()["val_loss"]) != list(outcome.log()["val_loss"])


class Plain(nn.Module):
    """A network whose samples do not know each other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 1)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        pictures = images.permute(0, 3, 1, 2).float()
        return {"ffr": self.layers(pictures).squeeze(1)}


class PlainTask(FfrTask):
    name: ClassVar[str] = "plain-for-tests"

    def build_model(self) -> nn.Module:  # type: ignore[override]
        return Plain()

    def freeze(self, model: nn.Module, part: str) -> None:
        model.requires_grad_(part == "none")


@pytest.fixture
def plain_task() -> None:
    if PlainTask.name not in TASKS:
        TASKS.add(PlainTask.name, PlainTask)


def test_two_half_batches_are_one(plain_task: None, shards: ShardSet, tmp_path: Path) -> None:
    still = [f"augment.{name}=0" for name in STILL]
    found = []
    for batch, accumulate in ((32, 1), (16, 2)):
        run = tiny.tiny_run(
            f"train.batch_size={batch}", f"train.optimizer.accumulate={accumulate}", *still
        )
        plan = tiny.plan_of(run, shards, tmp_path / f"run{batch}")
        plan.run["task"] = PlainTask.name
        found.append(losses(tiny.train_plan_here(plan)))
    assert len(found[0]) == 3
    np.testing.assert_allclose(found[0], found[1], atol=1e-5, rtol=0)


def test_a_number_is_predicted_beside_the_class(shards: ShardSet, tmp_path: Path) -> None:
    run = tiny.tiny_run("train.epochs=1", values={"value_target": to_dict(FFR_VALUE)})
    table = tiny.train_here(run, shards, tmp_path / "run").predictions()
    assert set(table["head"]) == {"ffr", "ffr_value"}
    numbers = table[table["head"] == "ffr_value"]
    assert set(numbers["label"].astype(float).round(2)) == {0.7, 0.9}
    assert numbers["score"].between(0, 1).all()


def test_bf16_is_near_fp32(shards: ShardSet, outcome: Outcome, tmp_path: Path) -> None:
    run = tiny.tiny_run("train.precision=bf16")
    found = losses(tiny.train_here(run, shards, tmp_path / "run"))
    assert found != losses(outcome)
    np.testing.assert_allclose(found[:3], losses(outcome)[:3], atol=0.05)


def test_streaming_goes_through_every_row_once_an_epoch(shards: ShardSet) -> None:
    rows = shards.samples["row"].to_numpy()[:40]
    labels = {"ffr": np.arange(40, dtype=np.float32)}
    columns = ("image",)
    feed = RowFeed(
        shards=shards,
        columns=columns,
        iterator=read_rows(shards, rows, columns).iterator(),
        rows=rows,
        labels=labels,
        cached=False,
        device=torch.device("cpu"),
        sampler=Whole(tuple(columns)),
    )

    def epoch(seed: int) -> list[int]:
        order = epoch_order(40, seed=1, epoch=seed, rank=0)
        seen: list[int] = []
        for batch_rows, batch in feed.batches(8, order=order, buffer=16, seed=seed):
            np.testing.assert_array_equal(rows[batch["ffr"].int().numpy()], batch_rows)
            assert batch["image"].shape == (8, tiny.SIZE, tiny.SIZE, 1)
            seen += list(batch_rows)
        return seen

    first = epoch(1)
    assert sorted(first) == sorted(rows)
    assert first != sorted(rows)
    assert epoch(1) == first
    assert epoch(2) != first
    scored = [row for batch, _ in feed.batches(32, order=None) for row in batch]
    assert scored == sorted(rows)


@given(st.integers(0, 30), st.integers(1, 40), st.integers(0, 3))
def test_mixing_loses_nothing_and_looks_no_further_than_its_buffer(
    count: int, buffer: int, seed: int
) -> None:
    mixed = list(mix(range(count), buffer, np.random.default_rng(seed)))
    assert sorted(mixed) == list(range(count))
    assert all(item < place + buffer for place, item in enumerate(mixed))
    assert buffer > 1 or mixed == sorted(mixed)


def test_streaming_is_deterministic_and_scores_as_memory_does(
    shards: ShardSet, tmp_path: Path
) -> None:
    run = tiny.tiny_run("train.cache_gb=0", "train.shuffle_buffer=16", "train.epochs=2")
    first, second = (tiny.train_here(run, shards, tmp_path / name) for name in "ab")
    assert tiny.texts(first) == tiny.texts(second)
    assert len(first.predictions()) == 24


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["train.batch_size=41"], "do not fill one step"),
        (["train.batch_size=21", "scale.workers=2"], "2 workers x 1 batches x 21"),
        (["scale.workers=9", "scale.cpus_per_worker=1", "train.batch_size=2"], "do not fit this"),
        (["scale.gpus_per_worker=3"], "1 workers with 3 GPU each do not fit"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    shards: ShardSet, tmp_path: Path, overrides: list[str], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        train(tiny.tiny_run(*overrides), shards, tiny.tiny_split(shards), str(tmp_path))


def test_one_class_or_an_empty_split_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    split, run = tiny.tiny_split(shards), tiny.tiny_run()
    low = shards.samples["ffr"] < 0.8
    with pytest.raises(ValueError, match="all 20 training samples of 'ffr' are FFR<=0.80"):
        train(run, shards, split.where(low, ""), str(tmp_path))
    with pytest.raises(ValueError, match="no labelled samples are in the validation split"):
        train(run, shards, split.where(split != "validation", "train"), str(tmp_path))
    one_class = split.where(low | (split != "validation"), "")
    with pytest.raises(ValueError, match="all 4 validation samples of 'ffr' are FFR<=0.80; more"):
        train(run, shards, one_class, str(tmp_path))
