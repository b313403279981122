"""Atomic writes, kernel locks, strict YAML, bounded reads, digests, git, progress, the workspace's paths."""
