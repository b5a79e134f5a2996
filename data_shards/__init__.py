"""Labelled faces at rest and in motion: tables, splits, shards, manifest, loader, forgeries."""
