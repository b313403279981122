"""The one look-up of models and versions, and what it reports where there are none."""

import pytest

from registry_fixture import NAME, FilledRegistry
from vaeline.errors import UserError
from vaeline.registry.versions import find_by_digest, find_champion, find_models, find_version, find_version_at

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),  # MLflow, of its own classes
]


def test_a_version_is_found_by_number_alias_address_and_digest(filled: FilledRegistry):
    client = filled.client
    client.set_registered_model_alias(NAME, "champion", "3")
    third = find_version(client, NAME, 3)
    found = [
        find_version(client, NAME, alias="champion"),
        find_champion(client, NAME),
        find_version_at(client, f"models:/{NAME}@champion"),
        find_version_at(client, f"models:/{NAME}/3"),
        find_by_digest(client, NAME, third.tags["vaeline.model_digest"]),
    ]
    assert [str(version.version) for version in found if version] == ["3"] * 5
    again = client.create_model_version(NAME, third.source, tags={"vaeline.model_digest": "d"})
    client.create_model_version(NAME, third.source, tags={"vaeline.model_digest": "d"})
    first = find_by_digest(client, NAME, "d")
    assert first is not None
    assert first.version == again.version, "of two, the first"
    assert find_by_digest(client, NAME, "e") is None
    client.delete_registered_model_alias(NAME, "champion")
    assert find_champion(client, NAME) is None
    assert [model.name for model in find_models(client)] == [NAME]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("m@champion", "allowed: models:/NAME@champion, models:/NAME/VERSION"),
        ("models:/m/0", "allowed: models:/NAME@champion"),
        ("models:/n@champion", f"no model is registered as 'n' in sqlite:.*; registered: {NAME}"),
        ("models:/m' or '1/1", "no model is registered as \"m' or '1\""),
        (f"models:/{NAME}@best", rf"{NAME} has no alias 'best'; it has: champion \(version 2\)"),
        (f"models:/{NAME}/7", f"{NAME} has no version 7; it has: 1, 2, 3, 4"),
    ],
)
def test_an_address_of_nothing_is_reported_with_what_there_is(filled: FilledRegistry, uri: str, words: str):
    filled.client.set_registered_model_alias(NAME, "champion", "2")
    with pytest.raises(UserError, match=words) as raised:
        find_version_at(filled.client, uri)
    assert len(str(raised.value).splitlines()) == 1
