"""The `vaeline` command of a light install: verify, score, export; in a workspace, the whole command line."""
