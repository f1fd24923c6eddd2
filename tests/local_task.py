"""What a client trains at a stage, as it is when the download is loaded and nothing else has happened."""

import copy

from fedbench.config import Config
from fedbench.federation.experiment import prepare
from fedbench.training.local import LocalTask, Received
from fedbench.training.model import build_model


def local_task(config: Config, stage: int = 1) -> LocalTask:
    """The task of stage `stage` (1-based), whose received values are the model's initial ones."""
    experiment = prepare(config)
    plan = experiment.plans[stage - 1]
    model = build_model(config, plan.depth)
    terms = (experiment.strategy, *experiment.mechanisms)
    task = LocalTask(
        model, plan.trained_groups, terms, config.optimizer, experiment.views, experiment.dataset.train_images
    )
    task.received = Received(copy.deepcopy(model.online_state()), task.images.device)
    return task
