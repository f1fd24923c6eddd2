"""Runs of somebody else, whose files hold what a browser, a terminal or a spreadsheet would obey: nothing does."""

import csv
import html
import html.parser
import io
import json
import re
import unicodedata
from base64 import b64encode
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
from markdown import markdown as python_markdown
from markdown_it import MarkdownIt
from report_page import CHROMIUM, browse

from fedbench.cli import main
from fedbench.config import load_config
from fedbench.escaping import in_markdown, in_sheet, printable
from fedbench.reporting.leaderboard import leaderboard, write
from fedbench.reporting.terminal import show
from fedbench.tracking.run_directory import RunDirectory
from fedbench.tracking.runs import gather

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=http://evil.example/x.png onerror=alert(1)>",
    "![x](http://evil.example/x.png)",
    "[x](javascript:alert(1))",
    "[x]: javascript:alert(1)",
    "a | b \\| c\n| d |\n\n# e",
    "`code` ``` *bold* &#60;b&#62;",
    "\x1b]0;owned\x07\x1b[2J\x9b31m",
    "left\u202etfel\u2028next",
    "=cmd|' /C calc'!A0",
    "+1+cmd",
    "-1+cmd",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "$x$ $$y$$ \\frac{1} <%= 1 %> {{ 1 }}",
    "\ud800",
)
SHARED = "</script><svg onload=alert(1)> | `x` [x](javascript:alert(1)) \x1b[2J\n# h"  # by all runs: one table
TAGS = {"h3", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "p", "code"}  # of our own Markdown
BAR = r"(?<!\\)(?:\\\\)*\|"  # that ends a cell: no backslash before it, or an even number


class Page(html.parser.HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


READ = [
    words for words in HOSTILE if not re.search("[\ud800-\udfff]", words)
]  # half a letter: the run is left out


def hostile_run(folder: Path, number: int, words: str) -> RunDirectory:
    """A finished run that says `words` wherever a run says words."""
    config = load_config({"seed": 0, "tracking": {"wandb": "offline"}}).model_dump(mode="json")
    config["ssl"]["name"] = config["augmentation"]["name"] = config["strategy"]["name"] = words
    config["data"]["name"], config["tracking"]["project"] = SHARED, words
    config["ssl"][words] = words  # a key of its own, in which the rows differ
    facts = {"cell_hash": f"{number}", "device": words, "sources": {"strategy": words}, "started": words}
    told = {"data_hash": SHARED, "processor": words, "commit": words, "data": {"name": SHARED}, "fedbench": words}
    numerics = {"cpu_capability": words, "environment": {words: words}, "fingerprint": words}
    summary = {"strategy": words, "ssl": words, "memory_source": words, "convention": "step", "diverged": False}
    costs = ("flops", "peak_memory_bytes", "download_bytes", "upload_bytes")
    summary |= {f"client/{cost}": 1e6 * (number + 1) for cost in costs} | {"seconds": 1.0, words: 1, "rounds": 1}
    judged = {"protocol": "linear", "settings": {SHARED: SHARED}, "data": SHARED, "data_hash": "other"}
    summary |= {"evaluations": [judged], "probe/linear_top1": 0.8 - number / 100, "untrained/linear_top1": 0.1}
    path = folder / f"run{number:02}"
    (path / "wandb").mkdir(parents=True)
    manifest = {**facts, **told, "config": config, "numerics": numerics}
    for name, content in (("manifest.json", manifest), ("summary.json", summary)):
        (path / name).write_text(json.dumps(content))
    (path / "encoder.safetensors").write_bytes(b"")
    (path / "rounds.jsonl").write_text(json.dumps({"round": words, "stage": words}) + "\n")
    (path / "wandb" / "address.txt").write_bytes(words.encode(errors="replace"))
    return RunDirectory(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for each hostile text, and one that failed with all of them."""
    folder = tmp_path_factory.mktemp("hostile") / "runs"
    for number, words in enumerate(HOSTILE):
        hostile_run(folder, number, words)
    failed = folder / "failed<script>\x1b[2J|"
    failed.mkdir()
    (failed / "manifest.json").write_text("{}")
    (failed / "error.txt").write_bytes(("[x](javascript:1)" + "|".join(HOSTILE)).encode(errors="replace"))
    return folder


@pytest.fixture(scope="module")
def out(runs: Path) -> Path:
    """What `report` and a grid make of them."""
    out = runs.parent / "out"
    assert main(["report", str(runs), "--out", str(out), "--latex", "--results", str(out / "results.json")]) == 0
    write(leaderboard(gather([runs])[0]), out)
    return out


def obeyed(text: str) -> set[str]:
    """What a terminal obeys in a text, besides the end of a line."""
    letters = set(text) - {"\n"}
    return letters & {"\u202e"} | {one for one in letters if unicodedata.category(one) in {"Cc", "Cs", "Zl", "Zp"}}


def rendered(text: str) -> list[Page]:
    """The Markdown as two readers show it: that of code hosts, and that of the documentation's site."""
    commonmark = MarkdownIt("commonmark").enable(["table"]).render(text)
    return [Page(commonmark), Page(python_markdown(text, extensions=["tables"]))]


@pytest.mark.parametrize("name", ["report.md", "leaderboard.md"])
def test_markdown_of_hostile_runs_has_the_tags_of_any_other_and_no_link(out: Path, name: str) -> None:
    text = (out / name).read_text(encoding="utf-8")
    for page in rendered(text):
        assert set(page.tags) <= TAGS
        assert page.tags.count("table") == rendered(text)[0].tags.count("table")
        assert not [value for key, value in page.attributes if key != "style"]
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    assert len(tables) >= 2
    for table in tables:
        assert len({len(re.findall(BAR, line)) for line in table.splitlines()}) == 1, table


@pytest.mark.parametrize("name", ["md", "csv", "json", "tex", "html"])
def test_no_file_of_a_report_holds_what_a_terminal_obeys(out: Path, name: str) -> None:
    text = (out / f"report.{name}").read_text(encoding="utf-8")
    assert obeyed(re.sub("<script>.*?</script>", "", text, flags=re.S)) == set()  # without the library


@pytest.mark.parametrize("name", ["report.csv", "leaderboard.csv"])
def test_no_cell_of_a_sheet_is_a_formula_and_figures_stay_figures(out: Path, name: str) -> None:
    rows = list(csv.DictReader(io.StringIO((out / name).read_text(encoding="utf-8"))))
    assert len(rows) == len(READ)
    assert {row["table"] for row in rows} == {"1"}
    for row in rows:
        for key, value in row.items():
            assert not value.lstrip().startswith(("=", "+", "-", "@")) or float(value) is not None, key
        assert float(row["top1_mean"]) > 0
    assert {"'=cmd|' /C calc'!A0", "'+1+cmd", "'-1+cmd", "'@SUM(1)"} <= {row["ssl"] for row in rows}


def test_the_page_of_hostile_runs_has_no_script_picture_or_address_of_theirs(out: Path) -> None:
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert not {"img", "svg", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    addresses = [value for name, value in page.attributes if name in ("href", "src", "action", "formaction")]
    assert all(re.match(r"data:,$|[\w./%-]+/$", address) for address in addresses), addresses


def policy(page: str) -> str:
    (found,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="(.*?)">', page)
    return str(found)


def test_the_pages_policy_names_every_script_that_is_in_it_and_allows_no_address(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.index("Content-Security-Policy") < page.index("<script")
    scripts = [text for kind, text in re.findall(r"<script(.*?)>(.*?)</script>", page, re.S) if "json" not in kind]
    own = {f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in scripts}
    rules = {rule.split()[0]: set(rule.split()[1:]) for rule in policy(page).split(";")}
    assert rules["script-src"] == own
    assert len(own) >= 3
    assert rules["default-src"] == {"'none'"}
    assert not [word for words in rules.values() for word in words if re.match(r"http|\*|'unsafe-eval", word)]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_the_page_of_hostile_runs_and_refuses_a_script_that_came_into_it(
    out: Path, tmp_path: Path
) -> None:
    said = browse(out / "report.html", tmp_path / "profile")
    assert "document idle" in said
    assert "Content Security Policy" not in said
    planted = (
        "<img src='data:,' onerror=\"console.error('own' + 'ed')\"><script>console.error('own' + 'ed')</script>"
    )
    source = (out / "report.html").read_text(encoding="utf-8")
    (tmp_path / "planted.html").write_text(source.replace("<main>", f"<main>{planted}"), encoding="utf-8")
    said = browse(tmp_path / "planted.html", tmp_path / "profile")
    assert "Content Security Policy" in said
    assert "owned" not in said


def test_the_terminals_table_shows_what_it_must_not_obey(runs: Path) -> None:
    text = show(leaderboard(gather([runs])[0]), [])
    assert obeyed(text) == set()
    assert "\\x1b" in text


def test_diff_shows_what_a_terminal_must_not_obey(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(path for path in runs.iterdir() if path.name.startswith("run"))
    for one, other in pairwise(paths):
        assert main(["diff", str(one), str(other)]) == 0
    printed = capsys.readouterr()
    assert obeyed(printed.out) == set()
    assert "\\x1b" in printed.out


def test_an_error_and_what_is_left_out_are_told_without_what_a_terminal_obeys(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(runs / "failed<script>\x1b[2J|"), "--out", str(tmp_path / "out")]) == 2
    assert main(["report", str(tmp_path / "\x1b[2J"), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert "left out" in printed
    assert obeyed(printed) == set()


@pytest.mark.parametrize("words", ["-0.5", "1e-3", "-1 -2", "- a", "=1", "a=1", "lw_fedssl@v3(a=[0.5, 0.5])"])
def test_in_a_sheet_only_what_would_be_a_formula_is_quoted(words: str) -> None:
    assert in_sheet(words) == ("'" * (words in ("- a", "=1"))) + words


def test_usual_names_are_the_same_in_markdown_and_what_is_quoted_reads_as_it_was_written() -> None:
    for usual in ("lw_fedssl@v3(alignment=None, rates=[0.5, 0.5])", "16 trials", "a & b", "a=-1", "top-1 %"):
        assert in_markdown(usual) == usual
    for words in (
        "a\\",
        "<b>",
        "[x](y)",
        "![x](y)",
        "`c`",
        "**b**",
        "> q",
        "# h",
        "- i",
        "x === y",
        "&#60;",
        "[x][y]",
    ):
        shown = MarkdownIt("commonmark").render(in_markdown(words))
        assert html.unescape(shown) == f"<p>{words}</p>\n"


def test_what_hides_is_shown_by_its_number() -> None:
    assert printable("a\r\n\tb\x1b\x9b\u202e\ud800\N{GREEK SMALL LETTER MU}") == (
        "a b\\x1b\\x9b\\u202e\\ud800\N{GREEK SMALL LETTER MU}"
    )
