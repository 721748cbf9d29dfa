"""Masked-video-autoencoder pretraining in JAX: VideoMAE V2 and its relatives under one sharded trainer."""

__version__ = "0.1.0"
