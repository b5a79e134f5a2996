"""Backbones and their weights, frozen features, fine-tuning, run state."""
