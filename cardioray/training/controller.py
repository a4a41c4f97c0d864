"""What Ray Train's controller loads of CardioRay.

Each trial of a comparison starts a controller, which only hands things on. So that its start costs
little, this module imports no network and no training loop.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import UserCallback


def run_plan(settings: dict[str, Any]) -> None:
    """The training function: runs in every worker, which alone loads the loop."""
    from cardioray.training.loop import train_worker

    train_worker(ray.get(settings["plan"]))


class EndOnValueError(UserCallback):  # type: ignore[misc]
    """Ends a run at once when a worker raised a ValueError, which it would raise again.

    Ray Train tries again whatever a worker raised, `max_failures` times. An error that a callback
    raises is not tried again.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train."""
        # Ray Train hands on the errors wrapped, with their tracebacks as text.
        raised = [getattr(error, "_base_exc", error) for error in worker_exceptions.values()]
        # Beside a worker that died, the others fail in odd ways; that is worth another try.
        if any(isinstance(error, RayActorError) for error in raised):
            return
        for error in raised:
            if isinstance(error, ValueError):
                raise error
