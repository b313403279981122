"""One module a DVC stage: read, call, write; `runner.py` starts them."""
