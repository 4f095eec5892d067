"""``foreclick models``: the versions in a model store, one of them for the workers to serve, and the bundled one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stream.cli.options import BootstrapServers, Json, finish

app_models = typer.Typer(
    no_args_is_help=True, help="List, check and activate models, and make the bundled one."
)
Root = Annotated[
    Path | None,
    typer.Option(
        "--root",
        help="The model store; FORECLICK_MODEL_ROOT or the package's own by default.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the group ``models``."""
    app.add_typer(app_models, name="models")


@app_models.command(epilog="Example: foreclick models verify models/shop/1")
def verify(
    folder: Annotated[
        Path | None, typer.Argument(help="<root>/<name>/<version>; the bundled one by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check sizes, hash, features and golden outputs."""
    from models.registry import bundled, load_artefact

    artefact = load_artefact(folder or bundled())
    label = f"{artefact.name}/{artefact.version}"
    digest = artefact.manifest["weights"]["sha256"]
    finish({"model": label, "sha256": digest, "ok": True}, f"{label} is whole: SHA-256 {digest}", as_json)


@app_models.command(epilog="Example: foreclick models show models/shop/1")
def show(
    folder: Annotated[
        Path | None, typer.Argument(help="<root>/<name>/<version>; the bundled one by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What a model is, what it was trained on, how good it was."""
    from models.registry import bundled, load_artefact

    manifest = load_artefact(folder or bundled()).manifest
    told = {
        name: manifest[name]
        for name in (
            "name",
            "version",
            "architecture",
            "actions",
            "churn_horizon_s",
            "training",
            "metrics",
            "weights",
        )
    }
    told["categories"] = len(manifest["categories"])
    told["training"] = {name: value for name, value in told["training"].items() if name != "curve"}
    finish(told, json.dumps(told, indent=2), as_json)


@app_models.command(epilog="Example: foreclick models make --out models --version 2")
def make(
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The model store; the package's own by default.", show_default=False),
    ] = None,
    name: Annotated[str, typer.Option("--name")] = "shop-lstm",
    version: Annotated[
        str | None, typer.Option("--version", help="Never overwritten; the next free number by default.")
    ] = None,
    users: Annotated[int, typer.Option("--users", min=1, help="Simulated users.")] = 2000,
    events: Annotated[int, typer.Option("--events", min=1, help="Simulated events.")] = 80_000,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 7,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 15,
    as_json: Json = False,
) -> None:
    """Train the bundled model on the simulator and compare it on users that it did not see."""
    from models.registry import bundled, next_version
    from stream.bundled_model import make as make_model
    from stream.cli.train import training_progress

    root = out or bundled().parents[1]
    with training_progress() as progress:
        folder, result = make_model(
            root,
            name=name,
            version=version or next_version(root, name),
            users=users,
            events=events,
            seed=seed,
            epochs=epochs,
            progress=progress,
        )
    lines = [f"{folder}", "next-action log-loss on unseen users, 95 % interval by user:"]
    for label, entry in result.items():
        lines.append(
            f"  {label:22} {entry['value']:7.4f} [{entry['low']:7.4f}, {entry['high']:7.4f}]  n={entry['n']}"
        )
    if result["network_minus_markov2"]["high"] >= 0:
        lines.append(
            "The network is not ahead of Markov 2: the simulator is too easy or the network too weak."
        )
    finish({"model": str(folder), **result}, "\n".join(lines), as_json)


@app_models.command("list", epilog="Example: foreclick models list --root models")
def list_models(
    root: Root = None,
    activated: Annotated[
        bool, typer.Option("--activated", help="Ask the broker which one workers shall serve.")
    ] = False,
    bootstrap_servers: BootstrapServers = None,
    as_json: Json = False,
) -> None:
    """The versions in a model store, by what their manifests say; `verify` checks them."""
    from models.registry import bundled
    from stream.model_store import activations, versions
    from stream.settings import load_settings

    settings = load_settings(kafka__bootstrap_servers=bootstrap_servers)
    store = root or settings.model_root or bundled().parents[1]
    found = list(versions(store))
    asked = activations(settings) if activated else []
    newest = f"{asked[0].name}/{asked[0].version}" if asked else None
    lines = [f"{store}: {len(found)} versions"]
    for told in found:
        label = f"{told['name']}/{told['version']}"
        loss = told.get("metrics", {}).get("test", {}).get("value")
        facts = told.get("damaged") or ", ".join(
            [
                told["architecture"],
                f"{told['actions']} actions",
                f"{told['categories']} categories",
                f"{told['bytes'] / 1e6:.1f} MB",
                *([f"test log-loss {loss:.4f}"] if isinstance(loss, float) else []),
            ]
        )
        lines.append(f"{'*' if label == newest else ' '} {label:24} {facts}")
    if activated:
        lines.append(f"activated: {newest or 'none; workers serve their configured model'}")
    finish({"root": str(store), "versions": found, "activated": newest}, "\n".join(lines), as_json)


@app_models.command(epilog="Example: foreclick models activate shop/7 --root models")
def activate(
    model: Annotated[str, typer.Argument(help="NAME/VERSION; an older one is how to go back.")],
    root: Root = None,
    by: Annotated[
        str | None, typer.Option("--by", help="Who asks; the user's name by default.", show_default=False)
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also when it hardly knows the actions in the input.")
    ] = False,
    bootstrap_servers: BootstrapServers = None,
    as_json: Json = False,
) -> None:
    """Ask all workers to serve a version, now and after restarts; each checks it again and says so in its log."""
    import getpass

    from models.registry import bundled
    from stream.model_store import activate as ask
    from stream.model_store import told
    from stream.settings import load_settings

    settings = load_settings(kafka__bootstrap_servers=bootstrap_servers)
    store = root or settings.model_root or bundled().parents[1]
    asked, known = ask(settings, model, store, by or getpass.getuser(), force)
    text = f"{asked.label} is activated: workers load it and exchange it between two micro-batches"
    if known.events:
        text += (
            f"\nOf {known.events} events of the input it knows the actions of {100 * known.known_actions:.0f} % and "
            f"the categories of {100 * known.known_categories:.0f} %"
        )
    finish(told(asked, known), text, as_json)
