"""Ray Train's trainer, as a process that drives many trainings needs it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
from ray.train import ControllerError, Result
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cardioray.data.cluster import has_state_api, inherits_environment
from cardioray.scratch import remove_abandoned

_LOOK_S = 0.25


class CalledOff(Exception):  # noqa: N818  # no error: it was asked for
    """A run was ended from outside, before its end."""


class Trainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray Train's trainer, whose run can be called off, and whose controller starts faster.

    A trial that Ray Tune stops is told so in another thread, and Ray's own trainer waits for the
    end of the run whatever happens: the process had to go, and with it seconds of loading that the
    next trial could have spared.
    """

    called_off: Callable[[], bool] | None = None

    def _create_default_callbacks(self) -> list[Any]:
        """Called by `fit`. Ray's cleaner asks the state API, and is of no use where there is none.

        It gives back what a dead controller held, which here goes with the whole cluster.
        """
        callbacks: list[Any] = super()._create_default_callbacks()
        if has_state_api():
            return callbacks
        return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        """Called by `fit`.

        Raises:
            CalledOff: when `called_off` said so.
        """
        node = ray.get_runtime_context().get_node_id()
        options: dict[str, Any] = {
            "num_cpus": 0,
            "label_selector": {ray._raylet.RAY_NODE_ID_KEY: node},
        }
        # For a runtime environment, Ray starts Python twice in the controller and in whatever it
        # starts. It would say there what the processes of a local cluster know already.
        if not inherits_environment():
            quiet = {RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: "0"}
            options["runtime_env"] = {"env_vars": quiet | get_env_vars_to_propagate()}
        controller = ray.remote(**options)(TrainController).remote(**parts)
        if threading.current_thread() is threading.main_thread():
            self._register_sigint_handler(controller)
        running = controller.run.remote()
        while not ray.wait([running], timeout=_LOOK_S)[0]:
            if self.called_off is not None and self.called_off():
                # Its workers go with it at once, which Ray Train's own way to end it is slow about.
                ray.kill(controller)
                raise CalledOff
        ray.get(running)
        return ray.get(controller.get_result.remote())


def fit(trainer: Trainer) -> None:
    """Run a trainer to its end; a worker's ValueError comes out as it was raised.

    Raises:
        CalledOff: when `trainer.called_off` said so.
        KeyboardInterrupt: when the user stopped it.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except ControllerError as error:
        if isinstance(error.controller_failure, ValueError):
            raise error.controller_failure from error
        raise
    except SystemExit as error:
        # Ray Train answers Ctrl-C by ending the workers and then the process, as if all were well.
        raise KeyboardInterrupt from error
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        remove_abandoned()
