"""The paper's experiments can be profiled as they are shipped; nothing of their data is needed."""

import pytest
from exhaustive import all_but

from fedbench.config import config_names, resolve_file
from fedbench.config.grid import cells, read_grid
from fedbench.profiling import profile

PAPER = [name for name in config_names("grids") if name.startswith("paper/")]


def test_there_are_the_papers_experiments() -> None:
    names = {"table2", "participation", "dropout", "medmnist", "batch_size", "image_size", "resnet18"}
    assert {name.removeprefix("paper/") for name in PAPER} == names


@pytest.mark.parametrize("name", all_but("paper/table2", PAPER))
def test_lw_fedssl_costs_less_than_fedssl_in_every_experiment(name: str) -> None:
    configs = cells(read_grid(resolve_file(name, "grids")), {"federation": {"rounds": 24}})
    last = {config.strategy.get("preset", config.strategy["name"]): config for config in configs}
    pair = (last["fedssl"], last["lw_fedssl@v4"])  # alike in all but the strategy
    whole, layer = (profile(config, samples=1180, trace=False) for config in pair)
    for figure in ("flops", "download_bytes", "upload_bytes"):
        assert 0 < layer.total(figure, "paper-v4") < whole.total(figure, "paper-v4")
