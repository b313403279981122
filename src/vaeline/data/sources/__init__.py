"""Where images come from: downloads, folders, arrays, synthetic shapes."""
