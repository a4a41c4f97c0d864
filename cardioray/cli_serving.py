"""The commands around finished bundles: serve, deploy, explain, and the store of models."""

from __future__ import annotations

import math
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

commands = typer.Typer()
models_app = typer.Typer(help="Bundles in a store, and published weights.", no_args_is_help=True)
commands.add_typer(models_app, name="models")

console = Console()

ServeOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting of the application, as in `--set scaling.max_replicas=4`.",
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on; beyond loopback needs API keys.")]
Port = Annotated[int, typer.Option(min=1, max=65535)]
Fast = Annotated[bool, typer.Option("--fast", help="HAProxy in front; see docs/serving.md.")]
WithPage = Annotated[
    bool, typer.Option("--page/--no-page", help="The page for browsers at /; see docs/page.md.")
]
BundlePath = Annotated[
    str,
    typer.Argument(
        metavar="BUNDLE", help="A bundle, or a comparison for its winner; local or s3://."
    ),
]
Store = Annotated[str, typer.Argument(metavar="STORE", help="Folder or s3:// prefix of bundles.")]


@commands.command()
def serve(
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE...", help="Bundles or comparisons; the first of a task answers."
        ),
    ],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    fast: Fast = False,
    page: WithPage = True,
    settings: ServeOptions = None,
) -> None:
    """Serve bundles over HTTP until Ctrl-C, each task at /v1/TASK, and a page for all of them at /.

    Example: `cardioray serve runs/ffr/bundles/densenet121 --port 8000`
    """
    from cardioray.serve.deploy import application_settings, page_settings, serve_bundles
    from cardioray.serve.settings import ServerSettings

    server = ServerSettings(host=host, port=port, mode="fast" if fast else "default")
    applications = application_settings(bundles, settings or ())
    shown = page_settings(applications) if page else None
    serving = serve_bundles(applications, server, shown)
    try:
        if serving.page_url:
            console.print(f"The page for browsers is at {serving.page_url}")
        for task, url in serving.urls.items():
            console.print(f"{task} answers at {url} (docs: {url}/docs)")
        console.print("Ctrl-C stops.")
        serving.wait()
    finally:
        serving.stop()


@commands.command()
def deploy(
    runs: Annotated[str, typer.Argument(help="Folder or prefix of a comparison.")],
    top: Annotated[int, typer.Option(min=1, help="How many of its best models.")] = 1,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    out: Annotated[
        str | None, typer.Option(help="Serve config to write; by default RUNS/serve.yaml.")
    ] = None,
    page: WithPage = True,
    settings: ServeOptions = None,
) -> None:
    """Write a Serve config from a leaderboard and deploy it on the running cluster.

    The winner answers, `?model=NAME` picks another.

    Example: `cardioray deploy runs/ffr --top 2`
    """
    from cardioray import storage
    from cardioray.model_store import ranked_bundles
    from cardioray.serve.deploy import (
        application_settings,
        deploy_config,
        page_settings,
        write_serve_config,
    )
    from cardioray.serve.serve_file import PAGE
    from cardioray.serve.settings import ServerSettings

    paths = ranked_bundles(runs)
    if len(paths) < top:
        raise ValueError(
            f"{runs} has {len(paths)} bundle(s), not {top}; run the comparison again with "
            f"--refits {top} and the same settings."
        )
    applications = application_settings(paths[:top], settings or ())
    server = ServerSettings(host=host, port=port)
    shown = page_settings(applications) if page else None
    file = write_serve_config(applications, out or storage.join(runs, "serve.yaml"), server, shown)
    urls = deploy_config(file)
    if page_url := urls.pop(PAGE, None):
        console.print(f"The page for browsers is at {page_url}")
    for task, url in urls.items():
        console.print(f"{task} answers at {url}")


@commands.command("serve-key")
def serve_key() -> None:
    """Make an API key and the hash that the server's key file holds.

    Example: `cardioray serve-key`
    """
    from cardioray.serve.auth import new_key

    key, digest = new_key()
    console.print(f"key for the client (shown once): {key}", highlight=False, soft_wrap=True)
    console.print(f"SHA-256 for the server:          {digest}", highlight=False, soft_wrap=True)


@commands.command()
def explain(
    bundle: BundlePath,
    image: Annotated[str, typer.Argument(help="A picture, a video, or a DICOM file.")],
    method: Annotated[
        str | None,
        typer.Option(
            help="gradcam, gradcam++ (of pictures the default) or scorecam; of key frames the "
            "first two, of cines gradcam. Of segmentations outlines (of a frame), or video (of a "
            "cine the default)."
        ),
    ] = None,
    spacing_mm: Annotated[
        str | None,
        typer.Option(
            help="Of segmentations: height and width of a pixel in mm, such as 0.31,0.31, where "
            "the file does not state it. Without either, areas are in px."
        ),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(help="Of key frames: which one it is, ED, ES or MID, or A4C-ED and so on."),
    ] = None,
    frame: Annotated[
        int | None,
        typer.Option(min=0, help="Of key frames: which frame of a cine, counted from 0."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="PNG, or MP4 of a cine, to write; explanation.png or .mp4 by default."),
    ] = None,
) -> None:
    """Show where in a picture, or where and when in a cine, an answer comes from.

    Of a segmentation, the outlines of a frame, or a video of a cine: its frames with their
    outlines above the curve of the cavity's area, with end diastoles and end systoles marked.
    Beside the MP4 of a cine, a CSV of the same name holds the importance, or the area, of every
    frame.

    Examples: `cardioray explain runs/ffr/bundles/densenet121 frame.png --method gradcam++`,
    `cardioray explain runs/lv-seg/bundle a4c.dcm --out a4c.mp4`,
    `cardioray explain runs/lv-seg/bundle a4c.avi --spacing-mm 0.31,0.31 --out a4c.mp4`,
    `cardioray explain runs/keyframe-ef/bundle a4c.avi --view A4C-ES --frame 30`
    """
    from cardioray import storage
    from cardioray.data.nifti import read_source
    from cardioray.keyframes import KeyframePredictor
    from cardioray.outlines import parse_spacing
    from cardioray.studies import load

    spacing = None if spacing_mm is None else parse_spacing(spacing_mm)
    predictor = load(bundle)
    data = read_source(image)
    if isinstance(predictor, KeyframePredictor):
        found = predictor.explain(data, method, spacing_mm=spacing, view=view or "", frame=frame)
    elif view is not None or frame is not None:
        raise ValueError(
            f"Leave out --view and --frame: {predictor.task.name} is not about key frames."
        )
    else:
        found = predictor.explain(data, method, spacing_mm=spacing)
    out = out or f"explanation.{found.media_type.rsplit('/', 1)[-1]}"
    storage.write_bytes(out, found.content)
    console.print(f"Wrote {out}")
    column, curve = "importance", found.importance
    if found.areas:
        column, curve = f"area_{found.unit}", found.areas
    if curve:
        table = out.rsplit(".", 1)[0] + ".csv"
        lines = [
            f"{frame}," + ("" if math.isnan(value) else f"{value:.4f}")
            for frame, value in enumerate(curve)
        ]
        storage.write_bytes(table, "\n".join([f"frame,{column}", *lines, ""]).encode())
        console.print(f"Wrote {table}")


@models_app.command("list")
def models_list(
    store: Store, task: Annotated[str | None, typer.Option(help="Only of this task.")] = None
) -> None:
    """List the bundles of a store; the one in production is marked.

    Example: `cardioray models list models`
    """
    from cardioray.model_store import list_models

    table = Table("task", "model", "bundle", "created", "production")
    for model in list_models(store, task):
        mark = "yes" if model.in_production else ""
        table.add_row(model.task, model.name, model.folder, model.created, mark)
    console.print(table)


@models_app.command("promote")
def models_promote(store: Store, bundle: BundlePath) -> None:
    """Put a bundle into production; servers that follow the store change to it.

    Example: `cardioray models promote models runs/ffr/bundles/densenet121`
    """
    from cardioray.model_store import promote

    model = promote(store, bundle)
    console.print(f"In production for {model.task}: {model.folder}")


@models_app.command("rollback")
def models_rollback(
    store: Store, task: Annotated[str, typer.Argument(metavar="TASK", help="Such as `ffr`.")]
) -> None:
    """Put the bundle that was in production before the present one back.

    Example: `cardioray models rollback models ffr`
    """
    from cardioray.model_store import rollback

    console.print(f"In production for {task}: {rollback(store, task).folder}")


@models_app.command("convert")
def models_convert(
    source: Annotated[str, typer.Argument(help="Published .pt or .pth file, local or s3://.")],
    target: Annotated[str, typer.Argument(help="The .safetensors file to write, local or s3://.")],
) -> None:
    """Convert published weights to safetensors; the file cannot run code while it is read.

    Example: `cardioray models convert r2plus1d_18.pt r2plus1d_18.safetensors`
    """
    from cardioray.models.weights import convert_weights

    console.print(f"{len(convert_weights(source, target))} tensors in {target}")
