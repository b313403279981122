"""One module a DVC stage: read, call, write."""
