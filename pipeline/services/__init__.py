"""Servers, worker, workspace lock, child processes, DVC as a command."""
