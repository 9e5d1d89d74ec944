"Likelihoods equal those computed token by token; statistics find what a hand-made scorer prefers."
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from ftnb.bias.identity import load_terms
from ftnb.bias.probes import (
    Coreference,
    Measure,
    bbq,
    bias_score,
    crows_pairs,
    in_spans,
    load_language_model,
    main_words,
    named,
    probe_rows,
    read_bbq,
    read_winobias,
    resolved,
    shared_spans,
    target_of,
    whole,
    winobias,
)
from ftnb.bias.summaries import meanings, probe_scores, probed
from ftnb.evaluate.comparisons import sign_flip
from ftnb.evaluate.predict import Classifier, Rows
from ftnb.foundation.errors import BadInput

TEXTS = ["The nurse said that he was late.", "A short one", "", "Ärger über 👩‍⚕️ und 他",
         "Her invoice was unreadable, honestly, and nobody answered for weeks."]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "Folders of a masked and a causal model of random weights with the embedded tokenizer."
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    from ftnb.train.encoders import embedded_encoder
    tokenizer = AutoTokenizer.from_pretrained(embedded_encoder())
    torch.manual_seed(0)
    size: dict[str, Any] = {"vocab_size": len(tokenizer), "initializer_range": .5}
    nets = {"masked": BertForMaskedLM(BertConfig(**size, hidden_size=16, num_hidden_layers=2,
                                                 num_attention_heads=2, intermediate_size=32)),
            "causal": GPT2LMHeadModel(GPT2Config(**size, n_embd=16, n_layer=2, n_head=2,
                                                 n_positions=64, bos_token_id=101,
                                                 eos_token_id=102))}
    folders = {}
    for kind, net in nets.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        net.save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    return folders


def by_hand(m, text, keep=lambda start, end: True):
    "Token by token, one forward pass each."
    import torch
    code = m.tokenizer(text, return_offsets_mapping=True)
    ids, total = code["input_ids"], 0.
    for p in range(1, len(ids) - 1):
        if not keep(*code["offset_mapping"][p]): continue
        x = torch.tensor([ids if m.kind == "masked" else ids[:p]])
        if m.kind == "masked": x[0, p] = m.tokenizer.mask_token_id
        with torch.inference_mode(): z = m.model(input_ids=x).logits[0]
        total += float(torch.log_softmax(z[p if m.kind == "masked" else -1].double(), -1)[ids[p]])
    return total


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_likelihoods_token_by_token(models, kind):
    m = load_language_model(str(models[kind]), batch_size=3)
    assert m.kind == kind
    assert np.allclose(m(TEXTS), [by_hand(m, t) for t in TEXTS], rtol=1e-4, atol=1e-4)
    spans = [[(4, 9)], [(2, 11)], [], [(0, 5)], [(0, 3), (12, 30)]]
    inside = lambda s: lambda a, b: any(a < e and b > x for x, e in s)
    theirs = [by_hand(m, t, inside(s)) for t, s in zip(TEXTS, spans, strict=True)]
    assert np.allclose(m(TEXTS, spans), theirs, rtol=1e-4, atol=1e-4)
    assert np.allclose(m(TEXTS[::-1])[::-1], m(TEXTS), rtol=1e-4, atol=1e-4)


def test_texts_longer_than_the_model(models):
    m = load_language_model(str(models["causal"]))
    assert m.max_tokens == 64
    scores = m(["word " * 100, "word"])
    assert np.isnan(scores[0]) and np.isfinite(scores[1])


def test_models_that_cannot_say_what_is_likely(models, tmp_path):
    with pytest.raises(BadInput, match="no head for masked"):
        load_language_model("embedded", kind="masked")
    with pytest.raises(BadInput, match="doesn't say whether"): load_language_model("embedded")
    with pytest.raises(BadInput, match="not pinned"): load_language_model("owner/name", "main")
    with pytest.raises(BadInput, match="no such model folder"):
        load_language_model(str(tmp_path/"none"))


def test_spans_by_tokens():
    offsets = np.array([[0, 0], [0, 3], [4, 7], [7, 9], [0, 0]])
    assert in_spans(offsets, [(0, 3), (8, 9)]).tolist() == [False, True, False, True, False]
    assert not in_spans(offsets, []).any()
    a, b = shared_spans("Gay men dance well", "Straight men dance well")
    assert [x[1] - x[0] for x in a] == [3, 5, 4] and len(a) == len(b)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab .", max_size=20), st.text(alphabet="ab .", max_size=20))
def test_shared_words_are_the_same_words(a, b):
    x, y = shared_spans(a, b)
    assert [a[s:e] for s, e in x] == [b[s:e] for s, e in y]
    assert shared_spans(a, a)[0] == shared_spans(a, a)[1]


def pairs_file(folder, n):
    lines = ["sent_more,sent_less,bias_type"]
    lines += [f"The Bla{i} sleep.,The Gru{i} sleep.,{'even' if i % 2 == 0 else 'odd'}"
              for i in range(n)]
    (folder/"pairs.csv").write_text("\n".join(lines))
    return folder/"pairs.csv"


@pytest.mark.parametrize("rate", [.5, .8])
def test_a_known_preference_is_covered(tmp_path, rate):
    file, hits = pairs_file(tmp_path, 120), []
    for seed in range(60):
        likes = np.random.default_rng(seed).random(120) < rate
        scorer = lambda texts, spans, likes=likes: np.array(
            [float(("Bla" in t) == likes[int(t[7:-7])]) for t in texts])
        probe = crows_pairs(scorer, file, shared=False)
        hits.append(rate in probe.measures[0].value)
    assert np.mean(hits) > .87
    assert {m.group for m in probe.measures} == {"all", "even", "odd"}
    assert json.dumps(probe.to_dict(), allow_nan=False)


def test_ties_and_long_texts_are_set_aside(tmp_path):
    file = pairs_file(tmp_path, 10)
    scorer = lambda texts, spans: np.array([np.nan if "Bla3" in t else 0. if "7" in t else
                                            float("Bla" in t) for t in texts])
    probe = crows_pairs(scorer, file)
    assert probe.measures[0].rows == 8 and "2 of 10 pairs" in probe.said[-1]
    with pytest.raises(BadInput, match="no pair can be compared"):
        crows_pairs(lambda texts, spans: np.zeros(len(texts)), file)


def test_models_of_random_taste_are_not_called_biased():
    "Pairs that exchange the same word are one draw."
    rng, word = np.random.default_rng(1), np.repeat(np.arange(25), 12)
    first = rng.normal(size=(300, 25))[:, word] + .5 * rng.normal(size=(300, 300)) > 0
    by_word = np.mean([sign_flip(f * 2. - 1, word, 300) < .05 for f in first])
    assert by_word < .085 < np.mean([binomtest(int(f.sum()), 300).pvalue < .05 for f in first])
    assert main_words(["a b", "c b"], ["a d", "c d"]) == ["d", "d"]


def bbq_row(i, ambiguous, negative, template):
    return {"example_id": i, "question_index": str(template), "category": "Colour",
            "question_polarity": "neg" if negative else "nonneg",
            "context_condition": "ambig" if ambiguous else "disambig", "context": f"Context {i}.",
            "question": "Who was late?" if negative else "Who was in time?", "ans0": "Green",
            "ans1": "Unknown", "ans2": "Blue",
            "answer_info": {"ans0": ["g", "green"], "ans1": ["?", "unknown"],
                            "ans2": ["b", "blue"]},
            "additional_metadata": {"stereotyped_groups": ["Blue"]},
            "label": 1 if ambiguous else 2 if negative else 0}


def test_bbq_by_hand(tmp_path):
    rows = [bbq_row(i, i % 2 == 0, i % 4 < 2, i % 5) for i in range(200)]
    file = tmp_path/"colour.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in rows))
    questions, aside = read_bbq(file)
    assert aside == 0 and questions[0].biased == 2 and questions[2].biased == 0
    rng = np.random.default_rng(0)
    choice = {f"Context {i}.": rng.choice(3, p=[.2, .3, .5]) for i in range(200)}
    names = ["Green", "Unknown", "Blue"]
    scorer = lambda texts, spans: np.array(
        [float(t.endswith(names[choice[t.split("\n")[0]]])) for t in texts])
    probe = bbq(scorer, file)
    by = {(m.name, m.group): m.value.estimate for m in probe.measures}
    for name, ambiguous in (("ambiguous", True), ("disambiguated", False)):
        at = [q for q in questions if q.ambiguous == ambiguous]
        said = np.array([choice[q.context] for q in at])
        stereotype = sum(c == q.biased for c, q in zip(said, at, strict=True))
        accuracy = np.mean([c == q.right for c, q in zip(said, at, strict=True)])
        s = 2 * stereotype / (said != 1).sum() - 1
        assert by[f"bias score, {name}", "all"] == pytest.approx(
            s * (1 - accuracy) if ambiguous else s)
        assert by[f"accuracy, {name}", "all"] == pytest.approx(accuracy)
    rows[0]["additional_metadata"] = {"stereotyped_groups": ["Blue", "Green"]}
    assert target_of(rows[0]) is None and target_of(rows[1]) == 2


def test_bias_score_without_anybody_named():
    zero, one = np.zeros(5), np.ones(5)
    assert bias_score(np.ones((1, 5)), zero, zero, one, True)[0] == 0
    assert bias_score(np.ones((1, 5)), one, one, zero, True)[0] == 1
    assert bias_score(np.ones((1, 5)), zero, one, zero, False)[0] == -1


def test_winobias_lines(tmp_path):
    (tmp_path/"pro").write_text("1 [The cook] met the guard because [he] ran.\n"
                                "2 The cook met [the guard] and thanked [her].\n\n")
    (tmp_path/"anti").write_text("1 [The cook] met the guard because [she] ran.\n"
                                 "2 The cook met [the guard] and thanked [him].\n")
    assert read_winobias(tmp_path/"pro")[1] == Coreference(
        "The cook met the guard and thanked her.", "her", "the guard", "the cook")
    longer = lambda texts, spans: np.array([float(sum(e - s for s, e in x)) for x in spans])
    lines = [c for c in read_winobias(tmp_path/"pro") if c]
    assert (resolved(longer, lines) == [-1, 1]).all()
    probe = winobias(longer, tmp_path/"pro", tmp_path/"anti")
    assert probe.measures[0].value.estimate == 0 and probe.measures[1].value.estimate == .5
    (tmp_path/"other").write_text("no line\n")
    with pytest.raises(BadInput, match="no line such as"): read_winobias(tmp_path/"other")


def test_the_files_as_distributed(public_data):
    long_first = lambda texts, spans: np.array([-float(len(t)) for t in texts])
    crows = crows_pairs(long_first, public_data/"crows_pairs"/"crows_pairs_anonymized.csv")
    assert len(crows.measures) == 10 and 1100 < crows.measures[0].rows <= 1508
    folder = public_data/"bbq_subset"
    questions, aside = read_bbq(sorted(str(p) for p in folder.glob("*.jsonl*")))
    assert len(questions) == 7320 and aside == 0
    assert {q.biased for q in questions} == {0, 1, 2}
    assert all((q.right == q.unknown) == q.ambiguous for q in questions)
    for kind in ("type1.txt.dev", "type2.txt.test"):
        a, b = (read_winobias(public_data/"winobias"/f"{w}_stereotyped_{kind}")
                for w in ("pro", "anti"))
        assert len(a) == len(b) == 396 and None not in a


def test_labelled_probes(public_data):
    rows = probe_rows(public_data/"hatecheck_en"/"test_suite_cases.csv", "test_case", "label_gold",
                      {"hateful": "hate", "non-hateful": "ok"}, ["functionality", "target_ident"],
                      ["hate", "ok", "other"])
    assert len(rows) == 3728 and (rows.truth == 0).sum() == 2563
    assert sum(x is None for x in rows.columns["target_ident"]) == 292
    file = public_data/"identity_templates_en"/"en_sentence_templates.csv.gz"
    some = probe_rows(file, "phrase", "toxicity", {"toxic": "bad", "nontoxic": "ok"}, ["template"],
                      terms=load_terms(), most=500)
    assert len(some) == 500 and any(some.columns["religion"])
    with pytest.raises(BadInput, match="labels without a meaning: 'nontoxic'"):
        probe_rows(file, "phrase", "toxicity", {"toxic": "bad"})
    with pytest.raises(BadInput, match="the classifier has no label 'bad'"):
        probe_rows(file, "phrase", "toxicity", {"toxic": "bad", "nontoxic": "ok"}, labels=["ok"])


def test_names_anywhere():
    assert named("the old Sikh and the Jewish man", load_terms(), "religion") == ["Jewish", "Sikh"]
    assert whole(["ab"]) == [[(0, 2)]]
    assert Measure("x", "all", 1, None, None).verdict == ""  # type: ignore[arg-type]


def test_what_a_probes_labels_mean():
    ours = ["hatespeech", "normal", "offensive"]
    meant = meanings(["hateful -> hatespeech", "other -> normal | offensive"], ours)
    assert meant["other"] == ["normal", "offensive"] and meant["normal"] == ["normal"]
    assert meanings(["x -> a|b"], ["a|b"])["x"] == ["a|b"]
    with pytest.raises(BadInput, match="no label 'ofensive' .did you mean 'offensive'"):
        meanings(["other -> normal | ofensive"], ours)


def test_answers_of_several_labels_are_right():
    rows = Rows(list("abc"), ["x"] * 3, np.array([0, 1, 1]), ["hateful", "other"])
    said = np.array([[.5, .3, .2], [.4, .35, .25], [.1, .2, .7]])   # the second: most for ours 0
    scores = probe_scores(rows, said, ["hate", "normal", "rude"],
                          {"hateful": ["hate"], "other": ["normal", "rude"]})
    assert [s.name for s in scores] == ["accuracy", "accuracy on hateful", "accuracy on other",
                                        "log loss"]
    assert scores[0].values.tolist() == [1, 0, 1]       # as it answers, not as labels add up
    assert np.allclose(scores[-1].values, -np.log([.5, .6, .9]))
    assert scores[1].among.tolist() == [True, False, False]


@pytest.mark.slow
def test_hatecheck_and_templates_whole(public_data):
    class Fixed(Classifier):
        "Calls whatever names women, or gay people, hateful."
        def __call__(self, texts, label=""):
            yes = np.array([bool({"women", "gay"} & set(t.lower().split())) for t in texts]) * .8
            return np.column_stack([.1 + yes, .9 - yes])

    model = Fixed("example", None, None, ["bad", "ok"], [0, 1])
    check = probed(model, str(public_data/"hatecheck_en"/"test_suite_cases.csv"),
                   ["test_case", "label_gold", "target_ident"],
                   ["hateful -> bad", "non-hateful -> ok"], together="templ_id")
    assert check.rows == 3728 and check.verdict == "disparity found"
    false_alarms = next(d for d in check.found if d.score == "accuracy on non-hateful")
    assert false_alarms.worst in ("women", "gay people")
    file = str(public_data/"identity_templates_en"/"en_sentence_templates.csv.gz")
    found = probed(model, file, ["phrase", "toxicity"], ["toxic -> bad", "nontoxic -> ok"])
    by = {(d.grouping, d.score): d for d in found.found}
    assert by["sexual orientation", "accuracy on nontoxic"].worst == "gay"
    assert found.rows == 76_564 and "gender" in {d.grouping for d in found.found}
