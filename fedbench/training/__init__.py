"""Training: the model of a stage, one local step, a client's or the server's whole local training."""
