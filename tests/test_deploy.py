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


def test_servers_are_guarded_published_on_loopback_unless_told_and_ask_for_a_password():
    services = COMPOSE["services"]
    units = [path.read_text() for path in (DEPLOY / "systemd").glob("*.service")]
    commands = [services[name]["command"] for name in ("mlflow", "prefect")]
    commands += [command for unit in units for command in re.findall(r"ExecStart=(.*)", unit)]
    (worker,) = [command for command in commands if "guarded_app:create_app" not in command]
    assert worker.endswith("/vaeline worker")
    assert sum("--host 127.0.0.1 " in unit for unit in units if worker not in unit) == 2 == len(units) - 1
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports == [f"${{VAELINE_BIND:-127.0.0.1}}:{port}:{port}" for port in (5000, 4200)]
    assert services["mlflow"]["environment"]["VAELINE_GUARDED_APP"] == "mlflow.server.auth:create_app"
    assert "PREFECT_SERVER_API_AUTH_STRING" in services["prefect"]["environment"]


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
