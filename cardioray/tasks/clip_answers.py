"""What an answer about cines says beside its numbers: beats, frames used, doubts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cardioray.clinical.beats import values_by_beat
from cardioray.data.clip import CLIP
from cardioray.data.decoding import DecodedSample
from cardioray.data.sampling import ClipSampling


def clip_details(
    sampling: ClipSampling,
    samples: Sequence[DecodedSample],
    windows: Sequence[NDArray[np.float32]],
) -> dict[str, Any]:
    """Beat-by-beat values and the frames used; see `EchoEfTask.details`.

    Args:
        sampling: how the windows were cut.
        samples: the cines of a study.
        windows: per cine the headline's value of every window; none for a cine that takes no part.
    """
    beats: list[dict[str, Any]] = []
    found = False
    for number, (sample, values) in enumerate(zip(samples, windows, strict=True)):
        count = len(sample.arrays[CLIP])
        starts = np.array(sampling.starts(count, thorough=True))
        fps = sample.facts.get("fps", math.nan)
        if math.isnan(fps) or not len(values):
            continue
        own = values_by_beat(starts, values.astype(float), fps)
        found |= len(own) > 1
        beats += [
            {
                "cine": number,
                "first_frame": beat.first_frame,
                "last_frame": min(beat.last_frame + sampling.span, count) - 1,
                "value": beat.value,
            }
            for beat in own
        ]
    values_of_beats = [beat["value"] for beat in beats]
    return {
        "beats": beats,
        "beat_range": [min(values_of_beats), max(values_of_beats)] if found else None,
        "cines": cine_facts(sampling, samples),
    }


def cine_facts(sampling: ClipSampling, samples: Sequence[DecodedSample]) -> list[dict[str, Any]]:
    """Per cine, what of it was used."""
    return [
        {
            "frames_in_file": int(sample.facts.get("source_frames", len(sample.arrays[CLIP]))),
            "frames_used": len(sample.arrays[CLIP]),
            "fps": _or_none(sample.facts.get("source_fps", math.nan)),
            "cm_per_px": _or_none(sample.facts.get("cm_per_px", math.nan)),
            "windows": sampling.count(sample.arrays),
        }
        for sample in samples
    ]


def clip_doubts(sampling: ClipSampling, samples: Sequence[DecodedSample]) -> list[str]:
    """Warnings about the cines of a study, as sentences.

    That a network looks at one window alone, as the one for views does, is no doubt.
    """
    doubts = []
    for number, sample in enumerate(samples):
        which = f"Cine {number}: " if len(samples) > 1 else ""
        count, facts = len(sample.arrays[CLIP]), sample.facts
        if facts.get("sector_found", 1.0) == 0:
            doubts.append(
                f"{which}No ultrasound sector was found; the whole picture was used, and whatever "
                "else is in it."
            )
        if facts.get("damaged", 0.0) == 1:
            doubts.append(
                f"{which}The file is damaged: one reader refused a frame of it, and another made "
                "something of it. What is shown may not be what was recorded."
            )
        if count < sampling.span:
            frames = f"{count} frame{'s' * (count != 1)}"
            doubts.append(
                f"{which}The cine has {frames}, and the network looks at {sampling.span} at a "
                "time; the rest is blank."
            )
        if math.isnan(facts.get("fps", math.nan)):
            doubts.append(
                f"{which}The file does not say how many frames a second it has; beats are not told "
                "apart, and the network may see the heart faster or slower than it has learned."
            )
        used, possible = sampling.count(sample.arrays), sampling.possible(count)
        if used < possible > 1 and sampling.max_windows > 1:
            doubts.append(
                f"{which}Of {possible} windows the network answered for {used}, evenly spread."
            )
        if facts.get("source_frames", count) > count and "fps" in facts:
            doubts.append(
                f"{which}Of {facts['source_frames']:.0f} frames the first {count} were used."
            )
    return doubts


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
