"""Comparing variants that do not all answer the same questions: a leaderboard for each question."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from cardioray import storage
from cardioray.bundle import Bundle
from cardioray.data import cluster
from cardioray.data.shards import ShardSet
from cardioray.evaluation.intervals import Interval
from cardioray.evaluation.leaderboard import Leaderboard, LeaderboardEntry, LeaderboardRow
from cardioray.evaluation.metrics import binary_metrics
from cardioray.targets import BinaryTarget
from cardioray.training.progress import Shown, shown_progress
from cardioray.training.settings import RunConfig
from cardioray.tuning.chart_baselines import baseline_tables
from cardioray.tuning.compare import BUNDLES, Comparing, by_backbone, fit_cluster
from cardioray.tuning.settings import CompareConfig

TABLE = "variants.csv"


@dataclass(frozen=True, kw_only=True)
class VariantComparison:
    """A finished comparison of variants.

    Attributes:
        out: folder or prefix with the table, a folder with a leaderboard for each question, and
            bundles.
        leaderboards: by question.
        bundles: the best variant of each question, trained again; one that is best twice once.
    """

    out: str
    leaderboards: Mapping[str, Leaderboard]
    bundles: tuple[Bundle, ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row a variant and question, with intervals and the test against the chart alone."""
        return pd.concat(
            [board.table.assign(head=head) for head, board in self.leaderboards.items()],
            ignore_index=True,
        )


def compare_variants(
    run: RunConfig,
    shards: ShardSet,
    settings: CompareConfig,
    out: str,
    *,
    shown: Shown | None = None,
) -> VariantComparison:
    """Train every variant on the same folds, and set the baselines of the chart beside them.

    The same call after a kill goes on; after a finished comparison it trains nothing.

    Args:
        run: settings every variant starts from.
        shards: prepared data.
        settings: variants, backbones, folds.
        out: folder or prefix for everything the comparison leaves.
        shown: how progress is shown; None for not at all.

    Raises:
        ValueError: for settings that cannot work, or a folder of another comparison.
        Failed: when no variant came to its end; the same call resumes.
    """
    if settings.asha.enabled:
        raise ValueError(
            "Variants answer different questions, so that none can be stopped for being behind "
            "another: pass --no-asha."
        )
    cluster.connect(dashboard=True)
    out = storage.absolute(out)
    cluster.require_shared(out, run.scale.shared_storage)
    asked = run.scale
    run, concurrent = fit_cluster(run, settings)
    with shown_progress(shown) as board:
        return _ComparingVariants(
            run, asked, shards, settings, out, concurrent, board
        ).compare_all()


@dataclass
class _ComparingVariants(Comparing):
    """One comparison of variants while it runs."""

    def compare_all(self) -> VariantComparison:
        """Trials, a leaderboard for each question, and bundles of the best."""
        trials, failed = self.trials()
        by_name = by_backbone(trials)
        self.context.tell("scoring, and measuring what each variant costs")
        entries = [self.entry(name, own) for name, own in by_name.items()]
        baselines = baseline_tables(
            self.run.task, self.shards.samples, self.division.folds, seed=self.settings.seed
        )
        entries += [
            LeaderboardEntry(
                name=name,
                predictions=tables.predictions,
                validation_score=0.5,
                folds=self.settings.folds,
            )
            for name, tables in baselines.items()
        ]
        boards: dict[str, Leaderboard] = {}
        for target in self.run.task.targets:
            assert isinstance(target, BinaryTarget)
            own = [_of_head(entry, target) for entry in entries if _has(entry, target)]
            boards[target.name] = dataclasses.replace(self.leaderboard(own, target), failed=failed)
        bundles: dict[str, Bundle] = {}
        for board in boards.values():
            for name in [n for n in self.chosen(board) if n in by_name]:
                if name not in bundles:
                    bundles[name] = self.refit(name, by_name[name], board)
        self.context.tell("writing the leaderboards")
        places = {name: f"../{BUNDLES}/{name}" for name in bundles}
        done: dict[str, Leaderboard] = {}
        for head, board in boards.items():
            done[head] = board.with_bundles(places)
            done[head].write(storage.join(self.out, head))
        result = VariantComparison(out=self.out, leaderboards=done, bundles=tuple(bundles.values()))
        buffer = io.StringIO()
        result.table.to_csv(buffer, index=False, lineterminator="\n")
        storage.write_bytes(storage.join(self.out, TABLE), buffer.getvalue().encode())
        return result


def _has(entry: LeaderboardEntry, target: BinaryTarget) -> bool:
    """Whether a variant answers a question."""
    return bool((entry.predictions["head"] == target.name).any())


def _of_head(entry: LeaderboardEntry, target: BinaryTarget) -> LeaderboardEntry:
    """A variant as one of its questions ranks it: by the mean AUC over validation patients."""
    rows = entry.predictions[entry.predictions["head"] == target.name]
    validation = rows[rows["split"] == "validation"]
    aucs = [
        binary_metrics(fold["label"], fold["score"], 0.5).auc
        for _, fold in validation.groupby("fold")
    ]
    return dataclasses.replace(
        entry,
        predictions=rows.reset_index(drop=True),
        validation_score=float(np.mean(aucs)),
        standing=None,
    )


def print_variants(result: VariantComparison, console: Console) -> None:
    """A table with a row for each variant, and AUC, sensitivity and specificity of its answers."""
    heads = list(result.leaderboards)
    table = Table(title="Variants, out of fold", caption="95% intervals. Not for clinical use.")
    table.add_column("Variant")
    for head in heads:
        target = result.leaderboards[head].target
        table.add_column(f"AUC {head}\n{target.positive}", justify="right")  # type: ignore[union-attr]
        table.add_column("sens / spec", justify="right")
    rows = {
        head: {row.entry.name: row for row in board.rows}
        for head, board in result.leaderboards.items()
    }
    order = dict.fromkeys(name for head in heads for name in rows[head])
    for name in order:
        cells = [cell for head in heads for cell in _cells(rows[head].get(name))]
        table.add_row(name, *cells)
    console.print(table)


def _cells(row: LeaderboardRow | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    values = row.evaluation.per_study.values
    return _shown(values["auc"]), (
        f"{values['sensitivity'].value:.2f} / {values['specificity'].value:.2f}"
    )


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
