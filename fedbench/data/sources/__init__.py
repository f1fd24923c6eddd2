"""Where images come from: one file per source, found by its name, with one subclass of `DataSource`."""
