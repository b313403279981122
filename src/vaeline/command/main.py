"""The command `vaeline`: verify, score, export for those who use a model; in a workspace the whole command line."""

import json
import math
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

import vaeline
from vaeline.command.program import run_program, use_code_of
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace, current_folder, current_workspace

DRIFT = 3  # exit code of `score`
Fit = Literal["crop", "stretch", "pad"]
Background = Literal["white", "black"]


Json = Annotated[bool, typer.Option("--json", help="For machines: stable keys, times in ISO 8601.")]


class Commands(TyperGroup):
    """Commands; any other is answered with those that there are, exit code 2."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands with all of their first sentence."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.get_short_help_str(limit=300)) for name, found in self.commands.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments name."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            more = "" if "run" in self.commands else "; a clone of the project's repository has more"
            typer.echo(f"error: {args[0]}: unknown command; allowed here: {', '.join(self.commands)}{more}", err=True)
            raise typer.Exit(2)
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version")] = False) -> None:
    """Variational autoencoders, versioned by DVC, visible in MLflow, orchestrated by Prefect."""
    if version:
        typer.echo(f"vaeline {vaeline.__version__}")
        raise typer.Exit


def printable(text: str) -> str:
    """The text without what a terminal obeys."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def print_json(content: Any) -> None:
    """Print for machines; what is not finite is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    typer.echo(json.dumps(plain(content), indent=2))


@app.command()
def verify(
    uri: Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/3, runs:/..., a folder")],
    as_json: Json = False,
) -> None:
    """Check all of a stored model: files, digests, signature, registry entry. Exit code 1 where anything is off."""
    from vaeline.registry import load

    found = load.verify(uri)
    if as_json:
        print_json(found)
        return
    signature = "none (with VAELINE_TRUSTED_KEYS set, it would be refused)"
    if by := found["signer"]:
        signature = f"Ed25519, by {by}" + (", a key of VAELINE_TRUSTED_KEYS" if found["trusted"] else "")
    for line in (
        f"{uri}: {found['name']} version {found['version']}",
        f"files: {found['files']}, {found['bytes']} bytes, with the SHA-256 of MANIFEST.json; none missing or added",
        f"model: {found['model_digest']}, {found['network']}, {found['likelihood']}, loads and is finite",
        f"data: {found['data_digest']}",
        f"signature: {signature}",
        f"registry: {'name, number and tags agree' if found['registered'] else 'not asked'}",
    ):
        typer.echo(printable(line))


@app.command()
def export(
    uri: Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/3 or a folder")],
    folder: Annotated[Path, typer.Argument(help="where to write; an earlier export there is replaced")],
    kind: Annotated[Literal["onnx", "diffusers"], typer.Option("--format", help="what is to read it")] = "onnx",
) -> None:
    """Write a model for another library, compared with it first.

    onnx: encoder.onnx, decoder.onnx, prior.npz where there is a prior, and model.json, their description; for use
    without torch. diffusers: config.json and safetensors, for AutoencoderKL.from_pretrained. Needs the extra: pip
    install 'vaeline[onnx]', or [diffusion].
    """
    if kind == "onnx":
        from vaeline.serving.onnx_export import export_onnx as write
    else:
        from vaeline.serving.diffusers_export import export_diffusers as write
    encoder, decoder = (f"{error:.1e}" for error in write(vaeline.load(uri).loaded, folder))
    typer.echo(f"{folder}: encoder within {encoder}, decoder within {decoder} of vaeline's own")


@app.command()
def score(
    images: Annotated[Path, typer.Argument(help="a folder of PNG or JPEG images, or an .npz file")],
    model: Annotated[str, typer.Option(help="default: models:/NAME@champion, NAME of params.yaml")] = "",
    out: Annotated[Path, typer.Option(help="a CSV file: image, ELBO in nats, quantile")] = Path("scores.csv"),
    level: Annotated[float, typer.Option(help="how often a batch like the test data may be called drift")] = 0.01,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="of the ELBO's noise")] = 0,
    fit: Annotated[Fit | None, typer.Option(help="resize and convert a folder's images to the model's")] = None,
    background: Annotated[Background, typer.Option(help="with --fit: of transparent pixels, and of pad")] = "white",
    as_json: Json = False,
) -> None:
    """Score images by their ELBO, and test whether they look like the data that the model was tested on.

    Exit code 0: they do. 3: drift. 1: an error. 2: wrong usage.
    """
    if not 0 < level < 1:
        raise UserError(f"--level: found {level}, allowed: above 0 and below 1")
    if not model:
        from vaeline.config import read_params

        params = Workspace(current_workspace().repository).params
        if not params.is_file():
            raise UserError("--model: is needed outside a repository with params.yaml: --model models:/NAME@champion")
        model = f"models:/{read_params(params).register_.name}@champion"
    from vaeline.serving.scoring import score_images
    from vaeline.training.device import pick_device

    changes: dict[str, str] = {"fit": fit, "background": background} if fit else {}
    loaded, log = vaeline.load(model, pick_device()), (lambda line: None) if as_json else typer.echo
    verdict = score_images(loaded, model, images, out, level, seed, changes, log)
    if as_json:
        print_json({"uri": model, "images": str(images), "out": str(out), "drift": verdict.drift, **asdict(verdict)})
    if verdict.drift:
        raise typer.Exit(DRIFT)


def main() -> NoReturn:
    """Run the command line: 0 done, 1 error, one line on stderr, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""

    def start() -> None:
        here = current_folder()
        for folder in (here, *here.parents):
            if (folder / "dvc.yaml").is_file() and (folder / "pipeline/cli.py").is_file():
                use_code_of(folder)
                import_module("pipeline.cli").main()
        app()

    run_program(start)


if __name__ == "__main__":
    main()
