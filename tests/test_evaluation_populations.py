"""Figures at another prevalence, in subgroups, beside readers, and of decisions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner, Result

from cardioray.cli import app
from cardioray.evaluation.figures import Resampling
from cardioray.evaluation.populations import (
    at_prevalence,
    parse_group,
    subgroup_figures,
    subgroup_table,
)
from cardioray.evaluation.readers import compare_readers, decision_curve


def scored(count: int = 400, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.3).astype(float)
    scores = 1 / (1 + np.exp(-(rng.normal(0, 1, count) + 1.5 * labels - 1)))
    names = [f"s{number}" for number in range(count)]
    return pd.DataFrame(
        {
            "study_id": names,
            "patient_id": names,
            "label": labels,
            "score": scores,
            "probability": scores,
            "positive": scores >= 0.5,
        }
    )


class TestPrevalence:
    def test_the_auc_stays_and_f1_falls_with_the_prevalence(self) -> None:
        studies = scored()
        auc = roc_auc_score(studies["label"], studies["score"])
        rare, common = (at_prevalence(studies, share, repeats=200) for share in (0.079, 0.4))
        assert rare.auc.value == pytest.approx(auc, abs=0.01)
        assert common.auc.value == pytest.approx(auc, abs=0.01)
        assert rare.f1.value < common.f1.value
        assert rare.prevalence == 0.079

    def test_the_interval_of_the_mean_narrows_and_that_of_a_set_does_not(self) -> None:
        few, many = (at_prevalence(scored(), 0.1, repeats=n) for n in (100, 1600))
        width = [found.auc.high - found.auc.low for found in (few, many)]
        assert width[1] == pytest.approx(width[0] / 4, rel=0.3)
        spread = [found.auc_spread.high - found.auc_spread.low for found in (few, many)]
        assert spread[1] == pytest.approx(spread[0], rel=0.3)

    @pytest.mark.parametrize("prevalence", [0.0, 1.0, 0.0001, 7.9])
    def test_a_prevalence_that_cannot_be_is_refused(self, prevalence: float) -> None:
        with pytest.raises(ValueError, match="prevalence is a share between 0 and 1"):
            at_prevalence(scored(), prevalence)


class TestSubgroups:
    def test_groups_and_everybody_else_are_all_patients_of_whom_it_is_known(self) -> None:
        studies = scored()
        facts = pd.DataFrame(
            {
                "study_id": studies["study_id"],
                "qrs_ms": np.where(np.arange(400) < 20, np.nan, np.linspace(70, 170, 400)),
                "sex": np.where(np.arange(400) % 2, "F", "M"),
            }
        )
        groups = ["qrs_ms > 120", "sex = f"]
        table = subgroup_table(
            subgroup_figures(studies, facts, groups, resampling=Resampling(200, 0))
        ).set_index("group")
        counts = table["studies"]
        assert counts["all"] == 400
        assert counts["qrs_ms > 120"] + counts["not qrs_ms > 120"] == 380
        assert counts["sex = f"] == 200
        wide = studies[facts["qrs_ms"] > 120]
        assert table.loc["qrs_ms > 120", "auc"] == pytest.approx(
            roc_auc_score(wide["label"], wide["score"])
        )

    def test_too_few_of_a_class_have_no_figure(self) -> None:
        studies = scored(60)
        facts = pd.DataFrame({"study_id": studies["study_id"], "age": np.arange(60)})
        found = subgroup_figures(studies, facts, ["age < 6"], resampling=Resampling(50, 0))
        assert found[1].studies == 6
        assert found[1].figures is None
        assert np.isnan(subgroup_table(found)["auc"][1])

    def test_a_condition_that_cannot_be_read_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"not 'QRS wide'"):
            parse_group("QRS wide", ["qrs_ms"])
        with pytest.raises(ValueError, match=r"'qrs'.*Known: qrs_ms"):
            parse_group("qrs > 120", ["qrs_ms"])
        with pytest.raises(ValueError, match="'wide' is no number"):
            parse_group("qrs_ms > wide", ["qrs_ms"])(pd.DataFrame({"qrs_ms": [1]}))


class TestReaders:
    def test_a_model_is_compared_where_it_is_as_specific(self) -> None:
        studies = scored(1000, seed=2)
        truth = studies["label"].to_numpy() == 1
        rng = np.random.default_rng(3)
        said = np.where(truth, rng.random(1000) < 0.45, rng.random(1000) < 0.1)
        readings = pd.DataFrame({"study_id": studies["study_id"], "A": said.astype(float)})
        readings.loc[:99, "A"] = np.nan
        [reader] = compare_readers(studies, readings)
        assert reader.studies == 900
        read = np.arange(1000) >= 100
        assert reader.sensitivity.value == pytest.approx(said[read & truth].mean())
        assert reader.specificity.value == pytest.approx((~said)[read & ~truth].mean())
        # By hand: the share of positives above the quantile of the negatives.
        scores = studies["score"].to_numpy()
        cut = np.sort(scores[read & ~truth])[int((~said)[read & ~truth].sum()) - 1]
        assert reader.model_sensitivity.value == pytest.approx((scores[read & truth] > cut).mean())
        assert 0 <= reader.p_value <= 1

    def test_a_reader_who_is_the_model_is_no_better(self) -> None:
        studies = scored(500, seed=4)
        said = (studies["score"] >= 0.5).astype(int)
        [reader] = compare_readers(
            studies, pd.DataFrame({"study_id": studies["study_id"], "A": said})
        )
        assert reader.model_sensitivity.value >= reader.sensitivity.value
        assert np.isnan(reader.p_value) or reader.p_value > 0.4

    @pytest.mark.parametrize(
        ("readings", "said"),
        [
            ({"study_id": ["s1"]}, "a column with 0 or 1 for each reader"),
            ({"study_id": ["s1"], "A": [2]}, "A says '2' of a study"),
            ({"study_id": ["other"], "A": [1]}, "A has read none"),
            ({"study_id": ["s1", "s1"], "A": [1, 0]}, "'s1' twice"),
        ],
    )
    def test_readings_that_make_no_sense_are_refused(
        self, readings: dict[str, list[object]], said: str
    ) -> None:
        with pytest.raises(ValueError, match=said):
            compare_readers(scored(20), pd.DataFrame(readings))


class TestDecisionCurve:
    def test_it_is_the_formula(self) -> None:
        studies = scored()
        curve = decision_curve(studies["label"], studies["probability"], [0.2, 0.5])
        truth, values = studies["label"] == 1, studies["probability"]
        for place, cut in enumerate((0.2, 0.5)):
            hits = ((values >= cut) & truth).sum() / len(studies)
            alarms = ((values >= cut) & ~truth).sum() / len(studies)
            assert curve.model[place] == pytest.approx(hits - alarms * cut / (1 - cut))

    def test_a_perfect_model_is_worth_the_prevalence_and_acting_on_all_never_more(self) -> None:
        labels = np.array([0, 1, 1, 0, 0])
        curve = decision_curve(labels, labels.astype(float))
        np.testing.assert_allclose(curve.model, 0.4)
        assert (curve.everybody <= 0.4).all()


class TestCommand:
    def evaluated(self, folder: Path, *words: str) -> Result:
        studies = scored()
        studies.assign(split="test", head="scar", sample_id=studies["study_id"])[
            ["sample_id", "patient_id", "study_id", "split", "head", "label", "score"]
        ].to_csv(folder / "theirs.csv", index=False)
        rng = np.random.default_rng(1)
        facts = studies[["study_id"]].assign(qrs_ms=rng.normal(105, 20, len(studies)))
        facts.to_csv(folder / "facts.csv", index=False)
        readings = studies[["study_id"]].assign(senior=(rng.random(len(studies)) < 0.2).astype(int))
        readings.to_csv(folder / "readers.csv", index=False)
        asked = ["evaluate", "--predictions", str(folder / "theirs.csv"), "--task", "ecg", *words]
        return CliRunner().invoke(app, asked)

    def test_what_else_is_asked_is_printed_and_written(self, tmp_path: Path) -> None:
        result = self.evaluated(
            tmp_path,
            *("--prevalence", "0.079", "--subgroup", "qrs_ms > 120"),
            *("--facts", str(tmp_path / "facts.csv"), "--readers", str(tmp_path / "readers.csv")),
            *("--out", str(tmp_path / "out")),
        )
        assert result.exit_code == 0, result.output
        written = json.loads((tmp_path / "out" / "metrics.json").read_text())["further"]["scar"]
        assert written["prevalence"][0]["prevalence"] == 0.079
        assert [group["group"] for group in written["subgroups"]][1] == "qrs_ms > 120"
        assert written["readers"][0]["name"] == "senior"
        assert (tmp_path / "out" / "plots" / "scar" / "decision.png").is_file()
        table = pd.read_csv(tmp_path / "out" / "subgroups_scar.csv")
        assert table["studies"].iloc[1:].sum() == table["studies"].iloc[0]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--subgroup", "qrs_ms > 120"], "Subgroups need --facts"),
            (["--prevalence", "often"], "shares are written as 0.079,0.2"),
            (["--readers", "theirs.csv"], "does not exist"),
        ],
    )
    def test_what_cannot_be_answered_is_said(
        self, tmp_path: Path, words: list[str], said: str
    ) -> None:
        result = self.evaluated(tmp_path, *words)
        assert result.exit_code != 0
        assert said in str(result.exception)
