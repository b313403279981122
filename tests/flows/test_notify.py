"""Run names and tags, links to MLflow in Prefect's report, and the web hooks of examples/notify.py."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from uploads import until
from workspaces import ROOT, ask, execute, vaeline


@pytest.fixture
def received() -> Iterator[tuple[str, list[str]]]:
    """The address of a web hook, and the texts that it got."""
    texts: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook", texts
        server.shutdown()


@pytest.mark.slow
def test_runs_are_named_reports_link_to_mlflow_and_web_hooks_get_failures_and_champions(
    toy: Path, prefect_api: str, received: tuple[str, list[str]]
):
    (address, texts), notify = received, str(ROOT / "examples/notify.py")
    for _ in range(2):  # the second replaces the first
        execute(sys.executable, notify, address, cwd=toy, env={"PREFECT_API_URL": prefect_api})
    assert len(ask(prefect_api, "/automations/filter", {})) == 2
    dvc_yaml = (toy / "dvc.yaml").read_text()
    (toy / "registration.txt").write_text(
        json.dumps({"decision": "promoted", "reasons": ["no <b>[c](javascript:c)"], "name": "toys", "digest": "d"})
    )
    register = "mkdir -p reports && cp registration.txt reports/registration.json"
    (toy / "dvc.yaml").write_text(f"{dvc_yaml}  register: {{cmd: '{register}', deps: [model.txt, registration.txt]}}\n")
    vaeline("run", cwd=toy, PREFECT_API_URL=prefect_api)
    until(lambda: texts, 60)
    assert texts == ["vaeline.model.toys has a new champion: no <b>[c](javascript:c)"]
    (toy / "train.sh").write_text("echo error: a.png: truncated >&2; exit 1\n")
    vaeline("run", cwd=toy, check=False, PREFECT_API_URL=prefect_api)
    until(lambda: len(texts) > 1, 60)
    name = "digits z20 mixture"
    assert texts[1].startswith(f"{name} ended Failed: stage 'train' failed: a.png: truncated")
    runs = ask(prefect_api, "/flow_runs/filter", {"flow_runs": {"name": {"any_": [name]}}})
    assert [run["tags"] for run in runs] == [["vaeline-fashion-mnist"]] * 2
    stages = ask(prefect_api, "/task_runs/filter", {})
    assert stages and not any(stage["tags"] for stage in stages), "for each, Prefect would ask for its limit first"
    (report,) = ask(prefect_api, "/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["vaeline-report"]}}})
    assert "no &lt;b&gt;&#91;c](javascript:c)" in report["data"], "text, not a page of whoever named it"
    assert "(http://127.0.0.1:5000/#/experiments?workflowType=machine_learning)" in report["data"]
