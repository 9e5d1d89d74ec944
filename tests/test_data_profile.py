"Profile: exact where it says so, mergeable always."

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ftnb.data.profile import (
    Lengths,
    Profile,
    Vocabulary,
    balance_picture,
    language,
    lengths_picture,
    step,
    words,
)

ROWS = st.lists(
    st.tuples(st.text(max_size=30), st.sampled_from("abc"), st.sampled_from(["train", "test"])),
    max_size=30,
)


@given(ROWS, st.integers(0, 30))
@settings(deadline=None, max_examples=50)
def test_halves_add_up(rows, cut):
    def made(some):
        p = Profile(languages=False)
        for r in some:
            p.add(*r)
        return p

    whole = made(rows)
    assert made(rows[:cut]).merge(made(rows[cut:])).to_dict() == whole.to_dict()
    assert whole.rows == len(rows) and whole._repr_mimebundle_() and whole.sentence


@given(st.lists(st.integers(0, 1000), min_size=1))
def test_quantiles_are_exact_for_short_texts(lengths):
    made = Lengths()
    for n in lengths:
        made.add(n)
    for q in (0.05, 0.5, 0.95, 1.0):
        assert made.quantile(q) == np.quantile(lengths, q, method="inverted_cdf")


@given(st.integers(1, 10**9))
def test_steps_are_one_per_cent(n):
    assert step(n) <= n * 1.001 + 1 and step(n) >= n / 1.011 - 1 and step(step(n)) <= step(n)


@given(st.lists(st.lists(st.text("abcdef", min_size=1, max_size=3), max_size=20), max_size=10))
def test_small_vocabularies_are_exact(batches):
    made, every = Vocabulary(), [w for b in batches for w in b]
    for b in batches:
        made.add(b)
    assert made.different == len(set(every)) and made.words == len(every)
    assert made.unseen(made) in (None, 0)


def test_words():
    assert words("Don't STOP, s3://a_b 3.5") == ["don't", "stop", "s3", "a", "b", "3", "5"]


def test_languages_of_whole_sentences():
    said = {
        "en": "Could you please tell me where my invoice from last month is?",
        "de": "Können Sie mir bitte sagen, wo meine Rechnung ist?",
        "fr": "Pourriez-vous me dire où se trouve ma facture ?",
        "zh": "请问我上个月的账单在哪里？我找不到它。",
    }
    assert {k: language(v) for k, v in said.items()} == {k: k for k in said}
    assert language("") == language("42") == "unsure"


def test_pictures_and_empty_profiles():
    made = Profile()
    assert made.sentence == "No rows." and made._repr_mimebundle_() and made.to_dict()["rows"] == 0
    for i in range(50):
        made.add("word " * (i * 20 + 1), f"class {i}", "train")
    for drawn in (
        lengths_picture(made),
        lengths_picture(made, "characters"),
        balance_picture(made),
    ):
        assert "<svg" in drawn.svg
    assert lengths_picture(made) == lengths_picture(made)
