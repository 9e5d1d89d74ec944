"Cards for machines and the crosswalk: valid, never over-long, never filled by what isn't there."

import json
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_examples import CLASSES, HOSTILE, evaluation

from ftnb.foundation.errors import BadInput
from ftnb.foundation.files import read_json, write_json, write_text
from ftnb.foundation.intervals import Interval
from ftnb.foundation.records import Workbench
from ftnb.release import crosswalk as crossing
from ftnb.release.bill_of_materials import bill_of_materials, check_bill, fairness
from ftnb.release.criteria import decide, questions
from ftnb.release.crosswalk import FULL, GAP, PARTLY, crosswalk, crosswalk_items
from ftnb.release.model_card import Findings, Words, model_card
from ftnb.release.sagemaker_card import (
    card_schema,
    card_size,
    check_sagemaker_card,
    for_model_package,
    sagemaker_card,
)
from ftnb.study.assembly import write_cards


def interval(low, estimate, high):
    return Interval(estimate, low, high).to_dict()


GROUP = {"group": "Scots", "rows": 140, "value": interval(0.72, 0.78, 0.84), "detectable": 0.09,
         "against_rest": interval(-0.19, -0.12, -0.05)}
QUESTION = {"grouping": "dialect", "score": "accuracy", "worst": "Scots", "groups": [GROUP],
            "verdict": "disparity found", "sentence": "Accuracy of Scots is 12 points lower."}
FLIPS = interval(0.004, 0.01, 0.02)
BIAS = {
    "verdict": "disparity found", "sentence": "Accuracy of Scots is 12 points lower [5, 19].",
    "worst": {"grouping": "dialect", "score": "accuracy", "group": "Scots",
              "gap": interval(0.05, 0.12, 0.19), "p": 0.002},
    "disparities": [QUESTION],
    "counterfactuals": {"flip_rate": FLIPS, "axes": [
        {"axis": "pronouns", "kind": "symmetric", "pairs": 400, "flip_rate": FLIPS}]},
    "mitigation": [{"sentence": "Reweighing halves the gap."}],
}
EXPLANATION = {
    "method": "integrated gradients",
    "faithfulness": {"comprehensiveness": {"ours": interval(0.4, 0.5, 0.6),
                                           "gain": interval(0.2, 0.3, 0.4)}},
    "agreement": {"shap": interval(0.5, 0.6, 0.7)},
    "top": {"refund": [{"token": "money", "attribution": interval(0.3, 0.4, 0.5)}]},
}
FOUND = Findings(
    decide(["accuracy lower >= 0.80"], {"evaluate": evaluation()}), evaluation(), CLASSES,
    {"recipe": {"epochs": 6, "seed": 1}}, "requests",
    {"prepare.examples": "53" * 32, "prepare.card": "7c" * 32, "train.model": "0f" * 32,
     "prepare.profile": "aa" * 32},
    {"name": "sentence-transformers/all-MiniLM-L6-v2", "architecture": "bert", "sha256": "ab" * 32,
     "licence": "apache-2.0", "parameters": 22_713_216},
    BIAS, EXPLANATION, {"numpy": "2.4.0", "torch": "2.13.0+cpu"})
EMPTY = Findings(decide([], {}), {}, [], {}, "", {})
WORDS = Words("requests", "Routing.", "Judging people.", "English only.", "apache-2.0")


# random findings, as wild as stages could ever leave them

wild = [HOSTILE, "", "群" * 400, "😀" * 99]
words = st.text(st.characters(), max_size=12) | st.sampled_from(wild)
number = st.floats(-2, 2) | st.sampled_from([float("nan"), float("inf"), 0, 1])
measured = st.none() | st.fixed_dictionaries(
    {"estimate": number, "low": number, "high": number}, optional={"level": st.just(0.9)})
group = st.fixed_dictionaries({}, optional={
    "group": words, "rows": st.integers(0, 9999) | st.none(), "value": measured,
    "against_rest": measured, "detectable": number | st.none()})
verdict = st.sampled_from(["disparity found", "no evidence", "insufficient data", HOSTILE])
question = st.fixed_dictionaries({}, optional={
    "grouping": words, "score": words, "worst": words | st.none(), "verdict": verdict,
    "sentence": words, "groups": st.lists(group, max_size=4)})
axis = st.fixed_dictionaries({}, optional={"axis": words, "kind": words, "flip_rate": measured,
                                           "score_gap": measured, "pairs": st.integers(0, 9)})
biases: st.SearchStrategy = st.just({}) | st.fixed_dictionaries({}, optional={
    "verdict": verdict, "sentence": words, "disparities": st.lists(question, max_size=5),
    "worst": st.none() | st.fixed_dictionaries({}, optional={"group": words, "gap": measured}),
    "counterfactuals": st.fixed_dictionaries({}, optional={
        "flip_rate": measured, "axes": st.lists(axis, max_size=3)}),
    "mitigation": st.lists(st.fixed_dictionaries({}, optional={
        "sentence": words, "sentences": st.lists(words, max_size=2)}), max_size=2)})
tokens = st.lists(st.fixed_dictionaries({}, optional={
    "token": words, "attribution": number | measured}), max_size=3)
rates = st.dictionaries(words, measured, max_size=3)
explanations: st.SearchStrategy = st.just({}) | st.fixed_dictionaries({}, optional={
    "method": words, "convergence": st.dictionaries(words, number, max_size=2),
    "faithfulness": st.dictionaries(words, rates, max_size=2),
    "agreement": st.dictionaries(words, measured, max_size=2),
    "top": st.dictionaries(words, tokens, max_size=3)})
evaluations = st.fixed_dictionaries({}, optional={
    "rows": st.integers(0, 10**9),
    "metrics": st.dictionaries(words | st.just("model"), st.dictionaries(
        st.sampled_from(["accuracy", "log_loss"]), measured, max_size=2), max_size=3),
    "classes": st.dictionaries(words, st.dictionaries(words, measured, max_size=3), max_size=3)})
settled = st.dictionaries(words, words | st.integers() | st.booleans(), max_size=4)
findings = st.builds(
    Findings, st.just(FOUND.decision), evaluations, st.lists(words, max_size=4),
    st.builds(lambda s: {"recipe": s}, settled), words,
    st.dictionaries(st.sampled_from(["prepare.examples", "train.model"]), words, max_size=2),
    st.dictionaries(st.sampled_from(["name", "architecture", "licence", "sha256", "source"]),
                    words, max_size=5),
    biases, explanations, st.dictionaries(st.sampled_from(["numpy", "ruamel.yaml", "x-y"]),
                                          st.sampled_from(["1.0", "", "2.1+cu130"]), max_size=3))
said = st.builds(Words, st.just("m") | words.filter(str.strip), words, words, words, words,
                 purpose=words, risk_rating=st.sampled_from(["Unknown", "High"]), risk_reason=words)


@settings(max_examples=60, deadline=None)
@given(said, findings)
def test_whatever_is_found_makes_a_valid_sagemaker_card(w, found):
    card = sagemaker_card(w, found)
    check_sagemaker_card(card)
    assert card_size(card) <= 100_000 and json.loads(json.dumps(card, allow_nan=False)) == card
    assert not found.bias or card["evaluation_details"][1]["name"] == "Bias"


@settings(max_examples=25, deadline=None)
@given(said, findings)
def test_whatever_is_found_makes_a_valid_bill(w, found):
    bill = bill_of_materials(w, found)
    assert bill == bill_of_materials(w, found)
    refs = [d["ref"] for d in bill["dependencies"]]
    parts = [bill["metadata"]["component"], *bill["components"]]
    assert sorted(refs) == sorted(p["bom-ref"] for p in parts) and len(set(refs)) == len(refs)


@settings(max_examples=60, deadline=None)
@given(said, findings)
def test_whatever_is_found_is_escaped_and_never_filled_in(w, found):
    walk = crosswalk(w, found)
    assert "<script" not in walk.markdown() + walk._repr_mimebundle_()["text/html"]
    assert all((x.status == GAP) == (not x.has) for x in walk.lines)
    assert all((x.status == FULL) == bool(x.has and not x.missing) for x in walk.lines)
    plain = Words("m", license=w.license if w.license.isascii() and w.license.isalnum() else "x")
    kept = replace(found, evaluation={}, labels=[], training={}, data="d", base={}, hashes={})
    body = model_card(plain, kept).split("\n---\n", 1)[1]
    assert "<script" not in body and "<img" not in body


# SageMaker

def test_ends_of_intervals_stand_beside_estimates():
    card = sagemaker_card(WORDS, FOUND)
    rows = {m["name"]: m["value"] for d in card["evaluation_details"]
            for g in d["metric_groups"] if "baseline" not in g["name"] for m in g["metric_data"]}
    assert rows["accuracy"] == 0.907
    assert (rows["accuracy.ci_low"], rows["accuracy.ci_high"]) == (0.907 - 0.02, 0.907 + 0.02)
    assert rows["accuracy (dialect = Scots).ci_low"] == 0.72
    assert rows["flip rate (all symmetric swaps).ci_high"] == 0.02
    assert rows["faithfulness comprehensiveness gain"] == 0.3
    assert rows["top tokens of refund"] == "+money"


def test_people_state_the_risk_and_nobody_else():
    assert sagemaker_card(WORDS, FOUND)["intended_uses"]["risk_rating"] == "Unknown"
    rated = sagemaker_card(replace(WORDS, risk_rating="High"), FOUND)
    assert rated["intended_uses"]["risk_rating"] == "High"
    with pytest.raises(BadInput, match="risk rating"): Words("x", risk_rating="none")


def objects(schema, path=()):
    "Every object of the schema that lists its properties."
    if isinstance(schema, dict):
        if "properties" in schema and schema.get("type") == "object": yield path, schema
        for k, v in schema.items(): yield from objects(v, (*path, k))
    elif isinstance(schema, list):
        for k, v in enumerate(schema): yield from objects(v, (*path, k))


def test_no_object_of_the_schema_takes_unknown_keys():
    from jsonschema import Draft7Validator
    found = list(objects(card_schema()))
    assert len(found) > 15 and all(s["additionalProperties"] is False for _, s in found)
    Draft7Validator.check_schema(card_schema())


OVERVIEW = {"model_overview": {"model_name": "x"}}
METRIC = {"name": "a", "type": "number", "value": 1.0}


def grouped(metric, **more):
    return {"evaluation_details": [{"name": "e", "metric_groups": [
        {"name": "g", "metric_data": [metric], **more}]}]}


@pytest.mark.parametrize("wrong", [
    {"overview": {}}, {"model_overview": {"ci": 1}}, {"evaluation_details": [{}]},
    {"evaluation_details": [{"name": "x" * 64}]},
    {"evaluation_details": [{"name": "e", "datasets": ["d"] * 11}]},
    {"evaluation_details": [{"name": "e", "evaluation_observation": "x" * 2097}]},
    {"intended_uses": {"risk_rating": "unknown"}},
    {"intended_uses": {"intended_uses": "x" * 2049}},
    {"training_details": {"training_job_details": {
        "hyper_parameters": [{"name": "a", "value": "1"}] * 101}}},
    {"training_details": {"training_job_details": {
        "hyper_parameters": [{"name": "a", "value": 1}]}}},
    {"additional_information": {"custom_details": {"a": "x" * 1025}}},
    grouped(METRIC, interval=[0, 1]), grouped(METRIC | {"ci_low": 0}),
    grouped(METRIC | {"value": "1"}), grouped(METRIC | {"name": "x" * 256}),
    grouped({"name": "m", "type": "matrix", "value": [[0] * 21]}),
    grouped({"name": "s", "type": "string", "value": "x" * 64}),
    {"evaluation_details": [{"name": "e", "metric_groups": [
        {"name": "g", "metric_data": [METRIC] * 3000}]}]},
], ids=lambda w: "-".join(w))
def test_refuses_what_sagemaker_would_not_take(wrong):
    check_sagemaker_card(OVERVIEW)
    with pytest.raises(BadInput): check_sagemaker_card(OVERVIEW | wrong)


def test_the_longest_words_and_the_most_numbers_still_fit():
    long = "😀" * 5000
    bias = BIAS | {"disparities": [
        QUESTION | {"grouping": f"{long}{k}", "groups": [GROUP | {"group": long}] * 30}
        for k in range(30)]}
    found = replace(FOUND, bias=bias, labels=[long] * 50, data=long,
                    training={"recipe": {f"{long}{k}": long for k in range(300)}})
    card = sagemaker_card(Words(long, long, long, long, purpose=long, risk_reason=long), found)
    assert card_size(card) <= 100_000 and "[cut]" in card["intended_uses"]["intended_uses"]
    few = sagemaker_card(WORDS, replace(FOUND, bias=bias))
    assert "for want of space" in few["additional_information"]["custom_details"]["left out"]
    assert few["evaluation_details"][0]["metric_groups"][0]["name"] == "model"


def test_a_model_package_takes_less_of_the_overview():
    card = for_model_package(sagemaker_card(WORDS, FOUND))
    check_sagemaker_card(card)
    assert set(card["model_overview"]) <= {"model_creator", "model_artifact"}


def test_amazon_s_client_has_the_same_greatest_length():
    import botocore.session
    shapes = botocore.session.get_session().get_service_model("sagemaker")
    most = shapes.shape_for("ModelCardContent").metadata["max"]
    assert most == card_schema()["x-max-characters"]


def test_amazon_s_own_classes_read_it():
    shapes = pytest.importorskip("sagemaker.core.shapes.model_card_shapes")
    shapes.ModelCardContent(**sagemaker_card(WORDS, FOUND))


# the bill of materials

def test_the_bill_holds_slices_and_intervals():
    bill = bill_of_materials(WORDS, FOUND)
    card = bill["metadata"]["component"]["modelCard"]
    rows = {(m["type"], m.get("slice")): m for m in
            card["quantitativeAnalysis"]["performanceMetrics"]}
    assert rows["accuracy", None]["value"] == "0.907"
    ends = rows["accuracy", "dialect = Scots"]["confidenceInterval"]
    assert ends == {"lowerBound": "0.72", "upperBound": "0.84"}
    assert card["considerations"]["fairnessAssessments"] == fairness(FOUND)
    assert fairness(FOUND)[0]["groupAtRisk"] == "dialect = Scots"
    assert "Reweighing" in fairness(FOUND)[0]["mitigationStrategy"]


def test_the_bill_names_data_base_and_packages():
    bill = bill_of_materials(WORDS, FOUND)
    parts = {p["bom-ref"]: p for p in bill["components"]}
    assert parts["data:examples"]["hashes"][0]["content"] == "53" * 32
    assert parts["model:base"]["purl"] == "pkg:huggingface/sentence-transformers/all-MiniLM-L6-v2"
    assert parts["pkg:pypi/torch@2.13.0%2Bcpu"]["version"] == "2.13.0+cpu"
    model = bill["metadata"]["component"]
    assert model["pedigree"]["ancestors"][0]["hashes"][0]["content"] == "ab" * 32
    assert model["hashes"][0]["content"] == "0f" * 32
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]


def test_the_bill_s_number_follows_its_content():
    first, again = bill_of_materials(WORDS, FOUND), bill_of_materials(WORDS, FOUND)
    other = bill_of_materials(replace(WORDS, limitations="French, too."), FOUND)
    assert first == again and first["serialNumber"] != other["serialNumber"]
    assert "timestamp" not in first["metadata"]


@pytest.mark.parametrize("version", ["V1_6", "V1_7"])
def test_the_bill_is_valid_as_later_versions_too(version):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    schema = SchemaVersion[version]
    bill = bill_of_materials(WORDS, FOUND) | {"specVersion": schema.to_version()}
    assert JsonStrictValidator(schema).validate_str(json.dumps(bill)) is None


@pytest.mark.parametrize("wrong", [{"model_card": {}}, {"specVersion": "1.5"},
                                   {"serialNumber": "1"}, {"components": [{"name": "x"}]}])
def test_refuses_what_is_no_bill(wrong):
    with pytest.raises(BadInput, match="CycloneDX"):
        check_bill(bill_of_materials(WORDS, FOUND) | wrong)


def test_what_was_not_looked_at_is_a_risk():
    model = bill_of_materials(Words("x"), EMPTY)["metadata"]["component"]
    named = [r["name"] for r in model["modelCard"]["considerations"]["ethicalConsiderations"]]
    assert len(named) == 3 and "not looked at" in named[0]
    assert "pedigree" not in model and "hashes" not in model


# the crosswalk

def test_every_point_is_there_once():
    act, letter = crosswalk_items()
    numbers = [i["number"] for i in act["items"]]
    assert numbers == [*(f"1({x})" for x in "abcdefgh"), *(f"2({x})" for x in "abcdefgh"),
                       *"3456789"]
    assert {i["number"].split(",")[0] for i in letter["items"]} == {"IV", "V", "VI"}
    assert "SR 26-2" in letter["note"] and "2 December 2027" in act["note"]
    assert all(set(i) == {"number", "asks", "needs", "people"} and len(i["asks"]) < 260
               for d in (act, letter) for i in d["items"])


@pytest.mark.parametrize("name", sorted(crossing.EVIDENCE))
def test_no_point_is_filled_without_its_evidence(name, monkeypatch):
    before = crosswalk(replace(WORDS, purpose="Routing.", risk_rating="Low"), FOUND)
    monkeypatch.setitem(crossing.EVIDENCE, name, lambda words, found: "")
    after = crosswalk(replace(WORDS, purpose="Routing.", risk_rating="Low"), FOUND)
    needing = {(d["name"], i["asks"]) for d in crosswalk_items() for i in d["items"]
               if name in i["needs"]}
    for b, a in zip(before.lines, after.lines, strict=True):
        if (a.document, a.asks) in needing: assert a.status != FULL
        else: assert a == b


def test_people_s_points_stay_people_s():
    walk = crosswalk(replace(WORDS, purpose="Routing."), FOUND)
    status = {(x.document, x.number): x.status for x in walk.lines}
    for n in ("1(b)", "1(e)", "2(f)", "7", "8"): assert status["EU AI Act, Annex IV", n] == GAP
    assert status["EU AI Act, Annex IV", "9"] == PARTLY
    nothing = crosswalk(Words("x"), EMPTY)
    assert nothing.count(FULL) == 0 and nothing.count(PARTLY) == 1


@pytest.mark.parametrize("bias", [
    {}, {"disparities": []}, {"verdict": "insufficient data", "sentence": "Too few rows."},
    {"disparities": [QUESTION | {"verdict": "insufficient data"}], "sentence": "Too few rows."}])
def test_too_few_rows_are_no_evidence_about_groups(bias):
    walk = crosswalk(WORDS, replace(FOUND, bias=bias))
    assert not any("Too few" in h or "disparity" in h for x in walk.lines for h in x.has)
    assert not questions({"bias": {"disparities": None}})


# in the report

def test_the_report_keeps_the_cards_for_machines(tmp_path):
    bench = Workbench.open("release", tmp_path)
    write_text(bench.folder / "crosswalk.md", crosswalk(WORDS, FOUND).markdown())
    write_json(bench.folder / "sagemaker_model_card.json", sagemaker_card(WORDS, FOUND))
    write_json(bench.folder / "bom.cdx.json", bill_of_materials(WORDS, FOUND))
    write_json(bench.folder / "decision.json", {})
    for name, path, kind in [
        ("crosswalk", "crosswalk.md", "ftnb/crosswalk/1"),
        ("sagemaker_card", "sagemaker_model_card.json", "aws/sagemaker-model-card/0.1.0"),
        ("bill_of_materials", "bom.cdx.json", "cyclonedx/1.6"),
        ("decision", "decision.json", "ftnb/decision/1"),
    ]:
        bench.hand_on(name, path, kind)
    receipt = SimpleNamespace(outputs=read_json(bench.folder/"record.json")["outputs"])
    parts = SimpleNamespace(receipts={"release": receipt}, workbench=tmp_path)
    write_cards(parts, tmp_path/"version")  # type: ignore[arg-type]
    kept = sorted(p.name for p in (tmp_path / "version/cards").iterdir())
    assert kept == ["bom.cdx.json", "crosswalk.md", "sagemaker_model_card.json"]
    assert {f.name for f in fields(Findings)} >= {"bias", "explanation", "packages"}
