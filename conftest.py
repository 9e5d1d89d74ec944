"""How nbval runs the notebooks of this repository.

nbdev-clean removes execution counts, and nbval then takes every cell with outputs for failed; a
count of 0 stands in. Stage notebooks are run with the small parameters of params/smoke.yaml,
written below their parameters cell.
"""
from pathlib import Path

import pytest


def smoke_parameters(stage: str) -> str:
    "The smoke study's values for a stage, as Python statements."
    from ruamel.yaml import YAML
    study = YAML(typ="safe").load(Path(__file__).parent/"params"/"smoke.yaml")
    return "".join(f"\n{name} = {value!r}" for name, value in (study.get(stage) or {}).items())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is None: continue
        if "stderr" not in item.parent.skip_compare: item.parent.skip_compare += ("stderr",)
        if cell.get("outputs"): cell.execution_count = 0
        if "#| eval: false" in cell.source: item.add_marker(pytest.mark.skip(reason="eval: false"))
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += smoke_parameters(item.path.stem)
