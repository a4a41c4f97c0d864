"""What Ray Train's controller loads of CardioRay.

Each trial of a comparison starts a controller, which only hands things on. So that its start costs
little, this module imports no network and no training loop.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import UserCallback
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

from cardioray.machine import collecting_rarely

log = logging.getLogger(__name__)

# After a kill, those who are left may still wait for the one that is gone.
_LEAVE_TIMEOUT_S = 30.0


def run_plan(settings: dict[str, Any]) -> None:
    """The training function: runs in every worker, which alone loads the loop."""
    with collecting_rarely():
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


class EndWhenWrittenOff(UserCallback):  # type: ignore[misc]
    """Ends a controller that the cluster counts as dead, before it starts workers again.

    When a trial is stopped, its controller dies with it. The workers may be gone first, and for a
    fraction of a second the controller takes that for a failure. The CPUs that it asked for then
    would belong to nobody: Ray gives back what an actor holds when it hears of its death, which it
    has by then, and every later trial would wait for ever.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train."""
        if is_dead(ray.get_runtime_context().get_actor_id()):
            os._exit(1)


def is_dead(actor_id: str | None) -> bool:
    """Whether the cluster counts an actor as dead, be its process still there."""
    return actor_id is not None and ray._private.state.actors(actor_id).get("State") == "DEAD"


@dataclass
class TorchGroup(BackendConfig):  # type: ignore[misc]
    """Has the workers of a run set up `torch.distributed` among them.

    Ray's TorchConfig does the same, and loads torch wherever it passes: in the trial and in the
    controller, which have no other use for it.

    Attributes:
        kind: "gloo" or "nccl".
        timeout_s: how long a collective operation may take.
    """

    kind: str
    timeout_s: int = 1800

    @property
    def backend_cls(self) -> type[Backend]:
        """Asked for by Ray Train."""
        return _TorchGroupBackend

    @property
    def framework(self) -> TrainingFramework:
        """Asked for by Ray Train."""
        return TrainingFramework.TORCH


class _TorchGroupBackend(Backend):  # type: ignore[misc]
    # Peers on a node copy from GPU to GPU, for which each has to see all of them.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: TorchGroup) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        host = f"[{address}]" if ":" in address else address
        joining = [
            worker_group.execute_single_async(
                rank, _join, backend_config, rank, len(worker_group), f"tcp://{host}:{port}"
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: TorchGroup) -> None:
        try:
            ray.get(worker_group.execute_async(_leave), timeout=_LEAVE_TIMEOUT_S)
        except GetTimeoutError:
            log.warning("A worker did not leave its group in %.0f s.", _LEAVE_TIMEOUT_S)


def _join(group: TorchGroup, rank: int, size: int, meeting_point: str) -> None:
    # Workers never ask the hub: what they need was fetched by the driver.
    os.environ["HF_HUB_OFFLINE"] = "1"
    with collecting_rarely():
        from ray.train.torch import config

    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(group.kind, rank, size, meeting_point, group.timeout_s)


def _leave() -> None:
    from ray.train.torch import config

    config._shutdown_torch(destroy_process_group=True)
