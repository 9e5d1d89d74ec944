"Words exchanged with their grammar, and flips counted beyond those that any edit makes."
import csv
import re
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from ftnb.bias.counterfactuals import (
    APART,
    FEW,
    FOUND,
    NONE,
    ask,
    counterfactuals,
    drawn,
    excess,
    marked,
    pairs_of,
    scores_of,
    test_counterfactuals,
    worst_pairs,
)
from ftnb.bias.disparity import difference_ends, share_ends
from ftnb.bias.identity import (
    Pair,
    find_language,
    load_terms,
    mentions,
    read_terms,
    rewordings,
    swaps,
    takes_an,
    terms_path,
    which,
)
from ftnb.evaluate.bootstrap import share
from ftnb.evaluate.comparisons import sign_flip
from ftnb.foundation.errors import BadInput

EN = load_terms("en")


def swapped(text, axis, to, language="en"):
    found = [p.changed for p in swaps([text], load_terms(language), [axis]) if p.to_group == to]
    return found[0] if found else None


# ---- the words

@pytest.mark.parametrize("before,axis,to,after", [
    ("She lost her key; give it to her.", "gender", "male", "He lost his key; give it to him."),
    ("The idea was his, not my uncle's.", "gender", "female", "The idea was hers, not my aunt's."),
    ("HE SAID IT HIMSELF", "gender", "female", "SHE SAID IT HERSELF"),
    ("Ms Jones waited 5 ms for Mrs. Lee", "gender", "male", "Mr Jones waited 5 ms for Mr. Lee"),
    ("he's been ill", "gender", "neutral", "they've been ill"),
    ("She also works here", "gender", "neutral", "They also work here"),
    ("Does she know?", "gender", "neutral", "Do they know?"),
    ("The ladies' room", "gender", "male", "The gentlemen's room"),
    ("The gentlemen's room", "gender", "female", "The ladies' room"),
    ("A Buddhist monk came", "religion", "atheist", "An atheist monk came"),
    ("Muslims pray. Muslim women too.", "religion", "atheist", "Atheists pray. Atheist women too."),
    ("i am a muslim", "religion", "Christian", "i am a christian"),
    ("She is a Jew, of Jewish parents", "religion", "Sikh", "She is a Sikh, of Sikh parents"),
    ("A German engineer", "nationality", "Indian", "An Indian engineer"),
    ("a blind colleague", "disability", "sighted", "a sighted colleague"),
    ("two gay men", "sexual orientation", "straight", "two straight men"),
    ("I met a black woman", "ethnicity", "Asian", "I met an Asian woman"),
    ("an old man", "age", "young", "a young man")])
def test_grammar_is_kept(before, axis, to, after):
    assert swapped(before, axis, to) == after


@pytest.mark.parametrize("text,axis", [
    ("The manager's theme is history; others gather", "gender"), ("see man page", "gender"),
    ("https://she.org/her and @him", "gender"), ("`he` is a variable", "gender"),
    ("a blind spot and a blind trust", "disability"), ("black screen, white list", "ethnicity"),
    ("go straight home", "sexual orientation"), ("the old backup is 3 years old", "age"),
    ("polish the floor, miss the bus", "nationality"), ("they called their bank", "gender"),
    ("", "gender")])
def test_what_names_nobody_stays(text, axis):
    assert swaps([text], EN, [axis]) == []


@pytest.mark.parametrize("text,kind", [
    ("My wife is ill", "symmetric"), ("My wife is pregnant", "asymmetric"),
    ("The queen waved", "asymmetric"), ("Men earn more than women", "asymmetric"),
    ("That is so gay", "asymmetric"), ("My gay neighbour", "symmetric"),
    ("A German car", "asymmetric"), ("A German nurse", "symmetric")])
def test_symmetric_and_asymmetric_are_kept_apart(text, kind):
    found = [p for p in swaps([text], EN) if p.axis != "age"]
    assert found and {p.kind for p in found} == {kind}


def test_other_languages():
    before, after = "他和其他人都说吉他是他的", "她和其他人都说吉他是她的"
    assert swapped(before, "gender", "female", "zh") == after
    assert swapped("这位穆斯林朋友", "religion", "Buddhist", "zh") == "这位佛教徒朋友"
    assert swapped("Ich half einer Frau.", "gender", "male", "de") == "Ich half einem Mann."
    assert swapped("mit den Männern", "gender", "female", "de") == "mit den Frauen"
    assert swapped("eine muslimische Schule", "religion", "Jewish", "de") == "eine jüdische Schule"
    assert swapped("Er kennt den Mann", "gender", "female", "de") is None
    assert swapped("والمسلمون", "religion", "Christian", "ar") == "والمسيحيون"
    assert swapped("المُسْلِمِينَ", "religion", "Jewish", "ar") == "اليهود"
    assert swapped("ذهبت مع الرجل", "gender", "female", "ar") == "ذهبت مع المرأة"
    assert find_language(["", "Ich möchte mein Geld zurück haben"]) == "de"


HEADS = ["I met", "Please ask", "We thank", "Nobody told", "They saw"]
FOLLOW = [".", " in town.", ", of course!", " who called?", "; fine", "'s dog ran off"]
SINGULAR = sorted({t.term for t in EN.rows if t.form == "singular" and not t.direction
                   and t.axis in ("gender", "religion", "nationality", "disability")
                   and t.group != "neutral" and t.term not in ("lad",)})


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(HEADS), st.sampled_from(SINGULAR), st.sampled_from(FOLLOW), st.booleans())
def test_twice_is_the_first_text(head, noun, end, shout):
    text = f"{head} {'an' if takes_an(noun) else 'a'} {noun}{end}"
    text = text.upper() if shout else text
    for p in swaps([text], EN):
        if p.to_group == "neutral": continue
        again = [q.changed for q in swaps([p.changed], EN, [p.axis])
                 if {q.from_group, q.to_group} == {p.from_group, p.to_group}]
        assert text in again, (text, p.changed, again)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="shermani ,.'aSHE", max_size=40))
def test_only_whole_words_change(text):
    for p in swaps([text], EN, ["gender"]):
        left = re.split(r"[^\w]+", p.original.lower())
        assert any(w in {t.term.lower() for t in EN.rows if t.axis == "gender"} for w in left)
        assert len(p.original.split()) == len(p.changed.split())


def test_any_text_is_survived():
    odd: list[Any] = ["", None, "\u202bhe said\u202c", "'s",
                      "👩‍⚕️ she 👩‍⚕️", "he" * 5000, "she " * 2000, "\ud800 he"]
    for p in swaps(odd, EN, ["gender"]): assert p.changed != p.original
    assert mentions(odd, EN).texts == len(odd)


def test_her_is_resolved_as_often_as_said(public_data):
    "Him and his, turned into her, read back; WinoBias has gold for both."
    lines = [re.sub(r"^\d+ |[\[\]]", "", line)
             for f in sorted((public_data/"winobias").glob("*_stereotyped_*"))
             for line in f.read_text().splitlines()]
    right = total = 0
    for line in lines:
        for m in re.finditer(r"(?<!\w)(him|his)(?!\w)", line):
            text = f"{line[:m.start()]}her{line[m.end():]}"
            found = next(f for f in EN.find(text, "gender") if f.start == m.start())
            right += which(text, found).form == ("object" if m[0] == "him" else "possessive")
            total += 1
    assert total > 800 and right / total > .93


def test_the_file_is_whole():
    rows = read_terms(terms_path())
    assert {t.language for t in rows} == {"en", "de", "zh", "ar"} and all(t.source for t in rows)
    for language in ("en", "de", "zh", "ar"):
        terms = load_terms(language)
        for t in terms.rows:
            if t.form in ("fixed", "fact", "unclear", "person") or t.direction == "to": continue
            others = {g for g in terms.groups[t.axis]
                      if (t.axis, t.key, t.form, g) in terms.answers}
            assert others - {t.group}, f"{t.term} ({t.form}) has no answer"


def test_ones_own_file(tmp_path):
    own = tmp_path/"own.csv"
    names = ["language", "axis", "group", "term", "form", "key"]
    with own.open("w", newline="") as f:
        csv.writer(f).writerows([names, ["en", "town", "north", "Northerner", "singular", "x"],
                                 ["en", "town", "south", "Southerner", "singular", "x"],
                                 ["fr", "genre", "f", "elle", "subject", "p"],
                                 ["fr", "genre", "m", "il", "subject", "p"]])
    assert swaps(["a Northerner"], load_terms("en", own), ["town"])[0].changed == "a Southerner"
    assert swaps(["Elle dort"], load_terms("fr", own))[0].changed == "Il dort"
    assert load_terms("fr").axes == []
    own.write_text(",".join(names) + "\nen,gender,male,sister,singular,sibling\n")
    with pytest.raises(BadInput, match="several groups"): load_terms("en", own)
    own.write_text("term,group\nshe,female\n")
    with pytest.raises(BadInput, match="no column language"): load_terms("en", own)
    with pytest.raises(BadInput, match="did you mean 'gender'"): swaps(["x"], EN, ["gendr"])
    with pytest.raises(BadInput, match="no such file"): load_terms("en", tmp_path/"nothing.csv")


def test_rewordings_name_nobody_else():
    pairs = swaps(["She doesn't think that her aunt begins often"], EN, ["gender"])
    made = rewordings(pairs, EN)
    assert made and all(p.kind == "reference" and "She" in p.changed and "aunt" in p.changed
                        for p in made)
    assert len({p.changed for p in made}) == len(made) <= 3


# ---- the counting

def made_up(bias, noise=3.):
    "A classifier that reacts to any edit, and to men by `bias`."
    def classify(texts):
        z = np.array([int(sha256(t.encode("utf-8", "replace")).hexdigest()[:8], 16) / 2**32 - .5
                      for t in texts])
        men = np.array([bool(re.search(r"\b(he|his|him|Tom|Ben)\b", t)) for t in texts])
        p = 1 / (1 + np.exp(1 - noise * z - bias * men))
        return np.column_stack([1 - p, p])
    return classify


TEXTS = [f"She doesn't know, asks {i} times, and thinks that it's hers" for i in range(150)]
VARIANTS = [[("woman", f"Mia: {i}"), ("woman", f"Ann: {i}"), ("man", f"Tom: {i}"),
             ("man", f"Ben: {i}")] for i in range(150)]


def test_bias_is_found_and_noise_is_not():
    for bias, wanted in ((0., {NONE, FEW}), (2.5, {FOUND})):
        by_words = test_counterfactuals(made_up(bias), TEXTS, axes=["gender"])
        ready = test_counterfactuals(made_up(bias), variants=pairs_of(VARIANTS, "gender"))
        assert by_words.verdict in wanted and ready.verdict in wanted
        assert {g.name for g in ready.axes[0].groups} == {"man", "woman"}
    man = next(g for g in test_counterfactuals(
        made_up(2.5), variants=pairs_of(VARIANTS, "gender"), positive="1").axes[0].groups
        if g.name == "man")
    assert man.signed_gap.low > .2


def test_directions_and_order_do_not_matter():
    pairs = pairs_of(VARIANTS, "gender")
    f = made_up(1.)
    a, b = f([p.original for p in pairs]), f([p.changed for p in pairs])
    straight = counterfactuals(pairs, a, b, ["0", "1"])
    turned = [replace(p, original=p.changed, changed=p.original, from_group=p.to_group,
                      to_group=p.from_group) for p in pairs]
    back = counterfactuals(turned, b, a, ["0", "1"])
    one, two = straight.to_dict()["axes"][0], back.to_dict()["axes"][0]
    assert one["flip_rate"] == two["flip_rate"] and one["excess"] == two["excess"]
    for g, h in zip(one["groups"], two["groups"], strict=True):
        assert g["signed_gap"]["estimate"] == pytest.approx(h["signed_gap"]["estimate"])


def test_numbers_by_hand():
    pairs = [Pair(0, "a", "b", "x", "g", "h"), Pair(0, "a", "c", "x", "g", "i"),
             Pair(1, "d", "e", "x", "g", "h"), Pair(0, "a", "r", "x", "", "", "", "reference")]
    a = np.array([[.9, .1], [.9, .1], [.4, .6], [.9, .1]])
    b = np.array([[.2, .8], [.8, .2], [.3, .7], [.7, .3]])
    found = counterfactuals(pairs, a, b, ["no", "yes"], positive="yes", least=1)
    s = found.axes[0]
    assert s.flip_rate.estimate == 1 / 3 and s.pairs == 3 and s.texts == 2
    assert s.score_gap.estimate == pytest.approx((.7 + .1 + .1) / 3)
    assert s.compared == 1 and s.excess and s.excess.estimate == .5  # (1 + 0)/2 − 0
    by = {g.name: g for g in s.groups}
    assert by["h"].signed_gap.estimate == pytest.approx((.7 + .1) / 2)
    assert by["i"].signed_gap.estimate == pytest.approx(.1)
    assert worst_pairs(found).frame.text[0] == "[a → b]"


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**31))
def test_excess_is_even_handed(n, k, rate, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.random((n, k)) < rate).mean(1), (rng.random(n) < rate) * 1.
    mean, low, high, p = excess(a, b)
    assert mean == pytest.approx((a - b).mean()) and -1 <= low <= mean <= high <= 1
    assert np.allclose(excess(b, a)[1:3], (-high, -low)) and excess(b, a)[3] == pytest.approx(p)
    for level in (.5, .95, .999):        # p and intervals tell the same story
        _, low, high, p = excess(a, b, level)
        assert (low > 1e-9 or high < -1e-9) <= (p <= 1 - level + 1e-9), (level, low, high, p)


@pytest.mark.parametrize("n,e,f,g", [(100, 9, 3, 2), (300, 20, 20, 5), (60, 1, 0, 0)])
def test_excess_of_single_pairs_is_newcombes(n, e, f, g):
    "Flips in both, only between, only within: method 10 with these ends of a share."
    a, b = (np.repeat([1, 1, 0, 0], [g, e, f, n - e - f - g]) * 1.,
            np.repeat([1, 0, 1, 0], [g, e, f, n - e - f - g]) * 1.)
    z, p, q = student.ppf(.975, n - 1), a.mean(), b.mean()
    ends = [share_ends(x, n, z) for x in (p, q)]
    alike = np.corrcoef(a, b)[0, 1] if 0 < q else 0.
    low, high = difference_ends(p, ends[0], q, ends[1], alike)
    assert np.allclose(excess(a, b)[1:3], (low, high), atol=1e-6)


def worlds(r, n, k, m, delta, a, b, seed):
    "Flips between groups (r, n, k) and under harmless changes (r, n, m), and the true excess."
    rng = np.random.default_rng(seed)
    q = rng.beta(a, b, (r, n, 1))
    within, between = rng.random((r, n, m)) < q, rng.random((r, n, k)) < 1 - (1 - q) * (1 - delta)
    return between.mean(-1), within.mean(-1), (1 - a / (a + b)) * delta


@pytest.mark.parametrize("n,k,m,delta,a,b", [
    (100, 1, 1, .05, 1, 4), (300, 7, 1, 0., 1, 4), (300, 7, 3, .2, 1, 4), (100, 2, 1, .2, 1, 4),
    (150, 28, 1, .1, .5, 10), (400, 4, 1, 0., .2, 6), (200, 28, 1, 0., .3, 5)])
def test_the_interval_covers(n, k, m, delta, a, b):
    "Where six texts or more are expected to flip without an effect; 4,000 worlds: ± 0.7 points."
    assert n * a / (a + b) > 6
    between, within, truth = worlds(4000, n, k, m, delta, a, b, n + k)
    _, low, high, _ = excess(between, within)
    assert .93 <= ((low <= truth) & (truth <= high)).mean() <= .97


@pytest.mark.parametrize("n,k,m,a,b", [(30, 28, 1, .3, 5), (100, 7, 1, 1, 4), (30, 1, 1, 1, 4)])
def test_the_verdict_keeps_its_level(n, k, m, a, b):
    between, within, _ = worlds(400, n, k, m, 0., a, b, 5)
    e, _, _, p = excess(between, within)
    flips = np.array([sign_flip(x, permutations=200) for x in between - within])
    assert ((np.maximum(p, flips) < .05) & (e > 0)).mean() < .05


def test_planted_flip_rates_are_covered():
    rng, hits = np.random.default_rng(2), []
    for _ in range(400):
        rate = rng.beta(1, 4, 100)
        flips = rng.random((100, 3)) < rate[:, None]
        hits.append(.2 in share(flips.ravel(), np.repeat(np.arange(100), 3)))
    assert .92 <= np.mean(hits) <= .98


@pytest.mark.slow
@pytest.mark.parametrize("bias", [0., 1., 3.])
def test_whole_runs_keep_their_promise(bias):
    "The whole path, 200 times: level without an effect, power with a large one."
    found = []
    for i in range(200):
        variants = [[(g, f"{t} {i}-{x}") for g, t in some] for x, some in enumerate(VARIANTS)]
        found.append(test_counterfactuals(made_up(bias), variants=pairs_of(variants, "gender")))
    rate = np.mean([c.verdict == FOUND for c in found])
    assert rate <= .05 if bias == 0 else rate > (.9 if bias == 3 else .2)


def test_what_cannot_be_said_is_said():
    nothing = test_counterfactuals(made_up(0.), ["How do I empty a bucket?"])
    assert nothing.verdict == FEW and nothing.axes == () and "0 of 1" in nothing.said[0]
    few = test_counterfactuals(made_up(3.), TEXTS[:9], axes=["gender"])
    assert few.axes[0].verdict == FEW and "only 9 texts" in few.sentence
    none = test_counterfactuals(made_up(0., 0.), TEXTS, axes=["gender"])  # nothing ever flips
    assert none.verdict == NONE and 0 < none.axes[0].detectable < .1
    apart = test_counterfactuals(made_up(3.), ["Is the queen here?"] * 3, axes=["gender"])
    assert apart.axes[0].verdict == APART and apart.flip_rate is None
    alone = test_counterfactuals(made_up(3.), [f"she, {i}" for i in range(99)], axes=["gender"])
    assert alone.verdict == FEW and "no harmless change" in alone.sentence
    french = test_counterfactuals(made_up(0.), ["Où est mon colis, s'il vous plaît ?"])
    assert "no terms for the language 'fr'" in french.said[0]


def test_bad_answers_are_refused():
    with pytest.raises(BadInput, match="for 3 texts"):
        ask(lambda t: np.zeros((1, 2)), ["a", "b", "c"])
    with pytest.raises(BadInput, match="NaN"): ask(lambda t: np.full((len(t), 2), np.nan), ["a"])
    with pytest.raises(BadInput, match="did you mean 'yes'"):
        counterfactuals([], np.zeros((0, 2)), np.zeros((0, 2)), ["no", "yes"], positive="yess")
    with pytest.raises(BadInput, match="for 1 pairs"):
        counterfactuals([Pair(0, "a", "b", "x", "g", "h")], np.zeros((2, 2)), np.zeros((2, 2)),
                        ["a", "b"])


def test_each_text_is_asked_once():
    asked: list[str] = []

    def classify(texts):
        asked.extend(texts)
        return np.full((len(texts), 2), .5)

    test_counterfactuals(classify, variants=pairs_of(VARIANTS, "gender"))
    assert len(asked) == len(set(asked)) == 600
    texts = [f"text {i}" for i in range(50)]
    assert drawn(range(50), texts, 10, 0) == drawn(range(49, -1, -1), texts, 10, 0)
    assert len(drawn(range(50), texts, 10, 1)) == 10


def test_words_and_ready_made_pairs_are_not_mixed():
    both = test_counterfactuals(made_up(2.5), TEXTS, pairs_of(VARIANTS, "gender"), axes=["gender"])
    assert [s.axis for s in both.axes] == ["gender", "gender (words)"]
    alone = test_counterfactuals(made_up(2.5), variants=pairs_of(VARIANTS, "gender"))
    assert both.axes[0].flip_rate == alone.axes[0].flip_rate


def test_scores_favour_neither_text():
    a, b = np.random.default_rng(0).dirichlet([1, 1, 1], (2, 5000))
    x, y = scores_of(a, b)
    assert abs((y - x).mean()) < .01 and (scores_of(a, b, 2)[0] == a[:, 2]).all()


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab ,.", max_size=30), st.text(alphabet="ab ,.", max_size=30))
def test_marks_hold_both_texts(a, b):
    text = marked(a, b, around=1000)
    assert re.sub(r"\[(.*?) → .*?\]", r"\1", text) == a
    assert re.sub(r"\[.*? → (.*?)\]", r"\1", text) == b

