"""A model as files: build, save, load, package, sign, export."""
