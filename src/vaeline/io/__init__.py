"""Files, locks, strict YAML, bounded reads of untrusted files, digests."""
