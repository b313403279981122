"""The commands of `vaeline`, a module a topic; `cli.py` puts them together."""
