"""This repository's operation: stages, command line, flow."""
