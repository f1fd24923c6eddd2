"""A strategy outside the repository runs by path, by dotted name and by entry point."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedbench.config import Config
from fedbench.config.words import parse_overrides
from fedbench.errors import UserError
from fedbench.federation import Strategy, load_strategy
from fedbench.federation.experiment import prepare
from fedbench.federation.naming import strategy_label
from fedbench.plugin_files import Home, digest, own_files
from fedbench.plugins import describe, load_plugin, source_hash
from fedbench.running.cell import cell_name, run_cell
from fedbench.ssl import SSLMethod

FEDPROX = '''
"""FedProx (Li et al. 2020)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedbench.federation import LocalStep, StagePlan, Strategy


@dataclass(frozen=True)
class FedProx(Strategy):
    proximal_mu: float = 0.01

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        return StagePlan(num_blocks, trainable=range(num_blocks), upload=range(num_blocks))

    def local_loss(self, step: LocalStep) -> Tensor | None:
        pulls = [(w - step.received[name]).square().sum() for name, w in step.trained.items()]
        return self.proximal_mu / 2 * torch.stack(pulls).sum()
'''


@pytest.fixture
def fedprox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "my_fedprox.py"
    path.write_text(FEDPROX)
    monkeypatch.syspath_prepend(tmp_path)
    yield path  # type: ignore[misc]
    sys.modules.pop("my_fedprox", None)


def install(path: Path, name: str) -> None:
    """What a package's installer leaves behind: its metadata with an entry point."""
    info = path.parent / "fedprox_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fedprox-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fedbench.strategies]\n{name} = my_fedprox:FedProx\n")


def test_a_strategy_is_loaded_by_path_with_its_fields(fedprox: Path) -> None:
    strategy = load_strategy({"name": str(fedprox), "proximal_mu": "0.5"})
    assert type(strategy).__name__ == "FedProx"
    assert strategy.proximal_mu == 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["my_fedprox", "my_fedprox:FedProx"])
def test_a_strategy_is_loaded_by_dotted_name(fedprox: Path, name: str) -> None:
    if ":" not in name:
        package = fedprox.parent / "package_of_mine"
        package.mkdir()
        fedprox.rename(package / "my_fedprox.py")
        name = f"package_of_mine.{name}"
    assert type(load_strategy({"name": name})).__name__ == "FedProx"


def test_a_strategy_is_loaded_and_listed_by_entry_point(fedprox: Path) -> None:
    install(fedprox, "prox")
    assert describe("strategies")["prox"] == "my_fedprox:FedProx"
    assert type(load_strategy({"name": "prox", "proximal_mu": 1})).__name__ == "FedProx"


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UserError,
        match=r"'fedsl' is not known; did you mean 'fedssl'\? allowed: fedcybgd, fedmae, fedssl, lw_fedssl",
    ):
        load_strategy({"name": "fedsl"})
    with pytest.raises(UserError, match=r"ssl: 'mocov3' is not known; did you mean 'moco_v3'"):
        load_plugin("ssl", "mocov3", SSLMethod)


def test_an_unknown_field_is_refused_with_the_known_ones(fedprox: Path) -> None:
    with pytest.raises(UserError, match=r"strategy\.mu: unknown key; .*proximal_mu"):
        load_strategy({"name": str(fedprox), "mu": 1})
    with pytest.raises(UserError, match=r"strategy\.blocks_per_stage: .*greater than or equal to 1 \(got 0\)"):
        load_strategy({"name": "lw_fedssl", "blocks_per_stage": 0})


def test_a_file_with_no_or_two_strategies_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(UserError, match="must define one subclass of Strategy, it defines none"):
        load_strategy({"name": str(empty)})
    double = tmp_path / "double.py"
    double.write_text(FEDPROX + "\n\n@dataclass(frozen=True)\nclass Other(FedProx):\n    pass\n")
    with pytest.raises(UserError, match="it defines FedProx, Other; with several, name one"):
        load_strategy({"name": str(double)})
    assert type(load_strategy({"name": f"{double}:Other"})).__name__ == "Other"


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"plugin file 'nowhere/mine\.py' does not exist"):
        load_strategy({"name": "nowhere/mine.py"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import a_module_that_is_not_there", "No module named 'a_module_that_is_not_there'"),
        ("class Mine(Strategie): ...", "NameError: name 'Strategie' is not defined"),
        ("x = (", "SyntaxError: '(' was never closed"),
    ],
)
def test_a_plugin_that_fails_to_import_is_told_with_its_file_and_line(
    tmp_path: Path, text: str, said: str
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(f"\n{text}\n")
    with pytest.raises(UserError, match=f"{re.escape(said)}.*broken.py, line 2"):
        load_plugin("strategies", str(broken), Strategy)  # type: ignore[type-abstract]


def test_a_plan_that_raises_is_told_with_its_file_and_line(tiny: Callable[..., Config], tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(FEDPROX.replace("return StagePlan(", "raise ValueError('no plan')  # ("))
    with pytest.raises(UserError, match=r"plans: ValueError: no plan .*broken.py, line 17\)"):
        prepare(tiny(strategy=str(broken)))


def encoder_bytes(tiny: Callable[..., Config], folder: Path, strategy: object) -> bytes:
    config = tiny({"federation": {"rounds": 2}}, strategy=strategy)
    run_cell(prepare(config), folder)
    (path,) = folder.glob("*/encoder.safetensors")
    return path.read_bytes()


def test_fedprox_runs_by_path_by_dotted_name_and_by_entry_point_with_one_result(
    fedprox: Path, tmp_path: Path, tiny: Callable[..., Config]
) -> None:
    install(fedprox, "prox")
    names = [str(fedprox), "my_fedprox:FedProx", "prox"]
    results = [
        encoder_bytes(tiny, tmp_path / str(number), {"name": name, "proximal_mu": 5.0})
        for number, name in enumerate(names)
    ]
    assert results[0] == results[1] == results[2]
    assert results[0] != encoder_bytes(tiny, tmp_path / "fedssl", "fedssl")


def test_fedprox_with_mu_zero_is_fedssl(fedprox: Path, tmp_path: Path, tiny: Callable[..., Config]) -> None:
    zero = encoder_bytes(tiny, tmp_path / "zero", {"name": str(fedprox), "proximal_mu": 0.0})
    assert zero == encoder_bytes(tiny, tmp_path / "fedssl", "fedssl")


def test_another_file_under_the_same_name_is_another_cell(
    fedprox: Path, tmp_path: Path, tiny: Callable[..., Config]
) -> None:
    config = tiny(strategy=str(fedprox))
    before = cell_name(prepare(config))
    fedprox.write_text(FEDPROX.replace("/ 2", "/ 3"))
    assert cell_name(prepare(config)) != before


def test_a_strategy_that_trains_nobody_is_refused(tmp_path: Path, tiny: Callable[..., Config]) -> None:
    path = tmp_path / "skips.py"
    text = FEDPROX.replace(
        "def local_loss(self, step: LocalStep) -> Tensor | None", "def aggregate(self, updates, server)"
    )
    path.write_text(text[: text.index("        pulls")] + "        return {}\n")
    with pytest.raises(UserError, match="aggregate left updates of round 0 unread"):
        run_cell(prepare(tiny(strategy=str(path))), tmp_path)


MECHANISM = """
from dataclasses import dataclass

from fedbench.federation import LocalStep, Mechanism


@dataclass(frozen=True)
class Weighted(Mechanism):
    weight: float = 1.0

    def local_loss(self, step: LocalStep):
        return self.weight * step.output["projections"][0].square().mean()
"""


@pytest.fixture
def term(tmp_path: Path) -> Path:
    path = tmp_path / "a_term.py"
    path.write_text(MECHANISM)
    return path


def test_a_mechanism_is_named_by_its_path(
    term: Path, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(term.parent)
    names = ["a_term.py", "./a_term.py", str(term)]
    found = [prepare(tiny(strategy={"name": "fedssl", name: {"weight": 2}, "moon": True})) for name in names]
    assert [type(one).__name__ for one in found[0].mechanisms] == ["Weighted", "Moon"]
    assert found[0].mechanisms[0].weight == 2  # type: ignore[attr-defined]
    assert len({cell_name(one) for one in found}) == 1
    assert strategy_label(found[2].config) == "fedssl(a_term.py.weight=2.0, moon=True)"


def test_a_mechanism_by_path_is_switched_on_by_a_word(term: Path) -> None:
    words = parse_overrides([f"strategy.{term}.weight=2", "strategy.../b.py=true", "strategy.proximal.mu=0.5"])
    assert words == {"strategy": {str(term): {"weight": 2}, "../b.py": True, "proximal": {"mu": 0.5}}}


@pytest.mark.parametrize("word", ["strategy..mu=1", ".seed=1", "seed.=1", "=1"])
def test_a_key_with_an_empty_part_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="is no key; allowed"):
        parse_overrides([word])


def test_two_mechanisms_of_one_file_name_are_refused(term: Path, tiny: Callable[..., Config]) -> None:
    other = term.parent / "other" / term.name
    other.parent.mkdir()
    other.write_text(MECHANISM)
    with pytest.raises(UserError, match=r"are both called a_term\.py"):
        prepare(tiny(strategy={"name": "fedssl", str(term): True, str(other): True}))


def test_a_field_of_a_mechanism_by_path_is_checked(term: Path, tiny: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match=r"a_term\.py\.weigth: unknown key; did you mean 'weight'"):
        prepare(tiny(strategy={"name": "fedssl", str(term): {"weigth": 2}}))


HELPED = """
from fedbench.federation import StagePlan, Strategy
IMPORT

class Helped(Strategy):
    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        return StagePlan(num_blocks, trainable=range(num_blocks), upload=range(num_blocks - LAST))
"""


@pytest.mark.parametrize("statement", ["from helper_of_mine import LAST", "from terms_of_mine.last import LAST"])
def test_the_modules_of_its_own_folder_belong_to_a_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """Those that they import too; and a change of one is noticed by the process that has loaded it before."""
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "terms_of_mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "last.py").write_text("from .deep import LAST\n")
    (package / "deep.py").write_text("LAST = 0\n")
    (tmp_path / "helper_of_mine.py").write_text("def late():\n    import terms_of_mine.deep\n\nLAST = 0\n")
    (tmp_path / "of_nobody.py").write_text("LAST = 5\n")
    plugin = tmp_path / "helped.py"
    plugin.write_text(HELPED.replace("IMPORT", statement))

    def load() -> tuple[str, int]:
        cls = load_plugin("strategies", str(plugin), Strategy)  # type: ignore[type-abstract]
        return source_hash(cls), len(cls().plan(1, 4).upload)

    first = load()
    assert first[1] == 4
    (tmp_path / "of_nobody.py").write_text("LAST = 6\n")
    assert load() == first
    (package / "deep.py").write_text("LAST = 1\n")
    second = load()
    assert second[0] != first[0]
    assert second[1] == (4 if "helper" in statement else 3)
    (tmp_path / "helper_of_mine.py").write_text("LAST = 2  # and nothing more\n")
    third = load()
    assert (third != second) == ("helper" in statement)
    assert third[1] == (2 if "helper" in statement else 3)


def test_a_plugin_is_known_by_what_was_loaded_not_by_what_its_file_became(fedprox: Path) -> None:
    loaded = load_plugin("strategies", str(fedprox), Strategy)  # type: ignore[type-abstract]
    before = source_hash(loaded)
    fedprox.write_text(FEDPROX.replace("0.01", "0.02"))
    assert source_hash(loaded) == before
    assert source_hash(load_plugin("strategies", str(fedprox), Strategy)) != before  # type: ignore[type-abstract]


def test_of_a_package_its_own_modules_count_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("LAST = 0\n")
    (tmp_path / "ours" / "terms.py").write_text("LAST = 0\n")
    file = tmp_path / "ours" / "plugin.py"
    file.write_text(HELPED.replace("IMPORT", "from .terms import LAST\nfrom theirs import LAST"))
    home = Home(tmp_path, "ours")
    assert own_files(file, home).keys() == {"ours/plugin.py", "ours/__init__.py", "ours/terms.py"}
    cls = load_plugin("strategies", "ours.plugin", Strategy)  # type: ignore[type-abstract]
    assert source_hash(cls) == digest("Helped", own_files(file, home))
    sys.modules.pop("ours.plugin")


def test_two_plugins_with_a_helper_of_one_name_get_each_its_own(tmp_path: Path) -> None:
    found = {}
    for number, name in enumerate(["first", "second"]):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "namesake_of_mine.py").write_text(f"LAST = {number}\n")
        place = "import sys\nsys.path.insert(0, str(__import__('pathlib').Path(__file__).parent))\n"
        (folder / "mine.py").write_text(HELPED.replace("IMPORT", f"{place}from namesake_of_mine import LAST"))
        found[name] = load_strategy({"name": str(folder / "mine.py")}).plan(1, 4)
        sys.path.remove(str(folder))
    assert [len(plan.upload) for plan in found.values()] == [4, 3]


def test_a_plugin_that_gets_another_ones_helper_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lookalike_of_mine.py").write_text("LAST = 0\n")
        (tmp_path / name / "mine.py").write_text(HELPED.replace("IMPORT", "from lookalike_of_mine import LAST"))
    monkeypatch.syspath_prepend(tmp_path / "first")
    load_strategy({"name": str(tmp_path / "first" / "mine.py")})
    with pytest.raises(UserError, match=r"`import lookalike_of_mine` gave .*first.*, and not .*second"):
        load_strategy({"name": str(tmp_path / "second" / "mine.py")})


def test_a_helper_under_a_computed_name_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "unseen_of_mine.py").write_text("LAST = 0\n")
    computed = 'import importlib\nLAST = importlib.import_module("unseen_" + "of_mine").LAST'
    (tmp_path / "mine.py").write_text(HELPED.replace("IMPORT", computed))
    load_strategy({"name": str(tmp_path / "mine.py")})
    assert "imports unseen_of_mine under a name that is computed" in capsys.readouterr().err
