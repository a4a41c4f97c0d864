"""The tasks that run beside the page, asked through Serve.

Serve knows which applications run, and each of them says what it answers. Nothing of this is
written into the page, so that a task that is deployed later is there at the next look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from cardioray.serve.middleware import log_fault
from cardioray.serve.problems import Problem, internal_error, overloaded

log = logging.getLogger("ray.serve.cardioray")

# The deployment of a task that takes requests (`cardioray.serve.replica`).
ANSWERER = "Answerer"
RUNNING = "RUNNING"
# A task that does not say within this time what it answers is shown as one that is not ready.
ABOUT_WITHIN_S = 10.0
RETRY_AFTER_S = 2


class RunningTasks:
    """The applications of this cluster that answer a task."""

    def __init__(self) -> None:
        self._handles: dict[str, DeploymentHandle[Any]] = {}

    async def about(self) -> list[dict[str, Any]]:
        """What each of them says of itself, with `ready` and the `path` where it is asked.

        One that starts, or does not answer, has its name and `ready` alone.
        """
        status = await asyncio.to_thread(serve.status)
        names = {
            name: app.status == RUNNING
            for name, app in status.applications.items()
            if ANSWERER in app.deployments
        }
        found = await asyncio.gather(*(self._about(name, names[name]) for name in sorted(names)))
        return list(found)

    async def gates(self, files: Sequence[bytes]) -> list[dict[str, Any]]:
        """What every running task says of some files, by `task`: see `Answerer.gate`."""
        tasks = [each for each in await self.about() if each["ready"]]
        return list(await asyncio.gather(*(self._gate(each, files) for each in tasks)))

    async def look(self, file: bytes) -> tuple[bytes, str] | None:
        """What a file shows, as the first task sees it that can read it, and the media type.

        Tasks about pictures come first: those about cines show what is left of one.
        """
        tasks = [each for each in await self.about() if each["ready"]]
        for task in sorted(tasks, key=lambda each: bool(each["takes_cines"])):
            try:
                seen: tuple[bytes, str] | None = await self._handle(task["app"]).look.remote(file)
            except Exception as error:  # another task may manage
                log_fault(f"A look by {task['app']}", error)
                continue
            if seen is not None:
                return seen
        return None

    async def _about(self, name: str, running: bool) -> dict[str, Any]:
        if not running:
            return {"app": name, "ready": False}
        try:
            said = await asyncio.wait_for(
                _result(self._handle(name).about.remote()), ABOUT_WITHIN_S
            )
        except TimeoutError:
            log.warning("Application %s did not say what it answers.", name)
            return {"app": name, "ready": False}
        except Exception as error:  # a replica that is lost is one task less, and no page less
            log_fault(f"Asking {name} what it answers", error)
            return {"app": name, "ready": False}
        return {"app": name, "ready": True, "path": f"v1/{said['task']}", **said}

    async def _gate(self, task: dict[str, Any], files: Sequence[bytes]) -> dict[str, Any]:
        try:
            said = await _result(self._handle(task["app"]).gate.remote(list(files)))
        except BackPressureError:
            said = _refused(overloaded(RETRY_AFTER_S))
        except Exception as error:  # what one task does wrong does not silence the others
            log_fault(f"The gate of {task['app']}", error)
            said = _refused(internal_error())
        return {"task": task["task"], **said}

    def _handle(self, name: str) -> DeploymentHandle[Any]:
        if name not in self._handles:
            self._handles[name] = serve.get_deployment_handle(ANSWERER, name)
        return self._handles[name]


def _refused(problem: Problem) -> dict[str, Any]:
    body = problem.body(request_id="")
    return {"reads": False, "familiar": False, "findings": [], "problem": body}


async def _result(response: Any) -> dict[str, Any]:
    said: dict[str, Any] = await response
    return said
