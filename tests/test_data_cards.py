"Data cards: made from the data alone, kept for people, honest about what they are about."

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from ftnb.data.cards import (
    PARTS,
    CardFacts,
    Look,
    association,
    check_before,
    check_card,
    croissant,
    head_of,
    kept_parts,
    look,
    read_head,
    render,
    size_category,
    typical,
    write_card,
    yaml_problems,
)
from ftnb.foundation.errors import BadInput

ROOT = Path(__file__).resolve().parent.parent
SEEN: list[Look] = []
CARDS = sorted((ROOT / "data_cards").glob("*.md"))


@pytest.fixture
def examples(tmp_path) -> Path:
    folder = tmp_path / "examples"
    folder.mkdir()
    for split, n in (("train", 30), ("validation", 6), ("test", 9)):
        rows = [
            {
                "id": f"{split}{i}",
                "text": f"Text number {i} | of <b>{split}</b>\nwith ünïcode",
                "label": "ab"[i % 2],
                "age": i if i % 3 else None,
            }
            for i in range(n)
        ]
        (folder / f"{split}.jsonl").write_text(
            "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8"
        )
    return folder


FACTS = CardFacts(
    "mine",
    title="My: data #1",
    licence="cc-by-4.0",
    language="en de",
    summary='A "summary": with marks.',
    transformations=[
        {"step": "x | y", "rows_before": 50, "rows_after": 45, "detail": "<!-- keep: trap -->"}
    ],
    sensitivity={"email": {"rows": 1, "values": 2}},
    tags=["small"],
)


def test_a_card_is_right_and_comes_out_again(examples, tmp_path):
    card = write_card(FACTS, examples, tmp_path / "cards")
    assert check_card(card, examples) == []
    first = card.read_bytes(), card.with_name("mine.croissant.json").read_bytes()
    write_card(FACTS, examples, tmp_path / "cards")
    assert (card.read_bytes(), card.with_name("mine.croissant.json").read_bytes()) == first
    head = read_head(card)
    assert head["pretty_name"] == "My: data #1" and head["dataset_info"]["splits"][0] == {
        "name": "train",
        "num_bytes": (examples / "train.jsonl").stat().st_size,
        "num_examples": 30,
    }
    assert {f["name"]: f["dtype"] for f in head["dataset_info"]["features"]}["age"] == "int64"


def test_the_hub_library_reads_it(examples, tmp_path):
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(write_card(FACTS, examples, tmp_path))
    assert card.data.to_dict()["license"] == "cc-by-4.0" and "## Sensitivity" in card.text


def test_croissant_loads_the_rows(examples):
    import mlcroissant

    path = examples / "mine.croissant.json"
    path.write_text(json.dumps(croissant(FACTS, look(examples))))
    rows = list(mlcroissant.Dataset(jsonld=str(path)).records("test"))
    assert len(rows) == 9 and rows[1]["test/text"].decode().startswith("Text number 1 | of <b>")


def test_nothing_of_this_machine_in_a_card(examples, tmp_path):
    card = write_card(FACTS, examples, tmp_path)
    assert str(tmp_path) not in card.read_text() + card.with_name("mine.croissant.json").read_text()


HUMAN = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.just("\n"), max_size=200
).map(lambda t: t.replace("<!--", "").strip("\n").replace("\u2028", "").replace("\x85", ""))


@given(st.dictionaries(st.sampled_from([*PARTS, "own-part"]), HUMAN, max_size=4))
@settings(deadline=None, max_examples=30)
def test_what_people_write_stays(human):
    text = render(FACTS, SEEN[0], human)
    kept = kept_parts(text)
    assert all(kept[name] == written for name, written in human.items())
    assert render(FACTS, SEEN[0], kept) == text


@pytest.fixture(scope="module", autouse=True)
def seen(tmp_path_factory):
    file = tmp_path_factory.mktemp("seen") / "rows.jsonl"
    file.write_text(
        '{"id": "1", "text": "one", "label": "a"}\n{"id": "2", "text": "two", "label": "b"}\n'
    )
    SEEN.append(look(file))


@pytest.mark.parametrize(
    "harm",
    [
        lambda c: c.replace("<!-- /keep -->", "", 1),
        lambda c: c.replace("<!-- keep: use -->", "<!-- keep: purpose -->"),
        lambda c: c.replace("<!-- keep: use -->", "<!-- keep use -->"),
        lambda c: c.replace("<!-- /keep -->", "<!-- / keep-->", 1),
        lambda c: c.replace("<!-- keep: use -->", "x <!-- keep: use -->"),
        lambda c: c + "\nA remark at the end.\n",
        lambda c: c.replace("license: cc-by-4.0", "license: mit"),
        lambda c: c[: len(c) // 2],
        lambda c: "My own card.\n",
        lambda c: "",
    ],
)
def test_damage_is_refused_and_nothing_lost(examples, tmp_path, harm):
    card = write_card(FACTS, examples, tmp_path)
    damaged = harm(card.read_text())
    card.write_text(damaged)
    beside = card.with_name("mine.croissant.json").read_bytes()
    with pytest.raises(BadInput) as e:
        write_card(FACTS, examples, tmp_path)
    assert (
        e.value.fix
        and card.read_text() == damaged
        and card.with_name("mine.croissant.json").read_bytes() == beside
    )


def test_other_line_ends_are_no_damage(examples, tmp_path):
    card = write_card(FACTS, examples, tmp_path)
    text = card.read_text().replace(f"*{PARTS['use']}*", "Routing.\nOnly.")
    card.write_bytes(text.replace("\n", "\r\n").encode())
    assert (
        check_before(card)["use"] == "Routing.\nOnly."
        and write_card(FACTS, examples, tmp_path).read_text() == text
    )


def test_a_card_in_latin_1_is_refused(examples, tmp_path):
    card = write_card(FACTS, examples, tmp_path)
    card.write_bytes("ünï".encode("latin-1"))
    with pytest.raises(BadInput, match="UTF-8"):
        write_card(FACTS, examples, tmp_path)


def test_other_data_are_noticed(examples, tmp_path):
    card = write_card(FACTS, examples, tmp_path)
    other = shutil.copytree(examples, tmp_path / "other")
    (other / "test.jsonl").unlink()
    assert any("test" in d for d in check_card(card, other))
    with (examples / "train.jsonl").open("a") as f:
        f.write("\n")
    assert any("train" in d for d in check_card(card, examples))
    card.with_name("mine.croissant.json").unlink()
    assert any("missing" in d for d in check_card(card))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(name="../x"),
        dict(name=""),
        dict(name="a/b"),
        dict(licence="GPL"),
        dict(task="classify"),
    ],
)
def test_wrong_facts(wrong):
    with pytest.raises(BadInput):
        CardFacts(**{"name": "x", **wrong})


def test_yaml_is_checked():
    head = head_of(FACTS, SEEN[0])
    assert yaml_problems(head) == []
    changes: tuple[dict, ...] = (
        {"license": "free"},
        {"task_categories": ["nope"]},
        {"colour": 1},
        {"language": ["English"]},
        {"size_categories": []},
    )
    for change in changes:
        assert yaml_problems({**head, **change})
    assert yaml_problems("text") and [size_category(10**k) for k in (2, 3, 5, 13)] == [
        "n<1K",
        "1K<n<10K",
        "100K<n<1M",
        "n>1T",
    ]


def test_private_data_are_not_shown(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(
            json.dumps({"text": f"Write to jane{i}@example.org", "label": "a"}) + "\n"
            for i in range(5)
        )
    )
    assert "@example.org" not in write_card(CardFacts("p"), file, tmp_path).read_text()


def test_odd_data(tmp_path):
    file = tmp_path / "train.jsonl"
    for rows in (
        [],
        [{"text": "", "label": ""}],
        [{"text": "!!", "label": "a", "list": [1], "mixed": 1}, {"label": "b", "mixed": "x"}],
    ):
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))
        assert check_card(write_card(CardFacts("odd"), file, tmp_path), file) == []
    with pytest.raises(BadInput):
        look(tmp_path / "nothing-here")


def test_typical_and_linked():
    rows = [{"text": f"restart the server {i}"} for i in range(20)] + [
        {"text": "zebras like grass"}
    ]
    common, odd = typical(rows)
    assert odd[-1]["text"].startswith("zebras") and "server" in common[0]["text"]
    assert association({("x", "a"): 10}) == 0 and association(
        {(v, v): 50 for v in "abc"}
    ) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("card", CARDS, ids=lambda p: p.stem)
def test_committed_cards_are_sound(card):
    assert check_card(card) == []
    assert os.fspath(Path.home()) not in card.read_text()


def studies() -> dict[str, Path]:
    "Committed cards of data that ftnb brings along, and the study that each belongs to."
    found: dict[str, Path] = {}
    for study in sorted((ROOT / "params").glob("*.yaml")):
        told = (
            YAML(typ="safe", pure=True).load(study.read_text(encoding="utf-8")).get("prepare", {})
        )
        name = told.get("dataset_name", told.get("source", "requests"))
        if (
            told.get("source", "requests") in ("requests", "operations")
            and (ROOT / "data_cards" / f"{name}.md").exists()
        ):
            found.setdefault(name, study)
    if "requests" in found:
        found["requests"] = ROOT / "params" / "quickstart.yaml"
    return found


@pytest.mark.parametrize("name, study", studies().items())
def test_committed_cards_are_about_their_data(name, study, site, tmp_path, monkeypatch):
    "The data are prepared again as the study says; what only looks at them is left out."
    told = YAML(typ="safe", pure=True).load(study.read_text(encoding="utf-8")).get("prepare", {})
    notebook = json.loads((ROOT / "nbs" / "stages" / "prepare.ipynb").read_text(encoding="utf-8"))
    monkeypatch.chdir(ROOT / "nbs" / "stages")
    space: dict = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        exec("".join(cell["source"]), space)
        if "parameters" in cell["metadata"].get("tags", []):
            space |= {**told, "label_noise": "off", "languages": False}
        if "write_splits(" in "".join(cell["source"]):
            break
    assert (
        check_card(ROOT / "data_cards" / f"{name}.md", site.workbench / "prepare" / "examples")
        == []
    )
