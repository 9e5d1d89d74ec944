"Words of any script and tokenizer; integrated gradients and SHAP against references."

from copy import deepcopy
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftnb.evaluate.predict import Classifier
from ftnb.explain import attributions as by
from ftnb.explain.planted import planted_classifier, planted_texts
from ftnb.explain.shapley import kernel_shap, partition_shap, rank_agreement, seeded
from ftnb.explain.summaries import convergence
from ftnb.explain.words import all_words, blank, clings, words
from ftnb.foundation.errors import BadInput
from ftnb.train.encoders import local_encoder

SAMPLES = [
    "Don't redeploy s3.amazonaws.com, please!", "حَذْفُ المِلَفِّ الآن", "מחק את הדלי", "删除存储桶 now",
    "ich lösche den Eimer 👍🏽🇩🇪",
    "👩‍👩‍👧 family 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "कृपया हटाएँ", "ลบถังข้อมูล", "e\u0301te\u0301 café",
    "a\u200fb \u202e c",
    "می‌خواهم", "x" * 300, "<user> [MASK] [SEP] </s>", "1,000.5 % of $3", "\ufeffbom", "_snake_case",
]


def byte_level():
    "A byte-level BPE, as GPT-2's and RoBERTa's."
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.train_from_iterator(SAMPLES, trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<mask>"], show_progress=False))
    return wrapped(made)


def metaspace():
    "A unigram model with ▁ for spaces, as XLM-R's."
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(SAMPLES, trainers.UnigramTrainer(
        vocab_size=150, unk_token="<unk>", special_tokens=["<pad>", "<unk>", "<mask>"],
        show_progress=False))
    return wrapped(made)


def wrapped(made):
    from transformers import PreTrainedTokenizerFast
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", mask_token="<mask>",
                                   unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizers():
    from transformers import AutoTokenizer
    return [AutoTokenizer.from_pretrained(local_encoder("embedded")), byte_level(), metaspace(),
            None]


@pytest.fixture(scope="module")
def planted(): return planted_classifier()


def check_words(w):
    ends = [0, *(x for span in w.spans for x in span)]
    assert ends == sorted(ends) and all(a < b for a, b in w.spans)
    assert all(t and not blank(t[0]) and not (blank(t[-1]) and not clings(t[-1])) for t in w.tokens)
    assert set(w.piece_word.tolist()) - {-1} == set(range(len(w)))
    assert (np.diff(w.piece_word[w.piece_word >= 0]) >= 0).all()


@pytest.mark.parametrize("text", SAMPLES)
def test_words_of_all_scripts(tokenizers, text):
    for tokenizer in tokenizers: check_words(words(tokenizer, text, 512))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_words_of_any_text(tokenizers, text):
    for tokenizer in tokenizers: check_words(words(tokenizer, text, 16))
    plain, covered = words(None, text), np.zeros(len(text), bool)
    for a, b in plain.spans: covered[a:b] = True
    assert all(c or blank(x) or clings(x) for c, x in zip(covered, text, strict=True))


def test_spaced_scripts_have_the_same_words_for_every_tokenizer(tokenizers):
    for text in ("ich lösche den Eimer", "حَذْفُ المِلَفِّ الآن", "don't stop", "мой файл пропал"):
        for tokenizer in tokenizers: assert words(tokenizer, text).tokens == text.split()


def test_emoji_stay_whole(tokenizers):
    for tokenizer in tokenizers:
        assert words(tokenizer, "ok 👍🏽 done").tokens == ["ok", "👍🏽", "done"]
        assert words(tokenizer, "👩‍👩‍👧 x").tokens[0] == "👩‍👩‍👧"


def test_long_and_empty_texts(tokenizers):
    for tokenizer in tokenizers:
        for text in ("", "   ", "\n\t", "\u200b\u200f"): assert len(words(tokenizer, text)) == 0
    long = words(tokenizers[0], "bucket " * 100, 32)
    assert long.cut and len(long) == 30 and not words(tokenizers[0], "bucket", 32).cut
    assert all_words(tokenizers[0], []) == []


class Linear(torch.nn.Module):
    "A bag of words: logits are a linear function of the sum of embeddings."

    def __init__(self, vocabulary: int, labels: int = 2):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(vocabulary, 8)
        self.head = torch.nn.Linear(8, labels)
        self.config, self.device = SimpleNamespace(max_position_embeddings=64), torch.device("cpu")

    def get_input_embeddings(self): return self.table

    def forward(self, input_ids, attention_mask, **more):
        x = (self.table(input_ids) * attention_mask[..., None]).sum(1)
        return SimpleNamespace(logits=self.head(x))


def classifier(model, tokenizer, labels=("no", "yes"), **more) -> Classifier:
    return Classifier("test", model.eval(), tokenizer, list(labels), list(range(len(labels))),
                      max_tokens=64, precision="float32", **more)


def test_a_linear_model_is_shared_out_exactly(tokenizers):
    tokenizer = tokenizers[0]
    box = classifier(Linear(len(tokenizer)), tokenizer)
    texts = ["who may read the buckets of redeployments", "don't", "删除 now 👍🏽"]
    for steps in (1, 3):
        found = by.integrated_gradients(box, texts, ["yes"] * 3, steps=steps, most_steps=steps)
        assert all(abs(a.delta) < 1e-4 for a in found)
        w = box.model.head.weight[1] - box.model.head.weight[0]
        mask = box.model.table.weight[tokenizer.mask_token_id]
        for a, read in zip(found, all_words(tokenizer, texts), strict=True):
            each = ((box.model.table.weight[torch.tensor(read.ids)] - mask) @ w).detach().numpy()
            of_words = [each[read.piece_word == j].sum() for j in range(len(read))]
            np.testing.assert_allclose(a.values, of_words, atol=1e-4)
    slope = by.gradient_x_input(box, texts, ["yes"] * 3)
    for a, b in zip(found, slope, strict=True):
        np.testing.assert_allclose(a.values, b.values, atol=1e-4)


def riemann(box, text, column, steps=1000):
    "Integrated gradients by the midpoint rule through inputs_embeds, written anew."
    model, made = box.model, box.tokenizer(text, return_tensors="pt")
    table = model.get_input_embeddings().weight.detach()
    x = table[made["input_ids"][0]]
    special = [i in box.tokenizer.all_special_ids for i in made["input_ids"][0].tolist()]
    base = x.clone()
    base[~torch.tensor(special).bool()] = table[box.tokenizer.mask_token_id]
    total = torch.zeros_like(x)
    for k in range(0, steps, 100):
        alpha = (torch.arange(k, k + 100) + .5)[:, None, None] / steps
        point = (base + alpha * (x - base)).requires_grad_()
        p = model(inputs_embeds=point).logits.double().softmax(1)[:, column]
        (p / (1 - p)).log().sum().backward()
        total += point.grad.sum(0).float() / steps
    return ((x - base) * total).sum(1).numpy()[1:-1]


def test_integrated_gradients_equal_a_fine_sum(planted):
    texts, _, _ = planted_texts(6, seed=11)
    found = by.integrated_gradients(planted, texts, steps=64, tolerance=0, most_steps=128)
    for text, a in zip(texts, found, strict=True):
        reference = riemann(planted, text, planted.labels.index(a.label))
        np.testing.assert_allclose(a.values, reference, atol=.02 * max(1, abs(a.change)))


def test_values_sum_to_the_change(planted):
    texts, _, _ = planted_texts(40, seed=3)
    found = by.integrated_gradients(planted, texts)
    assert all(a.missing <= .05 or a.steps == 128 for a in found)
    assert {a.steps for a in found} > {16}  # some needed more
    odds = by.probability_odds(np.array([a.probability for a in found]))
    base = [" ".join("[MASK]" for _ in t.split()) for t in texts]
    p = planted(base)[range(40), [planted.labels.index(a.label) for a in found]]
    np.testing.assert_allclose([a.change for a in found], odds - by.probability_odds(p), atol=1e-3)


def test_neither_batches_nor_neighbours_nor_repetition_matter(planted):
    texts, _, _ = planted_texts(10, seed=3)
    whole = by.integrated_gradients(planted, texts)
    for other in (by.integrated_gradients(planted, texts, batch_tokens=40),
                  by.integrated_gradients(planted, texts[::-1])[::-1]):
        assert all(np.allclose(a.values, b.values, atol=1e-3) for a, b in
                   zip(whole, other, strict=True))
    again = by.integrated_gradients(planted, texts)
    assert all((a.values == b.values).all() for a, b in zip(whole, again, strict=True))


def test_odd_texts(planted):
    odd = ["", "  ", "invoice", "👍🏽 invoice", "فاتورة invoice", "invoice " * 100]
    for found in (by.integrated_gradients(planted, odd), by.leave_one_out(planted, odd),
                  by.gradient_x_input(planted, odd), partition_shap(planted, odd[:5]),
                  kernel_shap(planted, odd[:5], evaluations=50),
                  by.corrected(planted, by.integrated_gradients(planted, odd))):
        assert [len(a.values) for a in found][:5] == [0, 0, 1, 2, 2]
        assert all(np.isfinite(a.values).all() and len(a.values) == len(a.spans) for a in found)
    complete = convergence(by.integrated_gradients(planted, odd))
    assert (complete.cut, complete.empty) == (1, 2)
    assert by.integrated_gradients(planted, []) == [] == by.leave_one_out(planted, [])


def tiny(kind, **more):
    "A randomly made classifier of another architecture."
    import transformers as tf
    size = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    kinds = {
        "distilbert": lambda v: tf.DistilBertForSequenceClassification(tf.DistilBertConfig(
            vocab_size=v, dim=16, n_layers=2, n_heads=2, hidden_dim=32, **more)),
        "roberta": lambda v: tf.RobertaForSequenceClassification(tf.RobertaConfig(
            vocab_size=v, pad_token_id=0, max_position_embeddings=80, **size, **more)),  # type: ignore
        "electra": lambda v: tf.ElectraForSequenceClassification(tf.ElectraConfig(
            vocab_size=v, embedding_size=8, **size, **more)),  # type: ignore
        "mpnet": lambda v: tf.MPNetForSequenceClassification(tf.MPNetConfig(
            vocab_size=v, pad_token_id=0, max_position_embeddings=80, **size, **more)),  # type: ignore
        "gpt2": lambda v: tf.GPT2ForSequenceClassification(tf.GPT2Config(
            vocab_size=v, n_embd=16, n_layer=2, n_head=2, pad_token_id=0, **more)),
    }
    return kinds[kind]


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "electra", "mpnet", "gpt2"])
def test_architectures(tokenizers, kind):
    torch.manual_seed(1)
    tokenizer = deepcopy(tokenizers[0])
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    box = classifier(tiny(kind)(len(tokenizer)), tokenizer)
    with torch.no_grad():
        for p in box.model.parameters(): p.mul_(3)
    texts = ["who may read the bucket", "删除 now", "a much longer text about instances and keys"]
    found = by.integrated_gradients(box, texts, steps=32, tolerance=.01, most_steps=256)
    assert all(a.missing < .02 for a in found)
    alone = [by.integrated_gradients(box, [t], steps=32, tolerance=.01, most_steps=256)[0]
             for t in texts]
    for a, b in zip(found, alone, strict=True): np.testing.assert_allclose(
        a.values, b.values, atol=2e-3)


def test_what_cannot_be_done_is_said(planted, tokenizers):
    with pytest.raises(BadInput, match="black box"): by.integrated_gradients(lambda t: None, ["a"])
    twice = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True))
    double = replace(planted, model=twice)
    with pytest.raises(BadInput, match="twice"): by.integrated_gradients(double, ["a"])
    with pytest.raises(BadInput, match="did you mean 'billing'"):
        by.integrated_gradients(planted, ["a"], ["biling"])
    with pytest.raises(BadInput, match="1 targets for 2"):
        by.leave_one_out(planted, ["a", "b"], ["billing"])


def test_without_a_mask_token_another_stands_in(tokenizers):
    table = Linear(40)
    name = lambda **ids: by.baseline_vector(table, SimpleNamespace(
        **{f"{k}_token_id": v for k, v in ids.items()}, mask_token="M", unk_token="U",
        pad_token="P"))[1]
    assert name(mask=1, unk=2) == "M" and name(mask=None, unk=2) == "U"
    assert name(mask=None, unk=None, pad=0) == "P" and name() == "the mean embedding"


def test_leave_one_out_is_what_it_says():
    def box(texts):
        odds = np.array([2.0 * ("free" in t) - ("not" in t) for t in texts])
        p = 1 / (1 + np.exp(-odds))
        return np.column_stack([1 - p, p])
    [a] = by.leave_one_out(box, ["this is not free"], ["yes"], ["no", "yes"])
    np.testing.assert_allclose(a.values, [0, 0, -1, 2], atol=1e-6)
    assert abs(a.delta) < 1e-6 and a.tokens == ["this", "is", "not", "free"]


def shapley(value, n):
    "Shapley values by all orders."
    total = np.zeros(n)
    for order in permutations(range(n)):
        there = np.zeros(n, bool)
        for i in order:
            before = value(there)
            there[i] = True
            total[i] += value(there) - before
    return total / len(list(permutations(range(n))))


def joint(texts):
    "Log odds with interactions."
    has = lambda t, w: w in t.split()
    odds = np.array([has(t, "a") + 2 * has(t, "b") * has(t, "c") - has(t, "a") * has(t, "d")
                     for t in texts], float)
    p = 1 / (1 + np.exp(-odds))
    return np.column_stack([1 - p, p])


def test_kernel_shap_equals_shapley_values():
    text = "a b c d e"
    value = lambda there: np.log(np.divide(*joint(
        [" ".join(w for w, t in zip(text.split(), there, strict=True) if t)])[0][::-1]))
    [a] = kernel_shap(joint, [text], ["y"], ["n", "y"])
    np.testing.assert_allclose(a.values, shapley(value, 5), atol=1e-6)
    assert abs(a.delta) < 1e-6


def test_correction_comes_near_shapley_values():
    text = "a b c d e"
    [start] = by.leave_one_out(joint, [text], ["y"], ["n", "y"])
    [end], [exact] = by.corrected(joint, [start], labels=["n", "y"]), kernel_shap(
        joint, [text], ["y"], ["n", "y"])
    far = lambda a: np.abs(a.values - exact.values).max()
    assert far(end) < .5 * far(start) and abs(end.delta) < 1e-9


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.integers(2, 60), st.integers(0, 5))
def test_sets_of_words(n, most, seed):
    sets = by.word_sets(n, most, seed)
    assert len(sets) <= max(most, 0) and sets.shape[1] == n
    if len(sets): assert 1 <= sets.sum(1).min() and sets.sum(1).max() <= n - 1
    assert (sets == by.word_sets(n, most, seed)).all()


def test_correction_leaves_an_additive_model_alone():
    rng = np.random.default_rng(0)
    values = rng.normal(size=9)
    sets = by.word_sets(9, 48)
    np.testing.assert_allclose(by.updated(values, sets, sets @ values, values.sum()), values,
                               atol=1e-9)


def test_partition_equals_shap_called_directly(tokenizers):
    import shap
    from transformers import BertConfig, BertForSequenceClassification
    torch.manual_seed(2)
    size = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    box = classifier(BertForSequenceClassification(BertConfig(
        vocab_size=len(tokenizers[0]), **size)), tokenizers[0])  # type: ignore
    with torch.no_grad():
        for p in box.model.parameters(): p.mul_(6)
    text = "don't redeploy s3 buckets 👍🏽 today"
    [ours] = partition_shap(box, [text], ["yes"], probability=True)
    with seeded(0):
        said = shap.Explainer(lambda x: box(list(x)), shap.maskers.Text(box.tokenizer))(
            [text], silent=True)
    read = words(box.tokenizer, text)
    for j in range(len(read)):
        assert ours.values[j] == pytest.approx(said.values[0][read.piece_word == j, 1].sum())
    assert ours.missing < 1e-9 and ours.units == "probability"
    state = np.random.get_state()[1].copy()  # type: ignore  # noqa: NPY002
    partition_shap(box, [text])
    assert (np.random.get_state()[1] == state).all()  # type: ignore  # noqa: NPY002


def test_rank_agreement():
    a = by.Attribution("a b c d", [(0, 1), (2, 3), (4, 5), (6, 7)], np.array([4., 3, 2, 1]), "y",
                       .9, 0, "first")
    b = replace(a, values=np.array([1., 2, 3, 4]), method="second")
    assert rank_agreement([a] * 3, [b] * 3).spearman.estimate == -1
    made = rank_agreement([a, a], [a, replace(a, values=np.zeros(4))], k=2)
    assert made.spearman.estimate == made.overlap.estimate == 1 and made.skipped == 1
    with pytest.raises(BadInput): rank_agreement([replace(a, spans=[(0, 1)] * 4)], [b])
