"""The pinned packages work together: a server that cannot insert scheduled runs only logs it."""

import re
import time

from vaeline.io.yaml_config import read_yaml
from workspaces import ROOT, ask


def test_the_server_plans_the_nightly_runs(prefect_api: str):
    (nightly, *_) = read_yaml(ROOT / "pipeline" / "flows" / "prefect.yaml")["deployments"]
    (schedule,) = nightly["schedules"]
    flow = ask(prefect_api, "/flows/", {"name": "planned"})["id"]
    body = {"name": "nightly", "flow_id": flow, "schedules": [{"schedule": schedule, "active": True}]}
    deployment = ask(prefect_api, "/deployments/", body)["id"]
    deadline = time.monotonic() + 120
    wanted = {"deployments": {"id": {"any_": [deployment]}}}
    while not (runs := ask(prefect_api, "/flow_runs/filter", wanted)):
        assert time.monotonic() < deadline, "nothing is planned"
        time.sleep(0.5)
    assert all(run["auto_scheduled"] for run in runs)
    assert {run["expected_start_time"][11:16] for run in runs} == {"03:00"}


def test_every_server_of_a_team_is_guarded_and_listens_on_loopback_unless_configured_otherwise():
    services = read_yaml(ROOT / "deploy" / "docker-compose.yml")["services"]
    units = [path.read_text() for path in (ROOT / "deploy" / "systemd").glob("*.service")]
    commands = [services[name]["command"] for name in ("mlflow", "prefect")]
    commands += [command for unit in units for command in re.findall(r"ExecStart=(.*)", unit)]
    (worker,) = [command for command in commands if "guarded_app:create_app" not in command]
    assert worker.endswith("/vaeline worker")
    assert all("--host 127.0.0.1 " in unit for unit in units if worker not in unit)
    published = [port for name in services for port in services[name].get("ports", [])]
    assert [port.partition(":-")[2] for port in published] == ["127.0.0.1}:5000:5000", "127.0.0.1}:4200:4200"]
