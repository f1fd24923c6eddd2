"""The pre-training pool split over the clients."""
