"""Finished runs, each as one protocol sees it, and why a folder holds none."""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedbench.config.load import UNTRAINED, digest, flat
from fedbench.config.schema import ENCODER_KEYS, OF_SOME_ENCODERS, WITH_ALL_KEYS, PartitionConfig
from fedbench.conventions import CONVENTIONS
from fedbench.errors import UserError
from fedbench.escaping import printable
from fedbench.tracking.evaluations import Evaluation, ImpossibleError, read_evaluations
from fedbench.tracking.noted import NotedManifest, NotedSummary, fault
from fedbench.tracking.run_directory import ERROR, MANIFEST, ROUNDS, SUMMARY, WANDB_ADDRESS, RunDirectory

LABELS = ("strategy", "ssl", "convention", "memory_source", "diverged")
OF_ENCODER = ("sources.encoder", "sources.transform")  # source files, and the weights that it starts from
# What reaches an encoder of no rounds.
OF_UNTRAINED = ("data", "encoder.", *OF_ENCODER, "evaluation.", "device", "threads", "numerics")
HOW = (
    "accelerator",
    "engine",
    "workers",
    "federation.timeout",
    "tracking",
    "encoder.init",
    "data.path",
    "data.skip_broken",
    "data.partition.file",
)
# No bit depends on what is in HOW; images and given weights are named by their hashes.
LEFT_OUT = ("seed", "probe.", "evaluation.", "tuning", *HOW)
NAMES = ("strategy.name", "ssl.name", "encoder.name")  # of plugins, perhaps with a folder in front
UNFINISHED = "it is not finished"
LATER = (  # figures that not every run has
    "client/local_steps",
    "server/flops",
    "server/peak_memory_bytes",
    "total/flops",
    "features/effective_rank",
    "features/uniformity",
    "features/alignment",
    "privacy/epsilon",
    "privacy/delta",
    "secure_aggregation/model_bytes",
    "features/density",
)


@dataclass(frozen=True)
class Run:
    """A finished run under one protocol: manifest.json, summary.json, how it was judged, and where it was read."""

    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]
    evaluation: Evaluation
    path: Path | None = None

    @property
    def seed(self) -> int:
        """The seed of all its random streams."""
        return int(self.manifest["config"]["seed"])

    @property
    def code(self) -> str:
        """What ran it: a commit, with `+` if files differed from it, or an installed version."""
        commit = self.manifest.get("commit")
        version = self.manifest.get("fedbench", "of unknown version")
        return f"{commit[:12]}{'+' if self.manifest.get('dirty') else ''}" if commit else f"fedbench {version}"

    @property
    def wandb(self) -> str:
        """Its W&B run: the address if the run was online, else `project/id`; "" if W&B was disabled."""
        tracking = self.manifest["config"].get("tracking", {})
        if self.path is None or tracking.get("wandb", "disabled") == "disabled":
            return ""
        address = self.path / WANDB_ADDRESS
        known = address.read_text(encoding="utf-8", errors="replace").strip() if address.is_file() else ""
        return known or f"{tracking.get('project')}/{wandb_id(self.manifest)}"

    @property
    def numerics(self) -> str:
        """The CPU kernels that ran it, by which the last bits differ; see `kernels`."""
        return kernels(self.manifest)

    @property
    def kind(self) -> str:
        """`untrained` (no rounds), `centralised` (one client has all the data), or "" for a federation."""
        federation = self.manifest["config"]["federation"]
        if not federation["rounds"]:
            return UNTRAINED
        return "centralised" if federation["num_clients"] == 1 else ""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """`section.key -> value` of all that can change a result but the seed; data is named by its hash.

        Made once: a table asks for it for each pair of its rows.
        """
        config = {k: v for k, v in flat(self.manifest["config"]).items() if not k.startswith(LEFT_OUT)}
        config |= {key: _last_part(config[key]) for key in NAMES if key in config}
        if "encoder.transforms" in config:
            config["encoder.transforms"] = transforms_words(config["encoder.transforms"])
        named = flat({key: self.manifest[key] for key in ("data_hash", "device", "sources")})
        judged = self.evaluation
        by = {**judged.settings, "protocol": judged.protocol, "data_hash": judged.data_hash}
        settings = config | named | flat({"evaluation": by})
        if self.kind == UNTRAINED:
            return {key: value for key, value in settings.items() if key.startswith(OF_UNTRAINED)}
        return settings


def wandb_id(manifest: Mapping[str, Any]) -> str:
    """Of the W&B run that mirrors a run directory; the same one after a resume."""
    return digest([manifest["cell_hash"], manifest["started"]])


def _last_part(name: str) -> str:
    return re.sub(r".*/", "", name)


def kernels(manifest: Mapping[str, Any]) -> str:
    """`portable`; or torch's vector instructions, what the libraries were told, and the fingerprint."""
    if manifest["config"].get("numerics"):
        return str(manifest["config"]["numerics"])
    known = manifest.get("numerics") or {}
    told = (f"{key}={value}" for key, value in (known.get("environment") or {}).items())
    words = [known.get("cpu_capability", "unknown"), *told, known.get("fingerprint", "")]
    return " ".join(filter(None, words))


def read_runs(folder: Path) -> list[Run]:
    """The finished runs directly under `folder`, by name; `UserError` if it is no folder."""
    runs, left_out = gather([folder])
    for path, reason in left_out.items():
        if not reason.startswith(UNFINISHED):
            print(f"fedbench: {printable(str(path))} is left out, {printable(reason)}", file=sys.stderr)
    return runs


def gather(paths: Iterable[Path]) -> tuple[list[Run], dict[Path, str]]:
    """The finished runs among run directories and folders of them, and the reason for each that is left out.

    A run appears once for each protocol that judged it.

    Raises:
        UserError: for a path that is no folder, or cannot be read.
    """
    directories = [directory for path in paths for directory in run_directories(path)]
    found = {path: _read(path) for path in dict.fromkeys(directories)}
    left_out = {path: reason for path, reason in found.items() if isinstance(reason, str)}
    return [run for runs in found.values() if not isinstance(runs, str) for run in runs], left_out


def run_directories(path: Path) -> list[Path]:
    """`path` if it is a run directory, else those directly under it, by name."""
    if not path.is_dir():
        raise UserError(f"{str(path)!r} is not a folder; allowed: a run directory, or a folder with some in it")
    try:
        found = (
            [path] if _holds_a_run(path) else [child for child in sorted(path.iterdir()) if _holds_a_run(child)]
        )
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    return [directory.resolve() for directory in found]


def _holds_a_run(path: Path) -> bool:
    try:
        return (path / MANIFEST).is_file()
    except OSError:  # a locked folder: `_read` says so
        return True


def _read(path: Path) -> list[Run] | str:
    """A run under each of its protocols, or why there is none."""
    directory = RunDirectory(path)
    try:
        if not (path / SUMMARY).is_file():
            return UNFINISHED + _why_it_stopped(path)
        if wrong := directory.damage(MANIFEST, ROUNDS):
            return "; ".join(wrong)
        manifest, summary = directory.manifest(), directory.summary()
        if why := fault(MANIFEST, manifest, NotedManifest) or fault(SUMMARY, summary, NotedSummary):
            return why
        if summary.get("seed", manifest["config"]["seed"]) != manifest["config"]["seed"]:
            return f"{SUMMARY}: seed={summary['seed']!r} is not that of {MANIFEST}"
        if summary["convention"] not in CONVENTIONS:
            return f"{SUMMARY}: convention={summary['convention']!r}; allowed: {', '.join(CONVENTIONS)}"
        summary = _completed(summary)
        runs = [Run(manifest, summary, evaluation, path) for evaluation in read_evaluations(directory)]
        for run in runs:  # what is read of it later, is read once now
            describe(run), run.settings, run.wandb, run.numerics
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except ImpossibleError as error:
        return str(error)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return "its files are not those of a run"
    return runs


def _completed(summary: dict[str, Any]) -> dict[str, Any]:
    """With the figures that a run of before did not note: those that follow from others, else None."""
    parts = [summary.get(f"{who}/flops") for who in ("all_clients", "server")]
    total = None if None in parts else sum(parts)  # type: ignore[arg-type]
    return dict.fromkeys(LATER) | {"total/flops": total} | summary


def _why_it_stopped(path: Path) -> str:
    """The last line of its error, if it left one."""
    lines = (path / ERROR).read_text(encoding="utf-8").splitlines() if (path / ERROR).is_file() else []
    return f": {lines[-1]}" if lines else ""


def describe(run: Run) -> str:
    """The title of a table: data, federation, encoder and protocol in words."""
    config, judged = run.manifest["config"], run.evaluation
    data = config["data"]
    split = PartitionConfig.model_validate(data["partition"])
    elsewhere = "" if judged.data_hash == run.manifest["data_hash"] else f" on {judged.data}"
    return (
        f"{_data_words(run)} on {config['federation']['num_clients']} clients ({split.words}), "
        f"{_encoder_words(config['encoder'])}{_init_words(run.manifest)}, "
        f"protocol {judged.protocol}{elsewhere}{_split(judged.settings)}"
    )


def _encoder_words(encoder: Mapping[str, Any]) -> str:
    """`vit (8 px, patch 2, width 32, 4 blocks)`; what an encoder does not have is left out."""
    forms = {"patch_size": "patch {}", "width": "width {}", "depth": "{} blocks"}
    if encoder["name"] == "resnet18":  # whose configuration has the keys of a ViT, too
        forms = {"depth": forms["depth"]}
    words = [f"{encoder['image_size']} px"]
    words += [form.format(encoder[key]) for key, form in forms.items() if key in encoder]
    if encoder["name"] not in WITH_ALL_KEYS:
        known = {*ENCODER_KEYS, *OF_SOME_ENCODERS}
        words += [f"{key} {value}" for key, value in encoder.items() if key not in known]
    return f"{_last_part(encoder['name'])} ({', '.join(words)})"


def _init_words(manifest: Mapping[str, Any]) -> str:
    content = manifest["sources"].get("encoder.init")
    return f" from weights {content[:8]}" if content else ""


def transforms_words(transforms: Iterable[Mapping[str, Any]]) -> str:
    """`cola(ratio=0.5)+shared_mlp`."""
    words = []
    for one in transforms:
        keys = ",".join(f"{key}={value}" for key, value in one.items() if key != "name")
        words.append(_last_part(one["name"]) + (f"({keys})" if keys else ""))
    return "+".join(words)


def _split(settings: Mapping[str, Any]) -> str:
    return f", {settings['split']} split" if "split" in settings else ""


def _data_words(run: Run) -> str:
    """`cifar10`; of the user's own images `image_folder:pets`, by the last part of their path."""
    kind = _last_part(run.manifest["config"]["data"]["name"])
    name = run.manifest.get("data", {}).get("name", kind)  # a run from before the manifest had it
    return kind if name == kind else f"{kind}:{name}"
