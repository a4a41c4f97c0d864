"""Answers about ECGs: with what the chart says, and heat laid over the page as it was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cardioray.data.decoding import DecodedSample
from cardioray.data.ecg import PICTURE, layout_name
from cardioray.data.ecg_canonical import canonical_corner, over_original
from cardioray.data.ecg_layouts import read_chart
from cardioray.data.ecg_leads import LEADS
from cardioray.data.ecg_page import read_page
from cardioray.models.backbones import NoFeatureMap
from cardioray.models.ecg import EcgModel
from cardioray.predictor import Item, Predictor
from cardioray.tasks.ecg import EcgTask

Heat = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LeadHeat:
    """Where the evidence for an answer lies in an ECG.

    Attributes:
        canonical: over the picture that the network saw, in [0, 1], (S, S).
        shares: of all heat, by lead; they add up to 1 where there is any.
    """

    canonical: Heat
    shares: Mapping[str, float]


class EcgPredictor(Predictor):
    """As every predictor; see there. An ECG may come with what the chart says of its patient."""

    task: EcgTask

    def predict(
        self,
        items: Item | Sequence[Item],
        views: Sequence[str] | None = None,
        *,
        clinical_features: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Answer for one ECG, or for several of one examination.

        Args:
            items: pages or records: file contents, paths (local or s3://), or uint8 arrays.
            views: of no use here.
            clinical_features: age in years, and female, dm, ht, smoke and dlp as 0 or 1, as far as
                they are known; for models that take charts. What is missing is filled in by what
                the rest tells.

        Returns:
            By question, `scar` and `lvef`: `prediction` 0 or 1, `probability` with `negative` and
            `positive`, `class`, `threshold`, `uncertain`; then `page`, the model's name, and
            warnings. See docs/ecg.md.

        Raises:
            UnreadableImage: when an item is no ECG, or its layout is not known; says what was seen.
            FileNotFoundError: when a path does not exist.
            ValueError: for unknown or impossible clinical features.
        """
        samples = with_chart(self.read(items, views), clinical_features or {})
        answer = self.answer(samples, self.infer(samples))
        for target in self.task.targets:
            positive = answer[target.name]["probability"]
            answer[target.name]["probability"] = {"negative": 1 - positive, "positive": positive}
        return answer

    def lead_heat(self, sample: DecodedSample, head: str, method: str) -> LeadHeat:
        """Where in an ECG the evidence for the answer of a head lies.

        Args:
            sample: the ECG.
            head: "scar" or "lvef".
            method: one of `cardioray.explain.cam.METHODS`.

        Raises:
            NoFeatureMap: for a model of signals, or a backbone without a feature map.
            ValueError: for an unknown head or method.
        """
        answer: dict[str, Any] = self.answer([sample], self.infer([sample]))
        if head not in answer:
            known = ", ".join(target.name for target in self.task.targets)
            raise ValueError(f"The model has no head {head!r}; it has {known}.")
        return self._lead_heat(sample, head, method, answer[head]["prediction"])

    def _lead_heat(
        self, sample: DecodedSample, head: str, method: str, prediction: int | None
    ) -> LeadHeat:
        from cardioray.explain.cam import Explainer

        if self.task.settings.model.sees != "picture":
            raise NoFeatureMap("The model has learned from signals; heat is laid over pictures.")
        if self._explainer is None:
            assert isinstance(self.model, EcgModel)
            self._explainer = Explainer(self.model)
        known = {
            name: np.array([sample.facts.get(name, np.nan)], np.float32)
            for name in self.task.carried
        }
        inputs = self.task.inputs({PICTURE: sample.arrays[PICTURE][None], **known})
        heat = self._explainer.class_activation(
            sample.arrays[PICTURE], head, method, prediction=prediction, beside=inputs[1:]
        )
        side = self.task.settings.preprocess.image_size
        total, shares = float(heat.sum()), {}
        for lead in LEADS:
            x, y = canonical_corner(lead, side)
            own = heat[y : y + side // 6, x : x + side // 2]
            shares[lead] = float(own.sum()) / total if total else 0.0
        return LeadHeat(heat, shares)

    def _heat_map(
        self, sample: DecodedSample, method: str, answer: Mapping[str, Any]
    ) -> NDArray[np.float32]:
        """Heat of the headline over the page as it was sent."""
        from cardioray.explain.cam import to_source

        head = self.task.targets[0].name
        heat = self._lead_heat(sample, head, method, answer.get("prediction")).canonical
        if layout_name(sample) == "unknown layout":
            return to_source(heat, sample.source_shape, "squash")
        # Where each lead lies in the picture is found once more: samples keep no page.
        page = read_page(sample.picture, self.task.settings.preprocess.page)
        return over_original(page, heat, sample.source_shape)


def with_chart(
    samples: Sequence[DecodedSample], clinical_features: Mapping[str, Any]
) -> list[DecodedSample]:
    """Samples with what the chart says.

    Raises:
        ValueError: for unknown or impossible clinical features.
    """
    chart = read_chart(clinical_features)
    if not chart:
        return list(samples)
    return [replace(sample, facts={**sample.facts, **chart}) for sample in samples]
