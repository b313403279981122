"""Pure torch: distributions, networks, bounds. No files, no logging, no config objects."""
