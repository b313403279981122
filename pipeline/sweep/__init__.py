"""Sweeps: many experiments on one baseline, several at once, ranked in the end."""
