"""The clinical questions CardioRay answers, one file a task."""

from __future__ import annotations

from cardioray.tasks import ecg, echo_cmr, echo_ef, echo_view, ffr, image, keyframe_ef, lv_seg  # noqa: F401  (importing a task registers it)
from cardioray.tasks.base import TASKS, Task, make_task

__all__ = ["TASKS", "Task", "make_task"]
