"""MLflow: the spool and its shipper, runs, the registry and its gate. The only place that imports mlflow."""
