"""MLflow registry: gate, champion, history, lineage."""
