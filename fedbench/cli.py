"""Command line. `--help` and `list` import no torch; `run` imports it when the configuration is valid."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedbench.errors import UserError

if TYPE_CHECKING:
    from fedbench.config import Config

KINDS = ("strategies", "mechanisms", "ssl", "encoders", "datasets", "grids", "presets")
DEFAULT_GRID = "quickstart"


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="fedbench",
        allow_abbrev=False,
        description="Benchmark of federated self-supervised learning: accuracy next to FLOPs, memory and bytes.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", allow_abbrev=False, help="train and evaluate one cell, or a grid of them")
    run.add_argument(
        "--grid",
        nargs="?",
        const=DEFAULT_GRID,
        metavar="NAME|PATH",
        help=f"run a grid (no name: {DEFAULT_GRID}; `list grids` shows all)",
    )
    run.add_argument("words", nargs="*", metavar="CONFIG | key=value", help="preset or YAML file, and overrides")
    run.add_argument("--out", type=Path, metavar="DIR", help="where results go (default: runs, or runs/GRID)")
    run.set_defaults(action=run_command)

    check = commands.add_parser("check", allow_abbrev=False, help="does a strategy keep to what all must keep to")
    check.add_argument("words", nargs="+", metavar="NAME|PATH | key=value", help="a strategy, and its fields")
    check.set_defaults(action=check_command)

    show = commands.add_parser("list", help="what can be named in a configuration")
    show.add_argument("kind", nargs="?", choices=KINDS)
    show.set_defaults(action=list_command)
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 for a failed check, 2 for bad input, 130 when interrupted."""
    arguments = parse(words)
    try:
        return int(arguments.action(arguments) or 0)
    except UserError as error:
        print(f"fedbench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fedbench: interrupted; finished cells are kept", file=sys.stderr)
        return 130


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, with overrides allowed before and after options (argparse takes one group of them only)."""
    top = parser()
    arguments, rest = top.parse_known_args(words)
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(arguments, "words")):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.words = [*arguments.words, *rest]
    return arguments


def list_command(arguments: argparse.Namespace) -> None:
    """Print one kind, or all of them."""
    for kind in [arguments.kind] if arguments.kind else KINDS:
        if not arguments.kind:
            print(f"\n{kind}")
        for name, description in names(kind).items():
            print(f"  {name:<16} {description}".rstrip())


def names(kind: str) -> dict[str, str]:
    """Name -> description of everything of a kind."""
    from fedbench.config import config_names, resolve_file
    from fedbench.config.schema import DataConfig, EncoderConfig
    from fedbench.plugins import describe, first_line, is_kind

    if is_kind(kind):
        return describe(kind)
    if kind in ("grids", "presets"):
        files = {name: resolve_file(name, kind) for name in config_names(kind)}
        return {name: path.read_text().split("\n", 1)[0].lstrip("# ") for name, path in files.items()}
    section, folder = (EncoderConfig, "encoders") if kind == "encoders" else (DataConfig, "data/sources")
    choices = section.model_json_schema()["properties"]["name"]["enum"]
    return {name: first_line(Path(__file__).parent / folder / f"{name}.py") for name in choices}


def run_command(arguments: argparse.Namespace) -> None:
    """Check every cell, then run them one after the other, then print the leaderboard."""
    configs, out = selected_cells(arguments)
    check_out(out)
    print(f"fedbench: {len(configs)} cell(s) into {out}", file=sys.stderr)
    from fedbench.runner import run_cells

    print(run_cells(configs, out))


def check_out(out: Path) -> None:
    """Refuse a place for results that is no folder, or cannot become one."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"--out {out}: {there} is not a folder that can be written to")


def check_command(arguments: argparse.Namespace) -> int:
    """Print the conformance table of one strategy; 1 if a check failed."""
    from fedbench.config import parse_overrides

    names = [word for word in arguments.words if "=" not in word]
    if len(names) != 1:
        raise UserError(f"check: {len(names)} strategies named; allowed: one, and its fields as key=value")
    fields = parse_overrides(word for word in arguments.words if "=" in word)
    from fedbench.conformance.report import check_strategy, render

    rows = check_strategy({"name": names[0], **fields})
    print(render(rows))
    return int(any(finding is not None for _, _, finding in rows))


def selected_cells(arguments: argparse.Namespace) -> tuple[list["Config"], Path]:
    """The cells that the words ask for, validated, and the folder for their results."""
    from fedbench.config import load_config, parse_overrides, resolve_file
    from fedbench.config.load import read_yaml
    from fedbench.grid import cells, read_grid

    words = list(arguments.words)
    grid = arguments.grid
    if (
        grid is not None and "=" in grid and not Path(grid).is_file()
    ):  # `run --grid seed=1`: argparse takes the override for the name
        words, grid = [grid, *words], DEFAULT_GRID
    files = [word for word in words if "=" not in word]
    overrides = parse_overrides(word for word in words if "=" in word)
    if len(files) > 1 or (files and grid):
        raise UserError(f"too many configurations: {', '.join(files)}; allowed: one CONFIG, or --grid alone")
    if grid is None:
        base = read_yaml(resolve_file(files[0], "presets")) if files else {}
        return [load_config(base, overrides)], arguments.out or Path("runs")
    path = resolve_file(grid, "grids")
    return cells(read_grid(path), overrides), arguments.out or Path("runs") / path.stem
