"""From video files to batches of uint8 clips; never imports jax."""
