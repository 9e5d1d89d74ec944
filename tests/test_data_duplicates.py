"Duplicates: nothing false, nearly nothing missed, in bounded memory, the same however rows come."

import csv
import json
import subprocess
import sys
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftnb.data.duplicates import (
    CROWD,
    bands_for,
    candidates,
    find_duplicates,
    jaccard,
    leaks,
    normal,
    piece_hashes,
    pieces,
    runs,
    signatures,
)

TEXTS = st.lists(
    st.text(st.sampled_from("ab c.,!"), max_size=12) | st.text(max_size=20), max_size=25
)


@given(st.text())
def test_normal_form_is_stable(text):
    assert normal(normal(text)) == normal(text) or normal(text) == " ".join(normal(text).split())
    assert normal(f"  {text}\n") == normal(text) and normal(text.strip()) == normal(text)


@given(st.text(), st.text())
def test_normal_form_ignores_blanks_between(a, b):
    assert normal(f"{a} \t{b}") == normal(f"{a}\u00a0{b}")


def test_normal_form_keeps_what_matters():
    assert normal("C#") != normal("C") and normal("naïve") != normal("naive")
    assert normal("हिन्दी") != normal("हनद") and normal("😀") != normal("😡")
    assert (
        normal("_x000D_") and normal("\ufeffa\u200bb") == "ab" and normal("") == "" != normal("!")
    )


@given(TEXTS)
@settings(deadline=None, max_examples=60)
def test_exact_groups_are_the_same_normal_texts(texts):
    found = find_duplicates(texts)
    by_text: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        by_text.setdefault(normal(text), []).append(row)
    assert found.exact == sorted(g for g in by_text.values() if len(g) > 1)
    assert found.rows == len(texts)
    firsts = {g[0] for g in by_text.values()}
    for p in found.pairs:
        assert p.first in firsts and p.second in firsts and p.first < p.second
        s = jaccard(pieces(normal(texts[p.first])), pieces(normal(texts[p.second])))
        assert s >= 0.7 and abs(s - p.similarity) < 1e-3


@given(st.lists(st.text(min_size=0, max_size=9), min_size=1, max_size=8))
def test_hashes_stand_for_pieces(texts):
    texts = [normal(t) for t in texts]
    hashes, bounds = piece_hashes(texts)
    seen: dict[int, str] = {}
    for text, (a, b) in zip(texts, pairwise(bounds.tolist()), strict=True):
        assert len(set(hashes[a:b].tolist())) == len(pieces(text))
        own = [text[i : i + 4] for i in range(max(len(text) - 3, 1))]
        for h, piece in zip(hashes[a:b].tolist(), own, strict=True):
            assert seen.setdefault(h, piece) == piece
    alone = np.concatenate([piece_hashes([t])[0] for t in texts])
    assert (alone == hashes).all()


def test_signatures_estimate_similarity():
    rng = np.random.default_rng(0)
    words = [f"{w:x}" * 2 for w in rng.integers(0, 2**20, 400)]
    a, b = " ".join(words[:300]), " ".join(words[100:])
    agree = (np.diff(signatures([a, b], 1024, 1), axis=1) == 0).mean()
    assert abs(agree - jaccard(pieces(a), pieces(b))) < 0.05


@given(st.floats(0.3, 1.0), st.integers(32, 256))
def test_bands_reach_the_recall_where_they_can(similarity, permutations):
    bands, rows = bands_for(similarity, permutations)
    assert bands * rows <= permutations and bands >= 1
    if rows > 1:
        assert 1 - (1 - similarity**rows) ** bands >= 0.99


@given(st.lists(st.integers(0, 5), max_size=40))
def test_runs_are_the_groups(values):
    found = [g.tolist() for g in runs(np.array(values, np.uint64))]
    assert sorted(found) == sorted(
        g for v in set(values) if len(g := [i for i, x in enumerate(values) if x == v]) > 1
    )


@given(st.integers(2, 300))
def test_crowds_stay_linear(n):
    pairs = candidates(np.arange(n))
    assert (pairs[:, 0] < pairs[:, 1]).all() and len(np.unique(pairs, axis=0)) == len(pairs)
    assert len(pairs) == n * (n - 1) // 2 if n <= CROWD else len(pairs) <= 9 * n
    assert set(pairs.ravel()) == set(range(n))


def test_real_texts_against_brute_force(public_data):
    with (public_data / "banking77" / "train.csv").open(encoding="utf-8", newline="") as f:
        texts = [r["text"] for r in csv.DictReader(f)][:1500]
    found = find_duplicates(texts)
    first = {normal(t): i for i, t in reversed(list(enumerate(texts)))}
    sets = {i: pieces(t) for t, i in first.items()}
    true = {
        (i, j)
        for i, j in combinations(sorted(sets), 2)
        if min(len(sets[i]), len(sets[j])) >= 0.7 * max(len(sets[i]), len(sets[j]))
        and jaccard(sets[i], sets[j]) >= 0.7
    }
    ours = {(p.first, p.second) for p in found.pairs}
    assert ours <= true and len(ours) >= 0.98 * len(true) and len(true) > 50


def test_toxigens_repeated_texts(public_data):
    rows = json.loads(
        (public_data / "toxigen_annotated" / "toxigen.json").read_text(encoding="utf-8")
    )
    texts = [r["text"] for r in rows]
    found = find_duplicates(texts)
    assert len(texts) == 6514 and len(found.exact_extra) >= 76  # 76 repeat to the byte
    assert all(len({normal(texts[r]) for r in g}) == 1 for g in found.exact)


SPLIT = st.sampled_from(["train", "validation", "test"])


@given(st.lists(st.tuples(st.text("abc d", min_size=1, max_size=14), SPLIT), max_size=30))
@settings(deadline=None, max_examples=60)
def test_nothing_leaks_once_leaking_rows_are_gone(rows):
    texts, splits = [t for t, _ in rows], [s for _, s in rows]
    first = leaks(find_duplicates(texts), splits)
    gone = set(first.rows)
    assert all(splits[r] != "test" for r in gone)
    kept = [i for i in range(len(rows)) if i not in gone]
    assert not leaks(find_duplicates(texts[i] for i in kept), [splits[i] for i in kept]).rows
    by_text: dict[str, set[str]] = {}
    for i in kept:
        by_text.setdefault(normal(texts[i]), set()).add(splits[i])
    assert all(len(s) == 1 for s in by_text.values())


def test_boilerplate_does_not_explode():
    said = "This message was sent automatically by the monitoring system; please don't answer."
    texts = [f"{said} {i}" for i in range(2000)]
    found = find_duplicates(texts)
    assert len(found.clusters) == 1 and len(found.extra) == 1999 and len(found.pairs) < 20_000
    splits = ["test" if i % 10 == 7 else "train" for i in range(2000)]
    assert len(leaks(found, splits).rows) == 1800  # all of them, though not all pairs were compared


def test_bad_similarity():
    for s in (0, -1, 1.1):
        with pytest.raises(ValueError):
            find_duplicates([], s)


@pytest.mark.slow
def test_memory_stays_bounded():
    code = """
import resource, random
from ftnb.data.duplicates import find_duplicates
words = [f"{random.Random(i).getrandbits(30):x}" for i in range(5000)]
def texts(n):
    rng = random.Random(0)
    for i in range(n): yield " ".join(rng.choices(words, k=150))
find_duplicates(texts(2000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = find_duplicates(texts(60000)).rows
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(out[0]) == 60_000 and float(out[1]) < 60  # MB more; the texts alone are 70 MB
