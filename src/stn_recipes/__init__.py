"""Training recipes for spatial transformers, on Lightning. `stn` never imports this package."""
