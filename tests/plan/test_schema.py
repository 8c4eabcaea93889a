"""The schema: every key is described, and config/README.md says so."""

from pathlib import Path

import config_readme

from rfatlas.plan import schema

ROOT = Path(__file__).resolve().parents[2]


def test_every_key_of_the_schema_is_described_and_has_a_default():
    found = dict(config_readme.keys())
    assert "models.<name>.input.crop" in found and len(found) > 40
    for key, node in found.items():
        assert node["description"].strip(), key
        assert "default" in node, key
        if "properties" not in node:
            assert node["x-reruns"], key


def test_the_schema_allows_no_other_keys_anywhere():
    def closed(node):
        if "properties" in node:
            assert node["additionalProperties"] is False
            for child in node["properties"].values():
                closed(child)
        elif isinstance(node.get("additionalProperties"), dict):
            closed(node["additionalProperties"])

    closed(schema.schema())


def test_every_default_is_allowed_by_its_own_schema():
    import jsonschema

    for key, node in config_readme.keys():
        if "required" in node or "minProperties" in node:
            continue
        errors = list(jsonschema.Draft202012Validator(node).iter_errors(node["default"]))
        assert errors == [], key


def test_the_documentation_of_the_config_is_that_of_the_schema():
    text = (ROOT / "config" / "README.md").read_text()
    assert text.endswith(config_readme.document() + "\n"), (
        "the tables in config/README.md are not those of the schema; "
        "write them anew: python tests/config_readme.py"
    )
    for key, node in config_readme.keys():
        if "properties" not in node:
            assert f"`{key}`" in text
