"""Task `echo-cmr`: findings of a cardiac MRI, from echo cines.

Wall-motion abnormality, scar (late gadolinium enhancement), T1, T2 and extracellular volume, by
R(2+1)D over windows of 16 frames, every other one, a network for each view
(doi:10.1016/j.echo.2025.05.016). In the paper wall motion alone is told well; T1, T2 and ECV are
near chance, and every answer about them says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import field_validator

from cardioray.config import config
from cardioray.data.decoding import DecodedSample
from cardioray.data.sampling import ClipSampling
from cardioray.registry import Registry
from cardioray.targets import BinaryTarget, RegressionTarget, Target
from cardioray.tasks.base import TASKS
from cardioray.tasks.video import VideoSettings, VideoTask


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something a cardiac MRI says.

    Attributes:
        target: the head that predicts it.
        doubt: what the paper's figures mean for whoever reads an answer; "" for no doubt.
    """

    target: BinaryTarget | RegressionTarget
    doubt: str = ""


FINDINGS: Registry[Finding] = Registry("finding")
FINDINGS.add(
    "wma",
    Finding(
        target=BinaryTarget(
            name="wma",
            positive="wall-motion abnormality",
            negative="normal wall motion",
            label_column="wma",
        )
    ),
)
FINDINGS.add(
    "scar",
    Finding(
        target=BinaryTarget(name="scar", positive="scar", negative="no scar", label_column="scar"),
        doubt="Scar is told weakly from echo: AUC 0.70 (0.61 to 0.78) in the published study.",
    ),
)


def _add_number(name: str, title: str, column: str, unit: str, high: float, auc: str) -> None:
    FINDINGS.add(
        name,
        Finding(
            target=RegressionTarget(name=name, value_column=column, unit=unit, low=0.0, high=high),
            doubt=f"{title} is near chance from echo (AUC {auc} in the published study): "
            "do not rely on it.",
        ),
    )


_add_number("t1", "T1", "t1_ms", "ms", 3000.0, "0.61, 0.50 to 0.72")
_add_number("t2", "T2", "t2_ms", "ms", 300.0, "0.55, 0.42 to 0.69")
_add_number("ecv", "ECV", "ecv_percent", "%", 100.0, "0.56, 0.46 to 0.69")


@config
class EchoCmrSettings(VideoSettings):
    """Settings of `echo-cmr`; see `VideoSettings`.

    Attributes:
        findings: heads, of `FINDINGS`; the first one is the headline.
        extra: further heads, or findings defined otherwise, as T1 above a cut-off.
    """

    findings: tuple[str, ...] = ("wma",)
    extra: tuple[Target, ...] = ()
    sampling: ClipSampling = ClipSampling(frames=16, stride=2)

    @field_validator("findings")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            FINDINGS.get(name)
        return names

    def __post_init__(self) -> None:
        if not self.findings and not self.extra:
            raise ValueError("findings: name at least one.")


@TASKS.register("echo-cmr")
class EchoCmrTask(VideoTask):
    """Findings of a cardiac MRI from echo cines."""

    name: ClassVar[str] = "echo-cmr"
    title: ClassVar[str] = "Findings of a cardiac MRI from echo cines"
    intended_use: ClassVar[str] = (
        "Research: whether an echo suggests what a cardiac MRI would find. Wall motion alone is "
        "told well in the published study; scar is weak, and T1, T2 and ECV are near chance. Not "
        "for clinical use."
    )
    settings_type: ClassVar[type] = EchoCmrSettings
    settings: EchoCmrSettings

    @property
    def targets(self) -> tuple[BinaryTarget | RegressionTarget, ...]:
        """The findings."""
        named = (FINDINGS.get(name).target for name in self.settings.findings)
        return (*named, *self.settings.extra)

    def doubts(self, samples: Sequence[DecodedSample]) -> list[str]:
        """What the published study says of the heads, and what speaks against the cines."""
        found = dict.fromkeys(doubt for target in self.targets for doubt in _doubts_of(target))
        return [*found, *super().doubts(samples)]


def _doubts_of(target: BinaryTarget | RegressionTarget) -> list[str]:
    """What the published study says of the findings that a head is about.

    A head of `extra` is about a finding whose label or value column it shares, or whose name is a
    word of its own name or columns ("t1_high", "native T1").
    """
    columns = _columns(target)
    words = set(re.findall(r"[a-z0-9]+", " ".join([target.name.lower(), *columns])))
    findings = [FINDINGS.get(name) for name in FINDINGS]
    return [
        finding.doubt
        for finding in findings
        if finding.doubt and (finding.target.name in words or columns & _columns(finding.target))
    ]


def _columns(target: BinaryTarget | RegressionTarget) -> set[str]:
    """The columns with a head's labels, in small letters: tables have them in any case."""
    columns = {target.value_column}
    if isinstance(target, BinaryTarget):
        columns.add(target.label_column)
    return {column.lower() for column in columns if column}
