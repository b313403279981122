"""Have Prefect send a web hook where a run fails, and where a model becomes champion.

    PREFECT_API_URL=http://127.0.0.1:4200/api python examples/notify.py https://hooks.example.org/...

The address gets a POST of JSON, `{"text": "..."}`, as Slack, Mattermost and others take it. Run again with another
address, it replaces what it made. Both automations are on Prefect's page Automations, to be edited or paused there.
"""

import sys
from datetime import timedelta
from typing import Any

from prefect.automations import Automation, AutomationCore, CallWebhook, EventTrigger, Posture
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client

FAILED = {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}
# Jinja expressions, which the server evaluates
RUN = "flow_run.name ~ ' ended ' ~ flow_run.state.name ~ ': ' ~ flow_run.state.message"
CHAMPION = "event.resource.id ~ ' has a new champion: ' ~ (event.payload['reasons'] | join('; '))"


def automation(name: str, events: set[str], match: dict[str, Any], text: str, webhook: Any) -> Automation:
    """One that posts a text at each of some events."""
    at_each = {"posture": Posture.Reactive, "threshold": 1, "within": timedelta(0)}
    action = CallWebhook(block_document_id=webhook, payload='{"text": {{ (' + text + ") | tojson }}}")
    return Automation(name=name, trigger=EventTrigger(expect=events, match=match, **at_each), actions=[action])


def main() -> None:
    """Save the address, replace the automations."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    webhook = Webhook(method="POST", url=sys.argv[1]).save("vaeline", overwrite=True)
    wanted = [
        automation("vaeline: a run failed", FAILED, {"prefect.resource.id": "prefect.flow-run.*"}, RUN, webhook),
        automation("vaeline: a new champion", {"vaeline.promoted"}, {}, CHAMPION, webhook),
    ]
    with get_client(sync_client=True) as client:
        for new in wanted:
            for old in client.read_automations_by_name(new.name):
                client.delete_automation(old.id)
            client.create_automation(AutomationCore.model_validate(new.model_dump(exclude={"id"})))
            print(new.name)


if __name__ == "__main__":
    main()
