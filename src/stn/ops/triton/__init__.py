"""The warp in Triton, for GPUs."""
