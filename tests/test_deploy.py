"""What a team starts: pinned as the project is, closed to other machines, and without a secret."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())


def test_servers_are_of_the_versions_that_the_project_pins():
    pins = (ROOT / "pyproject.toml").read_text()
    prefect = re.search(r"^FROM prefecthq/prefect:([\d.]+)-", (DEPLOY / "prefect.Dockerfile").read_text())
    mlflow = re.search(r"mlflow\[auth\]==([\d.]+)'", (DEPLOY / "mlflow.Dockerfile").read_text())
    assert mlflow
    assert prefect
    assert f'"prefect=={prefect[1]}"' in pins
    assert f'"mlflow=={mlflow[1]}"' in pins


def test_what_is_published_is_on_loopback_unless_told_and_asks_for_a_password():
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("${VAELINE_BIND:-127.0.0.1}:") for port in ports)
    assert COMPOSE["services"]["mlflow"]["environment"]["VAELINE_GUARDED_APP"] == "mlflow.server.auth:create_app"
    assert "PREFECT_SERVER_API_AUTH_STRING" in COMPOSE["services"]["prefect"]["environment"]
    units = [path.read_text() for path in sorted((DEPLOY / "systemd").glob("*.service"))]
    assert sum("--host 127.0.0.1" in unit for unit in units) == 2


def test_secrets_come_from_the_environment_and_are_required():
    secret = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING|URI|CONNECTION_URL")
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            if secret.search(name) and "://" in value and "@" in value:
                assert re.search(r":\$\{[A-Z_]+:\?\}@", value), name
            elif secret.search(name) and "://" not in value:
                assert re.fullmatch(r"\$\{[A-Z_]+:\?\}", value), name
    example = (DEPLOY / "vaeline.env.example").read_text()
    assert not [line for line in example.splitlines() if secret.search(line) and not line.endswith("=")]
