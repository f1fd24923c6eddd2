"""Command line. `--help` and `list` import no torch; `run` imports it when the configuration is valid."""

import argparse
import contextlib
import gc
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedbench import __version__
from fedbench.conventions import CONVENTIONS, ConventionName
from fedbench.errors import UserError, is_out_of_memory, memory_words, shown
from fedbench.exits import blame, no_sudden_exit
from fedbench.files import user_path
from fedbench.masking import told
from fedbench.numerics import EnvironmentNeededError, require, restart
from fedbench.protocols import PROTOCOLS
from fedbench.scaffold import TEMPLATES, write_plugin
from fedbench.stopping import EXIT_CODE, StoppedError, listen
from fedbench.waiting import waiting

if TYPE_CHECKING:
    from fedbench.config import Config

KINDS = ("strategies", "mechanisms", "ssl", "encoders", "transforms", "datasets", "grids", "presets")
SCHEMAS = ("config", "grid")
DEFAULT_GRID = "quickstart"
MAX_NUMBER = 1_000_000_000  # of --jobs, --samples
EXIT_CODES = {"failed": 1, "diverged": 3, "elsewhere": 4}  # of `run`, by how a cell ended, the first that occurs
PAPER_PRESET = "paper_vit_tiny"
REFERENCE = "fedssl"
EXAMPLES = {
    "run": ["--grid", "digits strategy=lw_fedssl@v3 seed=0,1,2", "--grid mine.yaml --jobs 2 --dry-run"],
    "submit": ["--grid mine.yaml --shards 8 --slurm partition=gpu time=240 gpus_per_node=1 --dry-run"],
    "tune": ["tune_quickstart --jobs 2", "tune_quickstart --dry-run"],
    "profile": ["digits strategy=lw_fedssl@v3", "digits --compare prog_fedssl --budget memory=2GiB upload=500MB"],
    "partition": ["digits data.partition.name=dirichlet data.partition.beta=0.1 --out split.png"],
    "published": ["", "lw_fedssl_v4_table2"],
    "report": ["runs/quickstart --out report"],
    "diff": ["runs/RUN runs/ANOTHER"],
    "reproduce": ["quickstart.json --row 4 --seed 1"],
    "verify": ["runs/quickstart", "runs/quickstart/RUN --rerun 5"],
    "evaluate": ["runs/quickstart --protocol knn,few_label_10"],
    "export": ["runs/quickstart/RUN --out encoder.safetensors"],
    "check": ["lw_fedssl blocks_per_stage=2", "./mine.py", "moon mu=5"],
    "list": ["", "strategies lw_fedssl", "datasets stl10"],
    "new": ["strategy mine.py", "mechanism my_term.py", "ssl my_method.py"],
    "keys": ["", "federation", "data.partition.beta", "--schema config"],
}
PAPER_STRATEGIES = "fedssl,lw_fedssl@v3,lw_fedssl@v4,prog_fedssl"


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="fedbench",
        allow_abbrev=False,
        description="Benchmark of federated self-supervised learning: accuracy next to FLOPs, memory and bytes.",
        epilog="Begin with: fedbench run --grid    (the quick start, under three minutes)",
    )
    top.add_argument("--version", action="version", version=f"fedbench {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    run = commands.add_parser("run", allow_abbrev=False, help="train and evaluate one cell, or a grid of them")
    run.add_argument(
        "--grid",
        nargs="?",
        const=DEFAULT_GRID,
        metavar="NAME|PATH",
        help=f"run a grid (no name: {DEFAULT_GRID}; `list grids` shows all)",
    )
    run.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG | key=value[,value]",
        help="preset or YAML file, and overrides; a key with several values runs a cell for each",
    )
    run.add_argument("--out", type=user_path, metavar="DIR", help="where results go (default: runs, or runs/GRID)")
    run.add_argument("--dry-run", action="store_true", help="list the cells and what they will cost")
    run.add_argument("--print-config", action="store_true", help="print the cells with every default, as YAML")
    run.add_argument("--jobs", type=positive, default=1, metavar="N", help="cells at a time (default: 1)")
    run.add_argument("--engine", choices=["ray"], help="ray: cells as tasks of Ray (extra `ray`, docs/cluster.md)")
    run.add_argument(
        "--address",
        metavar="auto|HOST:PORT",
        help="of a Ray that runs (default: RAY_ADDRESS, else one is started that only this machine reaches)",
    )
    run.add_argument("--shard", type=part, default=(1, 1), metavar="I/N", help="the I-th of N parts of the cells")
    _add_grace(run)
    run.set_defaults(action=run_command)

    send = commands.add_parser("submit", allow_abbrev=False, help="run a grid as an array job of SLURM")
    send.add_argument("--grid", required=True, metavar="NAME|PATH", help="the grid")
    send.add_argument("words", nargs="*", metavar="key=value[,value]", help="overrides, as for `run`")
    send.add_argument("--out", type=user_path, metavar="DIR", help="where results go (default: runs/GRID)")
    send.add_argument("--shards", type=positive, required=True, metavar="N", help="parts, each a task of the job")
    send.add_argument("--jobs", type=positive, default=1, metavar="N", help="cells at a time, in each part")
    send.add_argument(
        "--slurm", nargs="+", default=[], metavar="key=value", help="partition=gpu time=240 gpus_per_node=1 ..."
    )
    send.add_argument("--dry-run", action="store_true", help="print what sbatch would be given")
    _add_grace(send)
    send.set_defaults(action=submit_command, shard=(1, 1))

    search = commands.add_parser(
        "tune",
        allow_abbrev=False,
        help="tune every strategy alike, on validation images",
    )
    search.add_argument(
        "words", nargs="+", metavar="GRID | key=value", help="a grid with a section `tune`, and overrides"
    )
    search.add_argument("--out", type=user_path, metavar="DIR", help="where trials go (default: runs/tune-GRID)")
    search.add_argument("--dry-run", action="store_true", help="list the trials and what they will cost")
    search.add_argument("--jobs", type=positive, default=1, metavar="N", help="trials at a time (default: 1)")
    _add_grace(search)
    search.set_defaults(action=tune_command)

    cost = commands.add_parser(
        "profile", allow_abbrev=False, help="what a configuration will cost, without training"
    )
    cost.add_argument("words", nargs="*", metavar="CONFIG | key=value", help="preset or YAML file, and overrides")
    cost.add_argument("--convention", choices=CONVENTIONS, default="step", help="what is counted (default: step)")
    cost.add_argument("--compare", metavar="A,B", help="strategies to set beside it (default: fedssl)")
    cost.add_argument("--samples", type=positive, metavar="N", help="images of one client, where data do not say")
    cost.add_argument("--budget", nargs="+", metavar="RESOURCE=AMOUNT", help="memory=2GiB upload=500MB flops=1e15")
    form = cost.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="base units, as JSON")
    form.add_argument("--csv", action="store_true", help="base units, a line for each stage and one for the total")
    cost.set_defaults(action=profile_command)

    split = commands.add_parser(
        "partition", allow_abbrev=False, help="who gets which images: figures and a picture"
    )
    split.add_argument("words", nargs="*", metavar="CONFIG | key=value", help="preset or YAML file, and overrides")
    split.add_argument(
        "--out", type=user_path, default=Path("partition.png"), metavar="FILE.png", help="(default: %(default)s)"
    )
    split.set_defaults(action=partition_command)

    paper = commands.add_parser("published", allow_abbrev=False, help="the paper's figures beside ours")
    paper.add_argument("tables", nargs="*", metavar="TABLE", help="(default: all)")
    paper.set_defaults(action=published_command)

    show = commands.add_parser(
        "report", allow_abbrev=False, help="compare finished runs: tables, and a page to look at"
    )
    show.add_argument("words", nargs="+", metavar="RUNS", help="run directories, or folders of them")
    show.add_argument("--out", type=user_path, default=Path("report"), metavar="DIR", help="(default: report)")
    show.add_argument(
        "--results", type=Path, metavar="FILE.json", help="write the rows such that `reproduce` can run them again"
    )
    show.add_argument(
        "--latex", action="store_true", help="write report.tex too: the tables for \\input, with booktabs"
    )
    show.add_argument(
        "--wandb", action="store_true", help="show the leaderboard in W&B too; tracking.KEY=VALUE says where"
    )
    show.set_defaults(action=report_command)

    two = commands.add_parser("diff", allow_abbrev=False, help="two finished runs side by side")
    two.add_argument("one", type=user_path, metavar="RUN", help="directory of a finished run")
    two.add_argument("other", type=user_path, metavar="RUN")
    two.set_defaults(action=diff_command)

    again = commands.add_parser(
        "reproduce", allow_abbrev=False, help="run a committed row again, and compare every figure"
    )
    again.add_argument(
        "words",
        nargs="+",
        metavar="RESULT.json | key=value",
        help="what `report --results` wrote; where the data are",
    )
    again.add_argument("--row", default="1", metavar="N|NAME", help="(default: the first)")
    again.add_argument("--seed", type=int, metavar="N", help="(default: the row's first)")
    again.add_argument("--out", type=Path, metavar="DIR", help="where it is trained (default: reproduced/RESULT)")
    again.set_defaults(action=reproduce_command)

    whole = commands.add_parser(
        "verify", allow_abbrev=False, help="are a run's files those that it wrote; train a round of it again"
    )
    whole.add_argument(
        "words", nargs="+", metavar="RUNS | key=value", help="run directories, or folders of them; where data are"
    )
    whole.add_argument(
        "--rerun", type=int, metavar="ROUND", help="train it again (0-based), and compare every bit"
    )
    whole.set_defaults(action=verify_command)

    judge = commands.add_parser(
        "evaluate", allow_abbrev=False, help="judge finished runs by other protocols or data"
    )
    judge.add_argument(
        "words",
        nargs="+",
        metavar="RUNS | key=value",
        help="run directories, or folders of them; keys of the sections evaluation and probe",
    )
    judge.add_argument("--protocol", required=True, metavar="A,B", help=f"of {', '.join(PROTOCOLS)}")
    judge.add_argument(
        "--data", nargs="+", default=[], metavar="key=value", help="other data: name=npz path=x.npz"
    )
    judge.set_defaults(action=evaluate_command)

    out = commands.add_parser("export", allow_abbrev=False, help="a run's encoder for timm or torchvision")
    out.add_argument("run", type=user_path, metavar="RUN", help="directory of a finished run")
    out.add_argument("--out", type=user_path, metavar="FILE", help=".safetensors file (default: in RUN)")
    out.add_argument("--plugins", action="store_true", help="execute encoder files that the run names")
    out.set_defaults(action=export_command)

    check = commands.add_parser("check", allow_abbrev=False, help="does a plugin keep to what all must keep to")
    check.add_argument(
        "words",
        nargs="+",
        metavar="NAME|PATH | key=value",
        help="strategy, mechanism or SSL method, and its fields",
    )
    check.add_argument("-v", "--verbose", action="store_true", help="every check, also where the plan is wrong")
    check.set_defaults(action=check_command)

    show = commands.add_parser("list", help="what can be named in a configuration; all about one name")
    show.add_argument("kind", nargs="?", choices=KINDS)
    show.add_argument("name", nargs="?", help="its keys, their meaning, its source and presets")
    show.set_defaults(action=list_command)

    new = commands.add_parser("new", help="write a plugin of your own that works, and its test")
    new.add_argument("kind", choices=TEMPLATES)
    new.add_argument("file", type=user_path, metavar="FILE.py")
    new.set_defaults(action=new_command)

    keys = commands.add_parser("keys", help="every key of a configuration, its default and meaning")
    keys.add_argument("prefix", nargs="?", default="", metavar="KEY", help="a section or a key (default: all)")
    keys.add_argument("--schema", choices=SCHEMAS, help="the JSON schema of such a file, for editors")
    keys.set_defaults(action=keys_command)

    for name, command in commands.choices.items():
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        lines = (f"  fedbench {name} {words}".rstrip() for words in EXAMPLES[name])
        command.epilog = "\n".join(["examples:", *lines])
    return top


def _add_grace(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--grace",
        type=float,
        default=20,
        metavar="SECONDS",
        help="that a round under way has to end after SIGTERM (default: 20)",
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0; 1 for a failed check or cell, or output that nobody reads to its end; 2 for bad input; 3 where a cell
    diverged; 4 where one is being run by another process, whose result is not there yet; 130 when interrupted, 143
    when stopped by SIGTERM.
    """
    arguments = parse(words)
    try:
        with no_sudden_exit():
            code = int(arguments.action(arguments) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has read enough; without this, Python's exit would try to write the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except EnvironmentNeededError as error:
        if words is None:
            restart()
        print(f"fedbench: {error}", file=sys.stderr)
        return 2
    except SystemExit as error:
        print(f"fedbench: {blame(error)}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"fedbench: {told(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"fedbench: {told(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"fedbench: {memory_words(error)}", file=sys.stderr)
        return 2
    except StoppedError:
        print("fedbench: stopped; the same command goes on after the last whole round", file=sys.stderr)
        return EXIT_CODE
    except KeyboardInterrupt:
        print("fedbench: interrupted; the same command goes on after the last whole round", file=sys.stderr)
        return 130


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, with overrides allowed before and after options (argparse takes one group of them only)."""
    top = parser()
    arguments, rest = top.parse_known_args(words)
    if arguments.command is None:
        top.print_help()
        top.exit()
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(arguments, "words")):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.words = [*arguments.words, *rest]
    return arguments


def list_command(arguments: argparse.Namespace) -> None:
    """Print all about one name, the names of one kind, or of all of them."""
    if arguments.name:
        with uncollected(), waiting("importing ..."):
            from fedbench.listing import explain_one

        print(explain_one(arguments.kind, arguments.name))
        return
    for kind in [arguments.kind] if arguments.kind else KINDS:
        if not arguments.kind:
            print(f"\n{kind}")
        for name, description in names(kind).items():
            print(f"  {name:<16} {description}".rstrip())


def names(kind: str) -> dict[str, str]:
    """Name -> description of everything of a kind."""
    from fedbench.config import config_names, resolve_file
    from fedbench.plugins import describe, is_kind

    files = {name: resolve_file(name, kind) for name in config_names(kind)}
    shipped = {name: _comment(path) for name, path in files.items()}
    return describe(kind) | shipped if is_kind(kind) else shipped  # a strategy's presets


def _comment(path: Path) -> str:
    """The first line of a YAML file, which says what it is."""
    return path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")


def new_command(arguments: argparse.Namespace) -> None:
    """Write a plugin and its test, say what to type next."""
    test, usage = write_plugin(arguments.kind, arguments.file)
    print(f"{arguments.file} is written, and its test; next:\n  {usage}\n  pytest {test}")


def keys_command(arguments: argparse.Namespace) -> None:
    """Print keys, or a JSON schema."""
    from fedbench.config import keys

    if arguments.schema:
        print(json.dumps({"config": keys.config_schema, "grid": keys.grid_schema}[arguments.schema](), indent=2))
    else:
        print("\n".join(map(str, keys.config_keys(arguments.prefix))))


def run_command(arguments: argparse.Namespace) -> int:
    """Check every cell, then run them, then print the leaderboard; the exit code is one of `EXIT_CODES`, or 0."""
    configs, out = selected_cells(arguments)
    if arguments.print_config:
        print_config(configs)
        return 0
    check_out(out)
    ray_address = ray_of(arguments)
    for config in configs:
        require(config)  # before torch is imported, which would be for nothing
    print(f"fedbench: {len(configs)} cell(s) into {out}", file=sys.stderr)
    in_workers = arguments.jobs > 1 or any(config.engine == "processes" for config in configs)
    if in_workers and ray_address is None and not arguments.dry_run:
        from fedbench.workers import start_importing

        start_importing()
    with uncollected():
        from fedbench.running.cells import run_cells
        from fedbench.running.forecast import forecast

    if arguments.dry_run:
        print(forecast(configs, out))
        return 0
    listen(arguments.grace)
    states = run_cells(configs, out, arguments.jobs, ray_address)
    print(f"fedbench: {', '.join(f'{count} {state}' for state, count in states.items())}", file=sys.stderr)
    return next((code for state, code in EXIT_CODES.items() if states[state]), 0)


def ray_of(arguments: argparse.Namespace) -> str | None:
    """The address of the Ray that is asked for; None if none is."""
    address: str | None = arguments.address
    if arguments.engine is None:
        if address is not None:
            raise UserError(f"--address {address} without --engine ray; allowed: with it")
        return None
    from fedbench.ray_cluster import OWN, check_ray

    if arguments.jobs > 1:
        raise UserError(
            f"--jobs {arguments.jobs} with --engine ray; allowed: one of them, Ray counts the cores itself"
        )
    if address is not None and (address == OWN or "://" in address):
        raise UserError(
            f"--address {address}; allowed: auto, HOST:PORT, or without it a Ray of this machine's own"
        )
    check_ray()
    return address or os.environ.get("RAY_ADDRESS", OWN)


def submit_command(arguments: argparse.Namespace) -> None:
    """Submit the parts of a grid, or print how."""
    from fedbench.running.slurm import Launcher, parts

    configs, out = selected_cells(arguments)
    if arguments.shards > len(configs):
        raise UserError(f"--shards {arguments.shards} of {len(configs)} cell(s); allowed: 1 to {len(configs)}")
    wrong = [word for word in arguments.slurm if "=" not in word]
    if wrong:
        raise UserError(f"--slurm {wrong[0]}; allowed: key=value")
    launcher = Launcher(out, dict(word.split("=", 1) for word in arguments.slurm), arguments.grace)
    if arguments.dry_run:
        print(launcher.script(arguments.shards), end="")
        return
    check_out(out)
    words = [*arguments.words, "--grid", arguments.grid, "--out", str(out), "--jobs", str(arguments.jobs)]
    number = launcher.submit(parts(words, arguments.shards, arguments.grace))
    print(
        f"fedbench: {len(configs)} cell(s) in {arguments.shards} parts are job {number}, into {out}",
        file=sys.stderr,
    )


def print_config(configs: Sequence["Config"]) -> None:
    """Print each configuration as a YAML document that asks for the same cell, with nothing left to a default."""
    import yaml

    with uncollected():
        from fedbench.federation.naming import whole

    trees = [config.model_dump(mode="json") | {"strategy": whole(config.strategy)} for config in configs]
    print("---\n".join(yaml.safe_dump(tree, sort_keys=False) for tree in trees), end="")


def tune_command(arguments: argparse.Namespace) -> None:
    """Run the trials, print the winners, leave them as a grid."""
    from fedbench.config import read_words, resolve_file
    from fedbench.config.grid import read_grid

    asked = read_words(arguments.words)
    if asked.file is None:
        raise UserError("tune: no grid named; allowed: a grid with a section `tune`")
    path = resolve_file(asked.file, "grids")
    grid, overrides = read_grid(path), asked.single()
    out = arguments.out or Path("runs") / f"tune-{path.stem}"
    check_out(out)
    with uncollected():
        from fedbench.running.tuning import predict, tune

    if arguments.dry_run:
        print(predict(grid, overrides, out))
        return
    listen(arguments.grace)
    print(tune(grid, path.stem, overrides, out, arguments.jobs))


def profile_command(arguments: argparse.Namespace) -> None:
    """Print what a configuration will cost; alone, the paper's table beside ours."""
    from fedbench.budgets import parse_budgets
    from fedbench.config import load_config, read_words, resolve_file
    from fedbench.config.load import read_yaml

    budgets = parse_budgets(word for word in arguments.budget or [] if is_budget(word))
    words = [*arguments.words, *(word for word in arguments.budget or [] if not is_budget(word))]
    if arguments.budget and (not budgets or arguments.json or arguments.csv or arguments.convention != "step"):
        raise UserError("--budget: allowed: one RESOURCE=AMOUNT or more, as text, in the convention step")
    asked = read_words(words)
    overrides = asked.single()
    base = read_yaml(resolve_file(asked.file or PAPER_PRESET, "presets")) if asked.file or not words else {}
    configs = [load_config(base, overrides)]
    compare = arguments.compare or (REFERENCE if words else PAPER_STRATEGIES)
    without = [{key: value for key, value in tree.items() if key != "strategy"} for tree in (base, overrides)]
    configs += [load_config(*without, {"strategy": name}) for name in compare.split(",") if name]
    with uncollected():
        from fedbench.remembered import remembered

    options = [not words, arguments.compare, arguments.samples, form_of(arguments), arguments.convention]
    options += sorted(arguments.budget or [])
    with waiting("importing, then tracing a step of every stage ..."):
        text = remembered(configs, options, lambda: profile_text(configs, arguments, budgets, alone=not words))
    print(text, end="")


def form_of(arguments: argparse.Namespace) -> str:
    """How `profile` prints."""
    return "json" if arguments.json else "csv" if arguments.csv else "text"


def profile_text(
    configs: Sequence["Config"], arguments: argparse.Namespace, budgets: Mapping[str, float], alone: bool
) -> str:
    """What the first of `configs` will cost, beside the others; `alone`: with the paper's table too."""
    with uncollected():
        from fedbench.federation.naming import strategy_label
        from fedbench.profiling import profile
        from fedbench.profiling.budget import render_budgets
        from fedbench.profiling.published import comparison
        from fedbench.profiling.render import to_csv, to_dict, to_text

        found = []
        for label, config in {strategy_label(config): config for config in configs}.items():
            try:
                found.append(profile(config, arguments.samples))
            except UserError as error:
                if arguments.compare or label != REFERENCE or not found:
                    raise
                print(f"fedbench: not compared with {label}: {error}", file=sys.stderr)
    convention: ConventionName = arguments.convention
    if arguments.json:
        return json.dumps(to_dict(found, convention), indent=2) + "\n"
    if arguments.csv:
        return to_csv(found, convention)
    if budgets:
        return render_budgets(found, budgets) + "\n"
    return "\n".join([to_text(found, convention), *([comparison("lw_fedssl_v4_table2")] if alone else []), ""])


def partition_command(arguments: argparse.Namespace) -> None:
    """Print how the images are split over the clients, and draw it."""
    if arguments.out.suffix != ".png":
        raise UserError(f"--out {arguments.out}; allowed: a file that ends in .png")
    check_out(arguments.out.parent)
    config = single_config(arguments.words)
    with uncollected():
        from fedbench.data.partitions.mixture import describe, mixture, plot
        from fedbench.federation.experiment import share_out
        from fedbench.federation.strategy import load_mechanisms

    dataset, clients, _ = share_out(config, load_mechanisms(config.strategy))
    mixed = mixture(dataset, clients)
    title = f"{dataset.name}: {config.data.partition.words} on {len(clients)} clients, seed {config.seed}"
    print(f"{title}\n{describe(mixed)}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    plot(mixed, title, arguments.out)
    print(f"fedbench: {arguments.out} is the picture", file=sys.stderr)


def published_command(arguments: argparse.Namespace) -> None:
    """Print published tables beside our figures."""
    with uncollected(), waiting("importing, then tracing steps ..."):
        from fedbench.profiling.published import comparison, table_names

        text = "\n\n".join(comparison(name) for name in arguments.tables or table_names())
    print(text)


def is_budget(word: str) -> bool:
    """Whether a word behind `--budget` is one, and no CONFIG or override that came after it."""
    from fedbench.budgets import RESOURCES
    from fedbench.config import Config

    name, equals, _ = word.partition("=")
    return name in RESOURCES if not equals else name.partition(".")[0] not in Config.model_fields


def positive(text: str) -> int:
    """An integer above zero, for argparse."""
    value = int(text)
    if not 1 <= value <= MAX_NUMBER:
        raise argparse.ArgumentTypeError(f"{shown(value)}; allowed: 1 to {MAX_NUMBER:,}")
    return value


def part(text: str) -> tuple[int, int]:
    """`2/8`, for argparse."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: I/N with I from 1 to N")
    return int(index), int(count)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Import, or profile, without garbage collection: it costs a fifth of the time and finds next to nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def check_out(out: Path) -> None:
    """Refuse a place for results that is no folder, or cannot become one."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"--out {out}: {there} is not a folder that can be written to")


def report_command(arguments: argparse.Namespace) -> None:
    """Write the report, print its tables; with `--wandb`, mirror the leaderboard."""
    from fedbench.config import parse_overrides

    check_out(arguments.out)
    if arguments.results:
        check_out(arguments.results.parent)
    words = [word for word in arguments.words if word.startswith("tracking.") and "=" in word]
    paths = [user_path(word) for word in arguments.words if word not in words]
    if words and not arguments.wandb:
        raise UserError(f"{words[0]}: allowed only with --wandb")
    overrides = parse_overrides(words)
    with uncollected():
        from fedbench.reporting.ranking import leaderboard
        from fedbench.reporting.report import report
        from fedbench.reporting.terminal import show
        from fedbench.reporting.wandb_leaderboard import mirror_leaderboard, tracking_of
        from fedbench.tracking.runs import gather

    runs, _ = gather(paths)
    tracking = tracking_of(runs, overrides) if arguments.wandb else None
    text = report(paths, arguments.out, arguments.results, arguments.latex)
    page = arguments.out / "report.html"
    print(show(leaderboard(runs), [arguments.out / "report.md", page]) if sys.stdout.isatty() else text)
    print(f"fedbench: {page} is the page, beside it .md, .csv, .json, .png", file=sys.stderr)
    if tracking:
        mirror_leaderboard(runs, tracking, arguments.out)


def diff_command(arguments: argparse.Namespace) -> None:
    """Print what differs between two runs."""
    from fedbench.reporting.diff import diff

    print(diff(arguments.one, arguments.other))


def reproduce_command(arguments: argparse.Namespace) -> int:
    """Run a committed row again, print the comparison; 1 if a figure is not what it must be."""
    from fedbench.config import parse_overrides

    files, words = paths_and_overrides(arguments.words)
    if len(files) != 1:
        raise UserError(f"reproduce: {len(files)} files of results; allowed: one")
    overrides = parse_overrides(words)
    out = arguments.out or Path("reproduced") / files[0].stem
    check_out(out)
    with uncollected():
        from fedbench.running.reproduce import reproduce

    text, right = reproduce(files[0], arguments.row, arguments.seed, out, overrides)
    print(text)
    return int(not right)


def paths_and_overrides(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Words that name files or folders, and those of the form key=value; names of runs have a `=` in them too."""
    overrides = [word for word in words if "=" in word and not os.path.lexists(user_path(word))]
    return [user_path(word) for word in words if word not in overrides], overrides


def verify_command(arguments: argparse.Namespace) -> int:
    """Print what runs' files are worth; 1 if one is not what was written, or a round gives other bits."""
    from fedbench.config import parse_overrides

    paths, words = paths_and_overrides(arguments.words)
    overrides = parse_overrides(words)
    with uncollected():
        from fedbench.running.verify import verify

    text, right = verify(paths, arguments.rerun, overrides)
    print(text)
    return int(not right)


def evaluate_command(arguments: argparse.Namespace) -> None:
    """Judge finished runs, leave a file beside each, print the figures."""
    from fedbench.config import parse_overrides

    more, given = paths_and_overrides(arguments.data)  # argparse takes what follows --data for its own
    paths, words = paths_and_overrides(arguments.words)
    paths, data, overrides = [*paths, *more], parse_overrides(given), parse_overrides(words)
    with uncollected():
        from fedbench.running.evaluate import judge

    print(judge(paths, arguments.protocol.split(","), data, overrides))


def export_command(arguments: argparse.Namespace) -> None:
    """Write the encoder under the other library's names, print the lines that load it."""
    folder = arguments.run if arguments.run.is_dir() else arguments.run.parent
    check_out(arguments.out.parent if arguments.out else folder)
    with uncollected():
        from fedbench.pretrained import export

    file, usage = export(arguments.run, arguments.out, arguments.plugins)
    print(f"fedbench: {file} is written; these lines load it:", file=sys.stderr)
    print(usage)


def check_command(arguments: argparse.Namespace) -> int:
    """Print what is wrong with the plan of a strategy, or else with what a plugin does; 1 if anything is."""
    from fedbench.config import read_words

    asked = read_words(arguments.words)
    if asked.file is None:
        raise UserError("check: no plugin named; allowed: one, and its fields as key=value")
    fields = asked.single()
    with uncollected():
        from fedbench.conformance.report import check_plugin, kind_of, plan_faults, render

    is_strategy = kind_of(asked.file) == "strategies"
    faults = plan_faults({"name": asked.file, **fields}) if is_strategy else []
    if faults:
        print("\n".join(["The plan:", *(f"  {line}" for line in faults)]))
        if not arguments.verbose:
            print("Not looked further; -v does.")
            return 1
    with waiting("federations of seconds, watched on their clients ..."):
        rows = check_plugin(asked.file, fields)
    print(render(rows, arguments.verbose))
    return int(bool(faults) or any(finding is not None for _, _, finding in rows))


def single_config(words: Sequence[str]) -> "Config":
    """The one configuration that a preset or file, and overrides, ask for."""
    from fedbench.config import load_config, read_words, resolve_file
    from fedbench.config.load import read_yaml

    asked = read_words(words)
    base = read_yaml(resolve_file(asked.file, "presets")) if asked.file else {}
    return load_config(base, asked.single())


def selected_cells(arguments: argparse.Namespace) -> tuple[list["Config"], Path]:
    """The cells that the words ask for, validated, and the folder for their results."""
    from fedbench.config import read_words, resolve_file
    from fedbench.config.grid import Grid, cells, read_grid, shard
    from fedbench.config.load import read_yaml

    words = list(arguments.words)
    grid = arguments.grid
    if (
        grid is not None and "=" in grid and not user_path(grid).is_file()
    ):  # `run --grid seed=1`: argparse takes the override for the name
        words, grid = [grid, *words], DEFAULT_GRID
    asked = read_words(words)
    if asked.file and grid:
        raise UserError(
            f"too many configurations: {asked.file}, --grid {grid}; allowed: one CONFIG, or --grid alone"
        )
    if grid is None:
        found = Grid(base=read_yaml(resolve_file(asked.file, "presets")) if asked.file else {})
        out = Path("runs")
    else:
        path = resolve_file(grid, "grids")
        found, out = read_grid(path), Path("runs") / path.stem
    return shard(cells(found, asked.overrides, asked.sweeps), arguments.shard), arguments.out or out
