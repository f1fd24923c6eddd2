"""Whatever the bytes, an input ends in what was asked for or in one sentence."""

import json
import math
import signal
from pathlib import Path
from random import Random
from typing import Any

import fuzz
import pytest
from fuzz_targets import Target, targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedbench.config import Config, config_hash, load_config, read_words
from fedbench.config.grid import Grid, cells
from fedbench.config.plain_yaml import parse_yaml
from fedbench.errors import LISTED, UserError, listed, shorten, shown

QUICK = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
NAMES = list(targets(Path()))
pytestmark = pytest.mark.filterwarnings("ignore")  # of PIL, on damaged tags
INPUTS = 400  # of each target here; `make stress` throws 100,000


@pytest.fixture(scope="module", autouse=True)
def alarm() -> None:
    signal.signal(signal.SIGALRM, fuzz._hangs)


@pytest.mark.parametrize("name", NAMES)
def test_no_mutated_input_ends_in_a_traceback_or_takes_two_seconds(tmp_path: Path, name: str) -> None:
    target, draw = targets(tmp_path)[name](), Random(name)
    for data in [*target.seeds, *(target.draw(draw) for _ in range(INPUTS))]:
        outcome = fuzz.tried(target, data)
        assert not outcome.fault, data[:300]
        assert outcome.seconds < fuzz.MAX_SECONDS, data[:300]


@pytest.mark.parametrize("name", NAMES)
def test_the_good_inputs_of_a_target_are_mostly_read(tmp_path: Path, name: str) -> None:
    """Else the mutations would never come further than the first check."""
    target, read = targets(tmp_path)[name](), 0
    for data in target.seeds:
        try:
            target.read(data)
            read += 1
        except fuzz.SENTENCES:
            pass
    assert read >= {"archives": 2}.get(name, 0.7 * len(target.seeds))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = st.sampled_from([name for name, field in Config.model_fields.items() if field.default is not None])
TREES = st.dictionaries(SECTIONS, PLAIN, max_size=3)


def field_of(section: str) -> Any:
    annotation = Config.model_fields[section].annotation
    return st.sampled_from(sorted(getattr(annotation, "model_fields", {"name": None})))


VALUES = SECTIONS.flatmap(
    lambda one: st.dictionaries(field_of(one), PLAIN, max_size=3).map(lambda tree: {one: tree})
)


def answer(action: Any, *arguments: Any) -> Any:
    """What it returns, or the user error that it raises, in which no line is long."""
    try:
        return action(*arguments)
    except UserError as error:
        lines = str(error).splitlines()
    assert len(lines) < 2 * LISTED + 3
    assert max(map(len, lines)) < 1000
    return UserError("\n".join(lines))


@QUICK
@given(tree=TREES | VALUES)
def test_any_tree_of_plain_values_is_a_configuration_or_a_user_error(tree: Any) -> None:
    config = answer(load_config, tree)
    if isinstance(config, Config):
        assert load_config(config.model_dump(mode="json")) == config
        assert len(config_hash(config)) == 12


@QUICK
@given(
    axes=st.dictionaries(st.text(max_size=12) | SECTIONS, st.lists(PLAIN, max_size=3), max_size=2), exclude=TREES
)
def test_any_axes_are_cells_or_a_user_error(axes: Any, exclude: Any) -> None:
    assert answer(cells, Grid(axes=axes, exclude=[exclude]), {})


@QUICK
@given(text=st.text(alphabet="[]{}:,&*!|>'\"-? #\n\tab01.~=<", max_size=40) | st.text(max_size=40))
def test_any_text_is_a_plain_value_or_a_user_error(text: str) -> None:
    value = answer(parse_yaml, text, "key")
    if isinstance(value, UserError):
        assert "\n" not in str(value)
    else:
        json.dumps(value, skipkeys=True)


@QUICK
@given(
    words=st.lists(
        st.text(max_size=20) | st.tuples(st.text(max_size=9), st.text(max_size=9)).map("=".join), max_size=4
    )
)
def test_any_words_are_sorted_or_a_user_error(words: list[str]) -> None:
    answer(read_words, words)


@QUICK
@given(value=PLAIN | st.integers(min_value=10**4400, max_value=10**4401) | st.text(min_size=200))
def test_any_value_is_shown_within_a_line(value: Any) -> None:
    assert len(shown(value)) <= 130


def test_of_many_complaints_the_first_are_told_and_the_others_counted() -> None:
    computed = []
    lines = listed((computed.append(number) or str(number) for number in range(10**6)), 10**6)
    assert lines[-1] == "  ... and 999,980 more"
    assert len(computed) == LISTED
    assert listed(["a"], 1) == ["a"]
    assert shorten("x" * 120) == "x" * 120


def failing(data: bytes) -> None:
    if b"7" in data:
        raise KeyError("seven")
    if b"8" in data:
        raise UserError("x" * 2000)
    if b"9" in data:
        raise UserError("nine")


def test_the_fuzzer_tells_a_traceback_from_a_sentence_and_finds_the_shortest_input_of_it() -> None:
    target = Target([b""], failing, lambda seeds, random: b"")
    assert fuzz.tried(target, b"9").fault == ""
    assert "more than 1,000 characters" in fuzz.tried(target, b"8").fault
    outcome = fuzz.tried(target, b"0123456" + b"7" + b"0123456")
    assert outcome.fault.startswith("KeyError at test_fuzz.py:")
    assert fuzz.smaller(target, b"012345670123456", outcome.fault) == b"7"


def test_the_fuzzers_verdict_has_three_limits() -> None:
    good = {"faults": [], "slowest": 0.1, "growth": 3.0}
    assert fuzz.is_good(good)
    for worse in ({"faults": ["KeyError"]}, {"slowest": math.inf}, {"growth": 300.0}):
        assert not fuzz.is_good({**good, **worse})
