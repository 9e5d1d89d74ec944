"Private data: found by their rules, not by accident, and never shown."

import csv
import ipaddress
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftnb.data.privacy import KINDS, PrivateTally, find_private, is_iban, luhn, mask, shape


def card(rng: random.Random, start: str, length: int) -> str:
    body = start + "".join(rng.choice("0123456789") for _ in range(length - 1 - len(start)))
    return next(body + d for d in "0123456789" if luhn(body + d))


def kinds(text: str) -> list[str]:
    return [f.kind for f in find_private(text)]


@given(
    st.randoms(use_true_random=False),
    st.sampled_from([("4", 16), ("51", 16), ("37", 15), ("6011", 16), ("3530", 16)]),
)
def test_cards(rng, kind):
    number = card(rng, *kind)
    assert kinds(f"pay 12 with {number}.") == ["card"]
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
    assert "card" not in kinds(f"pay 12 with {wrong}.")
    grouped = " ".join(number[i : i + 4] for i in range(0, len(number), 4))
    assert "card" in kinds(f"room 12 {grouped} 7") and "card" in kinds(grouped.replace(" ", "-"))


@given(
    st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
    | st.integers(2**125, 2**126).map(ipaddress.IPv6Address)
)
def test_addresses_are_found_when_public(address):
    assert ("ip" in kinds(f"from {address} again")) == address.is_global


@given(st.text())
def test_any_text_can_be_read(text):
    found = find_private(text)
    assert all(0 <= f.start < f.end <= len(text) and f.kind in KINDS for f in found)
    assert all(a.end <= b.start for a, b in zip(found, found[1:], strict=False))


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_shapes_tell_nothing(value):
    assert not {c for c in shape(value) if c.isalnum()} - {"x", "9"}


PLANTED = {
    "email": ["jane@example.org", "j.d+x@mail.example.co.uk", "ZOË@münchen.de"],
    "iban": [
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432",
        "fr1420041010050500013m02606",
    ],
    "card": ["4111 1111 1111 1111", "5555555555554444", "378282246310005"],
    "phone": ["+44 20 7946 0018", "(202) 456-1111", "+4930901820", "202-456-1111"],
    "ip": ["8.8.8.8", "2001:4860:4860::8888"],
    "key": [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a1B2" * 9,
        "xoxb-123456789012-abcdefghij",
        "password: s3cr3t-w0rd",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
        "Bearer abcd1234efgh5678",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
    ],
}
FREE = [
    "",
    "12:30:45",
    "10.0.0.1 and 192.168.1.1 and 127.0.0.1",
    "1.2.3",
    "version 300.1.2.3",
    "user@localhost",
    "@jane",
    "2026-03-01",
    "ISBN 978-3-16-148410-0",
    "order 2024561111",
    "a" * 40,
    "5" * 16,
    "sha256 " + "0123456789abcdef" * 4,
    "password must be long",
    "The price rose from 1,234,567 to 7,654,321 in 1998–2003",
    "::",
    "3.14159265358979",
]


@pytest.mark.parametrize("kind, value", [(k, v) for k, values in PLANTED.items() for v in values])
def test_planted_values(kind, value):
    text = f"Hello, here: {value} please"
    assert kinds(text) == [kind], value
    tally = PrivateTally()
    tally.add(text, "row 1")
    shown = f"{tally.to_dict()} {tally._repr_mimebundle_()} {tally.sentence} {mask(text)}"
    shown += str(find_private(text))
    secret = value.split(": ")[-1].split("Bearer ")[-1]
    assert secret not in shown and f"<{kind}>" in mask(text)
    assert kinds(mask(text)) == []


@pytest.mark.parametrize("text", FREE)
def test_harmless_texts(text):
    assert kinds(text) == [] and mask(text) == text


def test_ibans():
    assert is_iban("NO9386011117947") and not is_iban("NO9386011117948") and not is_iban("XX00")


def test_only_what_is_asked_for():
    assert mask("jane@example.org 8.8.8.8", ["ip"]) == "jane@example.org <ip>"


def test_tallies_merge():
    texts = [v for values in PLANTED.values() for v in values] + FREE
    whole, half, other = PrivateTally(), PrivateTally(), PrivateTally()
    for i, t in enumerate(texts):
        whole.add(t, str(i))
        (half if i < 9 else other).add(t, str(i))
    assert half.merge(other).to_dict() == whole.to_dict()
    assert sum(n["rows"] for n in whole.counts.values()) == sum(map(len, PLANTED.values()))


def test_real_texts_without_private_data(public_data):
    with (public_data / "banking77" / "train.csv").open(encoding="utf-8", newline="") as f:
        bank = [r["text"] for r in csv.DictReader(f)]
    wiki = [
        line
        for name in ("valid", "test")
        for line in (public_data / "wikitext2_valid_test" / f"{name}.txt")
        .read_text(encoding="utf-8")
        .splitlines()
        if line.strip()
    ]
    tally = PrivateTally()
    for t in bank + wiki:
        tally.add(t)
    assert len(bank) == 10_003 and len(wiki) > 5_000
    assert sum(n["values"] for n in tally.counts.values()) == 0, tally.to_dict()


@pytest.mark.parametrize(
    "text",
    [
        "1" * 100_000,
        "a" * 100_000,
        "a@" * 50_000,
        "1 " * 50_000,
        "a." * 50_000,
        "1-" * 50_000,
        "password " * 10_000,
        "DE00 " * 20_000,
        ":" * 100_000,
        "1.1.1." * 15_000,
        "eyJ" * 30_000,
        "-----BEGIN PRIVATE KEY-----" * 2_000,
        "+1 " * 30_000,
    ],
)
def test_hostile_texts_take_no_time(text):
    start = time.process_time()
    find_private(text)
    assert time.process_time() - start < 10
