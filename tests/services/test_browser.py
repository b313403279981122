"""A real browser: a page of another origin neither reads nor changes anything, and the servers' own pages work."""

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.services.servers import free_port, mlflow_server, started, wait_until_ready
from vaeline.io.workspace import current_workspace
from vaeline.tracking.connection import connect, experiment_id, view_address
from workspaces import ask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
# each wish is tried as a page may: with CORS, without, as a script, in a frame, over a websocket
ATTACK = """<!doctype html><pre id=out></pre><iframe src="{prefect}/"></iframe><script>
const found = {{}};
const late = () => new Promise((_, reject) => setTimeout(reject, 1000));
const attempt = async (name, wish) => {{
  try {{ found[name] = await Promise.race([wish(), late()]) }} catch (error) {{ found[name] = "refused" }}
}};
const json = {{method: "POST", headers: {{"Content-Type": "application/json"}}, body: '{{"name": "planted"}}'}};
const simple = {{method: "POST", mode: "no-cors", body: '{{"name": "planted"}}'}};
const read = address => fetch(address).then(answer => answer.text());
const script = address => new Promise((resolve, reject) => {{
  const node = document.createElement("script");
  node.onload = () => resolve("loaded"); node.onerror = reject; node.src = address; document.body.append(node);
}});
const socket = address => new Promise((resolve, reject) => {{
  const node = new WebSocket(address); node.onopen = () => resolve("open"); node.onerror = reject;
}});
const start = "{prefect}/api/deployments/{deployment}/create_flow_run";
const create = "{mlflow}/api/2.0/mlflow/experiments/create";
(async () => {{
  await attempt("own", () => read("own.txt"));
  await attempt("start", () => fetch(start, json).then(answer => answer.text()));
  await attempt("start blind", () => fetch(start, simple).then(answer => answer.text()));
  await attempt("read", () => read("{prefect}/api/deployments/{deployment}"));
  await attempt("read script", () => script("{prefect}/api/deployments/{deployment}"));
  await attempt("listen", () => socket("{prefect}/api/events/out".replace("http", "ws")));
  await attempt("mlflow", () => read("{mlflow}/api/2.0/mlflow/experiments/search?max_results=9"));
  await attempt("mlflow page", () => read("{mlflow}/ajax-api/2.0/mlflow/experiments/search?max_results=9"));
  await attempt("mlflow write", () => fetch(create, json).then(answer => answer.text()));
  await attempt("mlflow write blind", () => fetch(create, simple).then(answer => answer.text()));
  document.getElementById("out").textContent = JSON.stringify(found);
}})();
</script>"""


@pytest.fixture
def mlflow(store: Path) -> Iterator[str]:
    """The address of MLflow's server, as `vaeline ui` and `vaeline up` start it."""
    experiment_id(connect(current_workspace()), "of the shell", current_workspace())
    server = mlflow_server(current_workspace(), free_port(0))
    with started(server) as process:
        wait_until_ready(server, process)
        yield server.address


def test_a_page_of_another_origin_neither_starts_a_run_nor_reads_one_nor_reaches_mlflow(
    browse: Callable[[str], str], mlflow: str, prefect_api: str, tmp_path: Path
):
    flow = ask(prefect_api, "/flows/", {"name": "a browser's"})["id"]
    deployment = ask(prefect_api, "/deployments/", {"name": "target", "flow_id": flow})["id"]
    prefect, pages = prefect_api.removesuffix("/api"), tmp_path / "pages"
    pages.mkdir()
    (pages / "own.txt").write_text("read")
    (pages / "index.html").write_text(ATTACK.format(prefect=prefect, mlflow=mlflow, deployment=deployment))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(pages))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for host in ("127.0.0.1", "localhost", "evil.example"):
            document = browse(f"http://{host}:{server.server_port}/")
            found = json.loads(document.partition('<pre id="out">')[2].partition("</pre>")[0])
            assert len(found) == 10, host
            unread = dict.fromkeys(("start blind", "mlflow write blind"), "")  # whose answers no page may read
            assert found in [dict.fromkeys(found, "refused") | {"own": "read"} | more for more in ({}, unread)], host
        server.shutdown()
    for address in (prefect, mlflow):  # a name that was pointed here after its page was loaded
        assert "only pages of this server may use it" in browse(address.replace("127.0.0.1", "evil.example"))
    assert ask(prefect_api, "/flow_runs/filter", {"flows": {"id": {"any_": [flow]}}}) == []
    names = {experiment.name for experiment in connect(current_workspace()).search_experiments()}
    assert names == {"Default", "of the shell"}


def test_the_servers_own_pages_show_what_is_there(browse: Callable[[str], str], mlflow: str, prefect_api: str):
    flow = ask(prefect_api, "/flows/", {"name": "shown-in-the-browser"})["id"]
    ask(prefect_api, "/deployments/", {"name": "shown-deployment", "flow_id": flow})
    port = prefect_api.split(":")[2].partition("/")[0]
    assert "of the shell" in browse(f"{mlflow}/?workflowType=machine_learning#/experiments")
    client = connect(current_workspace())
    run = client.create_run("1")
    for name in ("train/elbo", "validation/elbo"):
        client.log_metric(run.info.run_id, name, -1.0, step=1)
    view = browse(f"{mlflow}{view_address('1')}")
    assert "ELBO, NLL, bits/dim" in view, "the saved view's name"
    assert view.index("ELBO = reconstruction - KL") < view.index(">validation"), "its section comes first"
    assert "shown-deployment" in browse(f"http://localhost:{port}/deployments")
