"Signatures: what is changed in a signed folder is found and named, and keys are handled with care."
import base64
import datetime
import json
import shutil
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftnb.foundation.errors import BadInput
from ftnb.foundation.files import read_json, sha256, write_json
from ftnb.foundation.settings import Settings, Stated
from ftnb.study.signing import (
    PASSPHRASE,
    SIGNATURE,
    check_signature,
    fingerprint,
    sign,
    sign_models,
    signature_state,
    signing_key,
    statement,
    trusted_keys,
)
from ftnb.study.versions import open_version

PEM, PKCS8, SPKI = Encoding.PEM, PrivateFormat.PKCS8, PublicFormat.SubjectPublicKeyInfo


def write_key(folder: Path, name: str = "key", passphrase: str = "", curve=ec.SECP256R1):
    "A key pair: name.pem, readable by its owner, and name.pub."
    key = ec.generate_private_key(curve())
    how = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    (folder/f"{name}.pem").write_bytes(key.private_bytes(PEM, PKCS8, how))
    (folder/f"{name}.pem").chmod(0o600)
    (folder/f"{name}.pub").write_bytes(key.public_key().public_bytes(PEM, SPKI))
    return key


def make_site(root: Path, **stated: str) -> Settings:
    return Settings(root.resolve(), Stated(**{"signing_key": "key.pem", "verify_key": "key.pub",
                                              **stated}))


def fill(folder: Path) -> Path:
    "Files of every kind that a version has, and names that sort in odd ways."
    for name in ("index.html", "metrics.json", "timings.json", "figures/a.png", "a.txt", "a/b.txt",
                 "a-b.txt", "notebooks/01-prepare.ipynb", "empty", ".hidden", "é ü.md", "cards/x"):
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(b"" if name == "empty" else name.encode() * 40)
    return folder


@pytest.fixture
def signed(tmp_path):
    write_key(tmp_path)
    site = make_site(tmp_path)
    folder = fill(tmp_path/"version")
    sign(folder, site)
    return folder, trusted_keys(site)


def test_what_is_signed_is_valid(signed):
    folder, trusted = signed
    state = check_signature(folder, trusted)
    assert state.valid and str(state) == f"signed by {state.key[:16]}, valid"
    assert state.key in trusted and state.to_dict()["valid"]


def test_one_changed_byte_of_any_file_is_found_and_named(signed):
    folder, trusted = signed
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != SIGNATURE]
    assert len(files) == 12
    for file in files:
        before, name = file.read_bytes(), file.relative_to(folder).as_posix()
        changed = bytearray(before or b"x")
        changed[len(changed) // 2] ^= 1
        file.write_bytes(changed)
        assert str(check_signature(folder, trusted)) == f"invalid: {name} differs"
        file.write_bytes(before)
    assert check_signature(folder, trusted).valid


def test_added_and_removed_files_and_links_are_named(signed):
    folder, trusted = signed
    (folder/"deep"/"er").mkdir(parents=True)
    assert check_signature(folder, trusted).valid                       # a folder is no file
    (folder/"deep"/"er"/".x").touch()
    (folder/"a-b.txt").rename(folder/"a_b.txt")
    (folder/"cards"/"x").unlink()
    (folder/"elsewhere").symlink_to(folder.parent)
    same = (folder/"index.html").rename(folder.parent/"index.html")
    (folder/"index.html").symlink_to(same)
    assert check_signature(folder, trusted).differs == {
        "a-b.txt": "is missing", "cards/x": "is missing", "index.html": "differs",
        "a_b.txt": "was added", "deep/er/.x": "was added", "elsewhere": "was added"}


def test_no_bit_of_the_signature_can_be_changed(signed):
    "Of the envelope: every byte of the statement and of the signature counts."
    folder, trusted = signed
    bundle = read_json(folder/SIGNATURE)
    for part, where in (("payload", bundle["dsseEnvelope"]),
                        ("sig", bundle["dsseEnvelope"]["signatures"][0])):
        content, whole = bytearray(base64.b64decode(where[part])), where[part]
        for i in range(0, len(content), max(1, len(content) // 60)):
            content[i] ^= 4
            where[part] = base64.b64encode(content).decode()
            write_json(folder/SIGNATURE, bundle)
            assert not check_signature(folder, trusted).valid, (part, i)
            content[i] ^= 4
        where[part] = whole
    write_json(folder/SIGNATURE, bundle)
    assert check_signature(folder, trusted).valid


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "not json", '{"dsseEnvelope": 3}',
                                     '{"dsseEnvelope": {"signatures": []}}'])
def test_a_damaged_signature_is_invalid(signed, content):
    folder, trusted = signed
    (folder/SIGNATURE).write_text(content)
    state = check_signature(folder, trusted)
    assert not state.valid and SIGNATURE in str(state) and str(state).startswith("invalid")


def test_a_statement_signed_for_another_purpose_does_not_count(signed, tmp_path):
    folder, trusted = signed
    from securesystemslib.dsse import Envelope
    said = statement(folder, "x") | {"predicateType": "https://example.org/other"}
    envelope = Envelope(json.dumps(said).encode(), "application/vnd.in-toto+json", {})
    key = signing_key(make_site(tmp_path))
    assert key
    envelope.sign(key)
    bundle = read_json(folder/SIGNATURE) | {"dsseEnvelope": envelope.to_dict()}
    write_json(folder/SIGNATURE, bundle)
    assert "another kind" in str(check_signature(folder, trusted))


def test_a_signature_by_another_key(signed, tmp_path):
    folder, trusted = signed
    write_key(tmp_path, "other")
    site = make_site(tmp_path, signing_key="other.pem", verify_key="key.pub")
    sign(folder, site)
    state = check_signature(folder, trusted_keys(site))
    assert not state.valid and "isn't trusted" in str(state)
    assert "no verify_key" in str(check_signature(folder, {}))
    forged = read_json(folder/SIGNATURE)     # it says that the trusted key made it
    forged["verificationMaterial"]["publicKey"]["hint"] = next(iter(trusted))
    write_json(folder/SIGNATURE, forged)
    assert "wasn't made by the key" in str(check_signature(folder, trusted))
    (folder/"index.html").write_text("x")     # differences are named without trust, too
    assert "index.html differs" in str(check_signature(folder, {}))


def test_several_trusted_keys_and_a_certificate(tmp_path):
    folder = fill(tmp_path/"version")
    keys = [write_key(tmp_path, name) for name in ("key", "older")]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ftnb")])
    day = datetime.datetime(2026, 1, 1)
    certificate = (x509.CertificateBuilder().subject_name(name).issuer_name(name)
                   .public_key(keys[0].public_key()).serial_number(1).not_valid_before(day)
                   .not_valid_after(day + datetime.timedelta(days=9))
                   .sign(keys[0], hashes.SHA256()))
    both = certificate.public_bytes(PEM) + (tmp_path/"older.pub").read_bytes()
    (tmp_path/"trusted.pem").write_bytes(b"# who signs here\n" + both)
    for signs in ("key", "older"):
        site = make_site(tmp_path, signing_key=f"{signs}.pem", verify_key="trusted.pem")
        assert list(trusted_keys(site)) == [fingerprint(k.public_key()) for k in keys]
        sign(folder, site)
        assert check_signature(folder, trusted_keys(site)).valid


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_a_key_with_a_passphrase(tmp_path, monkeypatch, curve):
    write_key(tmp_path, passphrase="open sesame", curve=curve)
    site = make_site(tmp_path)
    with pytest.raises(BadInput, match="has a passphrase") as e: signing_key(site)
    assert PASSPHRASE in e.value.fix
    monkeypatch.setenv(PASSPHRASE, "open barley")
    with pytest.raises(BadInput, match="passphrase is wrong") as e: signing_key(site)
    assert "barley" not in str(e.value)
    monkeypatch.setenv(PASSPHRASE, "open sesame")
    folder = fill(tmp_path/"version")
    sign(folder, site)
    monkeypatch.delenv(PASSPHRASE)                      # checking needs no secret
    assert check_signature(folder, trusted_keys(site)).valid


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622, 0o777])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode):
    write_key(tmp_path)
    (tmp_path/"key.pem").chmod(mode)
    with pytest.raises(BadInput, match="others can read or change") as e:
        signing_key(make_site(tmp_path))
    assert e.value.fix == "chmod 600 key.pem" and "BEGIN" not in str(e.value)


def test_keys_that_are_none(tmp_path):
    site = make_site(tmp_path)
    with pytest.raises(BadInput, match="can't be read"): signing_key(site)
    with pytest.raises(BadInput, match="can't be read"): trusted_keys(site)
    (tmp_path/"key.pub").write_text("nothing")
    with pytest.raises(BadInput, match="no public key"): trusted_keys(site)
    block = "-----BEGIN {0} KEY-----\nAAAA\n-----END {0} KEY-----\n"
    (tmp_path/"key.pub").write_text(block.format("PUBLIC"))
    with pytest.raises(BadInput, match="not readable as a key"): trusted_keys(site)
    (tmp_path/"key.pem").write_text(block.format("PRIVATE"))
    (tmp_path/"key.pem").chmod(0o600)
    with pytest.raises(BadInput, match="can't be read"): signing_key(site)
    other = rsa.generate_private_key(65537, 2048)
    (tmp_path/"key.pem").write_bytes(other.private_bytes(PEM, PKCS8, NoEncryption()))
    with pytest.raises(BadInput, match="not a key for signing"): signing_key(site)


def test_a_link_cannot_be_signed(tmp_path):
    write_key(tmp_path)
    folder = fill(tmp_path/"version")
    (folder/"link").symlink_to(folder/"index.html")
    with pytest.raises(BadInput, match="a link"): sign(folder, make_site(tmp_path))
    assert not (folder/SIGNATURE).exists()


def a_version(site: Settings, schema: int):
    "A version whose model the store keeps."
    model = fill(site.store/"versions"/"demo"/"1"/"workbench"/"train"/"model")
    rows = site.store/"versions"/"demo"/"1"/"workbench"/"prepare"/"rows.jsonl"
    rows.parent.mkdir()
    rows.write_text('{"a": 1}\n')
    stages = {"train": {"outputs": {"model": {"path": "model", "sha256": sha256(model)}}},
              "prepare": {"outputs": {"rows": {"path": "rows.jsonl", "sha256": sha256(rows)}}}}
    folder = fill(site.reports/"demo"/"1")
    write_json(folder/"version.json", {
        "schema": f"ftnb/version/{schema}", "study": "demo", "fingerprint": "f", "files": {},
        ("stages" if schema == 2 else "records"): stages})
    return open_version(folder), model, rows


@pytest.mark.parametrize("schema", [1, 2])
def test_a_version_and_what_the_store_keeps_of_it(tmp_path, schema):
    write_key(tmp_path)
    site = make_site(tmp_path)
    version, model, rows = a_version(site, schema)
    assert str(signature_state(version, site)) == "unsigned"
    sign(version.folder, site)
    assert signature_state(version, site).valid
    before = (model/"a.txt").read_bytes()
    (model/"a.txt").write_text("x")
    assert str(signature_state(version, site)) == "invalid: train.model differs"
    (model/"a.txt").write_bytes(before)
    assert [p.name for p in sign_models(version, site)] == ["train.model.sig"]
    assert signature_state(version, site).valid
    (model/"a.txt").write_text("x")
    rows.write_text('{"a": 2}\n')
    assert signature_state(version, site).differs == {"train.model/a.txt": "differs",
                                                      "prepare.rows": "differs"}
    shutil.rmtree(site.store)                # another machine: the report alone is checked
    assert signature_state(version, site).valid
    write_json(version.folder/"version.json", {**version.facts, "fingerprint": "g"})
    assert str(signature_state(version, site)) == "invalid: version.json differs"


SHARED = [HealthCheck.function_scoped_fixture]


@settings(max_examples=60, deadline=None, suppress_health_check=SHARED)
@given(st.dictionaries(st.text("abc-._é", min_size=1, max_size=6).filter(
    lambda n: n.strip(".") and n != SIGNATURE), st.binary(max_size=20), max_size=5),
    st.dictionaries(st.sampled_from(["a", "b.c", "-", "c/d"]), st.binary(max_size=3), max_size=3))
def test_any_two_folders_are_told_apart(tmp_path, first, second):
    "A folder is valid with another's signature just if both hold the same."
    if not (tmp_path/"key.pem").exists(): write_key(tmp_path)
    site = make_site(tmp_path)
    for name, files in (("one", first), ("two", second)):
        shutil.rmtree(tmp_path/name, ignore_errors=True)
        (tmp_path/name).mkdir()
        for n, content in files.items():
            (tmp_path/name/n).parent.mkdir(exist_ok=True)
            (tmp_path/name/n).write_bytes(content)
    sign(tmp_path/"one", site, tmp_path/"sig.json")
    state = check_signature(tmp_path/"two", trusted_keys(site), tmp_path/"sig.json")
    differs = {n for n in first.keys() | second.keys() if first.get(n) != second.get(n)}
    assert set(state.differs) == differs and state.valid == (first == second)


def test_model_signing_reads_it_and_is_read(tmp_path):
    "The same format as the reference implementation's, where that is installed."
    theirs = pytest.importorskip("model_signing", exc_type=ImportError)
    write_key(tmp_path)
    site = make_site(tmp_path)
    folder = fill(tmp_path/"version")
    sign(folder, site, tmp_path/"ours.sig")
    verifier = theirs.verifying.Config().use_elliptic_key_verifier(public_key=tmp_path/"key.pub")
    verifier.verify(folder, tmp_path/"ours.sig")
    signer = theirs.signing.Config().use_elliptic_key_signer(private_key=tmp_path/"key.pem")
    signer.sign(folder, tmp_path/"theirs.sig")
    assert check_signature(folder, trusted_keys(site), tmp_path/"theirs.sig").valid
    (folder/"a.txt").write_text("x")
    with pytest.raises(ValueError, match="a.txt"): verifier.verify(folder, tmp_path/"ours.sig")
    assert not check_signature(folder, trusted_keys(site), tmp_path/"theirs.sig").valid
