"""MLflow: spool and shipper, runs, registry, gate. The only place that imports mlflow."""
