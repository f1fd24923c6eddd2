"""README and docs: every block is executed, or says why not; every link leads somewhere; the site builds."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import fedbench
from fedbench.config.keys import config_keys

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not executed: ([^\n]+?) -->\n)?^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of a page; `reason`: why it is not executed, "" where it is; `line`: number of its first line."""

    reason: str
    language: str
    text: str
    line: int


def blocks(text: str) -> list[Block]:
    """In the order of the page."""
    return [
        Block(found[1] or "", found[2], found[3], text[: found.start(3)].count("\n") + 1)
        for found in BLOCK.finditer(text)
    ]


def execute(page: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Run the blocks one after the other in `folder`, each in a process of its own."""
    for block in blocks(page):
        if block.reason:
            continue
        words = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [sys.executable, "-c"]
        run = [*words, block.text]
        done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"line {block.line}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.fixture
def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}


@pytest.fixture
def folder(tmp_path: Path, environment: dict[str, str]) -> Path:
    """An empty folder with what the page of a first run makes: small.yaml."""
    first = blocks((ROOT / "docs" / "first-run.md").read_text())[0].text
    script = first[: first.index("YAML\n", first.index("'YAML'") + 6) + 5]
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=environment, check=True)
    return tmp_path


@pytest.mark.exhaustive  # the commands have their own tests; this is about the words around them
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_can_be_executed(page: Path, folder: Path, environment: dict[str, str]) -> None:
    execute(page.read_text(), folder, environment)


def test_the_file_of_small_settings_is_a_configuration(folder: Path) -> None:
    assert yaml.safe_load((folder / "small.yaml").read_text())["federation"]["rounds"] == 2


@pytest.mark.parametrize(
    ("page", "runs"),
    [
        ("```sh\ntrue\n```\n", True),
        ("```sh\nfalse\ntrue\n```\n", False),
        ("```python\nassert False\n```\n", False),
        ("<!-- not executed: it is wrong -->\n```sh\nfalse\n```\n", True),
        ("<!-- not executed: of another block -->\n\n```sh\nfalse\n```\n", False),
    ],
)
def test_a_block_that_fails_is_found_unless_it_gives_a_reason(
    page: str, runs: bool, tmp_path: Path, environment: dict[str, str]
) -> None:
    if runs:
        execute(page, tmp_path, environment)
    else:
        with pytest.raises(AssertionError, match="line"):
            execute(page, tmp_path, environment)


def test_every_fence_that_looks_like_code_is_a_block() -> None:
    fence = re.compile(r"^\s*```(?:sh|bash|shell|console|python|py)\b", re.MULTILINE)
    for page in PAGES:
        text = page.read_text()
        assert len(fence.findall(text)) == len(blocks(text)), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_within_the_repository_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text().count("\n") <= 150


def test_every_page_is_in_the_navigation() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    sections = [next(iter(entry.values())) if isinstance(entry, dict) else [entry] for entry in site["nav"]]
    listed = [page for section in sections for page in section]
    assert sorted(listed) == sorted(page.name for page in PAGES if page.parent.name == "docs")


@pytest.mark.exhaustive
def test_the_site_builds_strictly_with_every_key_and_function(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "reference" / "index.html").read_text()
    assert [key.name for key in config_keys() if f"<code>{key.name}</code>" not in reference] == []
    functions = (tmp_path / "site" / "api" / "index.html").read_text()
    assert [name for name in fedbench.__all__ if f"<code>{name}</code>" not in functions] == []


def test_the_citation_has_what_the_format_needs() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert f'version = "{cited["version"]}"' in (ROOT / "pyproject.toml").read_text()
