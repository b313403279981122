"""The pinned packages work together: a server that cannot insert scheduled runs only logs it."""

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
