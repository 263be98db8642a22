"""What is on disk: configuration, run directory, arrays that any Zarr reader opens."""
