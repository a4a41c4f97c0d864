"""What the OpenAPI document says of answers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field, create_model

from cardioray.predictor import Predictor
from cardioray.serve.upload import ACCEPTED_TYPES


class BinaryAnswer(BaseModel):
    """The answer to a yes/no question."""

    prediction: int = Field(description="0 or 1", ge=0, le=1)
    class_: str = Field(alias="class", description="Name of the predicted class")
    probability: float = Field(description="Calibrated probability of class 1", ge=0, le=1)
    threshold: float = Field(description="Probability from which the prediction is 1")
    uncertain: bool = Field(description="Whether the conformal set is not the predicted class only")
    probability_per_frame: list[float]


class NumberAnswer(BaseModel):
    """A predicted number with its conformal interval."""

    value: float
    low: float
    high: float
    unit: str


class Overlay(BaseModel):
    """A frame with a heat map."""

    frame: int = Field(description="Place of the frame in the study, from 0")
    method: str
    png: str = Field(description="PNG as a data: URI")


class ProblemDetails(BaseModel):
    """An error by RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    accepted: str | None = Field(None, description="What may be sent instead")


def answer_schema(predictor: Predictor) -> type[BaseModel]:
    """The shape of the answers of a task."""
    fields: dict[str, Any] = {
        target.name: (BinaryAnswer if target.kind == "binary" else NumberAnswer, ...)
        for target in predictor.task.targets
    }
    return create_model(
        "Answer",
        __doc__="The answer for one study.",
        **fields,
        model=(str, Field(description="Name of the model")),
        bundle=(str, Field(description="Hash of the model's bundle")),
        frames=(int, Field(description="Frames of the study")),
        warnings=(list[str], Field(description="What to know before believing the answer")),
        overlays=(list[Overlay] | None, None),
        request_id=(str, ...),
    )


def request_body() -> dict[str, Any]:
    """The two ways to send a study, for OpenAPI."""
    file = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "properties": {"file": file, "files": {"type": "array", "items": file}},
    }
    content: dict[str, Any] = {"multipart/form-data": {"schema": form}}
    return {
        "required": True,
        "content": content | {kind: {"schema": file} for kind in ACCEPTED_TYPES},
    }


def document(app: FastAPI, prefix: str, *, with_keys: bool) -> dict[str, Any]:
    """The OpenAPI document of an application that is mounted at `prefix`."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schema["paths"] = {f"{prefix}{path}": value for path, value in schema["paths"].items()}
        schema["servers"] = [{"url": "/"}]
        if with_keys:
            schema.setdefault("components", {})["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key"}
            }
            schema["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema
