"""A check of Serve's config files that Serve itself does not make: unknown keys are refused."""

from __future__ import annotations

import types
import typing
from typing import Any, Union

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.schema import ServeDeploySchema

from cardioray import config, storage
from cardioray.registry import unknown_name
from cardioray.serve.settings import PageSettings, ServeSettings

IMPORT_PATH = "cardioray.serve.app:build"
DEPLOYMENTS = ("Answerer", "ModelReplica")
PAGE_IMPORT_PATH = "cardioray.serve.page_app:build_page"
PAGE_DEPLOYMENTS = ("Page",)
# Name and route of the page's application; longer routes, those of the tasks, win over it.
PAGE, PAGE_PREFIX = "page", "/"
# Serve declares these as free-form mappings, and reads them as these types.
_HIDDEN_TYPES: dict[str, type[BaseModel]] = {
    "autoscaling_config": AutoscalingConfig,
    "request_router_config": RequestRouterConfig,
}


def check_serve_file(path: str) -> ServeDeploySchema:
    """Read a config file of `serve run` and `serve deploy`, and refuse what Serve would overlook.

    Args:
        path: YAML file, local or s3://.

    Returns:
        The file as Serve reads it.

    Raises:
        ValueError: for an unknown key at any level, a wrong value, unknown settings of one of
            CardioRay's applications, or a deployment that it does not have; lists every fault.
    """
    loaded = yaml.safe_load(storage.read_bytes(path))
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds no mapping.")
    faults = list(_unknown_keys(ServeDeploySchema, loaded, ""))
    for index, application in enumerate(loaded.get("applications") or []):
        if isinstance(application, dict):
            faults.extend(_application_faults(application, f"applications.{index}"))
    if not faults:
        try:
            return ServeDeploySchema.model_validate(loaded)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                faults.append(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}")
    raise ValueError("\n".join(f"{path}: {fault}" for fault in faults))


def _application_faults(application: dict[str, Any], where: str) -> list[str]:
    """What is wrong with an application of ours; others are none of our business."""
    path, args = application.get("import_path"), application.get("args") or {}
    if path not in (IMPORT_PATH, PAGE_IMPORT_PATH):
        return []
    faults = []
    try:
        if path == IMPORT_PATH:
            settings = config.parse(ServeSettings, args)
            what, expected = f"task {settings.task}", f"/v1/{settings.task}"
        else:
            config.parse(PageSettings, args)
            what, expected = "the page", PAGE_PREFIX
        if application.get("route_prefix") != expected:
            faults.append(f"{where}.route_prefix: {what} is served at {expected}.")
    except ValueError as error:
        faults.extend(f"{where}.args.{line}" for line in str(error).splitlines())
    known = DEPLOYMENTS if path == IMPORT_PATH else PAGE_DEPLOYMENTS
    for index, deployment in enumerate(application.get("deployments") or []):
        name = deployment.get("name") if isinstance(deployment, dict) else None
        if name not in known:
            unknown = unknown_name("deployment", str(name), known)
            faults.append(f"{where}.deployments.{index}.name: {unknown}")
    return faults


def _unknown_keys(model: type[BaseModel], values: Any, where: str) -> typing.Iterator[str]:
    if not isinstance(values, dict):
        return
    fields = model.model_fields
    known = set(fields) | {field.alias for field in fields.values() if field.alias}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in known:
            yield f"{path}: {unknown_name('key', str(key), known)}"
            continue
        nested = _HIDDEN_TYPES.get(key) or _nested(
            fields[key].annotation if key in fields else None
        )
        if nested is None:
            continue
        for place, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
            yield from _unknown_keys(nested, item, path if place is None else f"{path}.{place}")


def _nested(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as list[Model] or Model | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, Union, types.UnionType):
        for part in typing.get_args(annotation):
            if found := _nested(part):
                return found
    return None
