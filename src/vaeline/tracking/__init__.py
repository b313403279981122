"""MLflow runs: the outbox and its uploader, runs, provenance."""
