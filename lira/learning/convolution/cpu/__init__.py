"""What serves CPUs: Winograd's tiles, a batch cut to the cache, and several pixels of an image of few channels at a time."""
