"""The Prefect flows and their deployments."""
