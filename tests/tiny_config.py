"""The smallest configuration that has every part: seconds for all strategies together."""

TINY = {
    "ssl": {"hidden_dim": 16, "output_dim": 8},
    "encoder": {"name": "vit", "image_size": 8, "patch_size": 4, "width": 16, "depth": 3, "heads": 2},
    "data": {"name": "digits", "num_train": 60},
    "federation": {"num_clients": 3, "rounds": 6, "local_epochs": 1},
    "optimizer": {"base_lr": 1.0e-1, "batch_size": 8},
    "probe": {"epochs": 5},
    "tracking": {"wandb": "disabled"},
    "accelerator": "cpu",
    "threads": 1,
}

# To be laid over it: clients of 40, 5 and 15 images, so that a figure shows how it weighs them. One batch is 8.
UNEVEN = {"data": {"partition": {"name": "quantity", "beta": 2.0}}}
