"""Secrets: every format is found in every kind of file, and nothing else is taken for one.

The keys are made up at random here, so that this file holds none.
"""
import base64
import html
import io
import json
import random
import string
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ftnb.foundation.settings import Settings, Stated
from ftnb.study import secrets
from ftnb.study.secrets import Leak, check, distinctive, find_secrets, scan, scan_bytes

ROOT = Path(__file__).resolve().parent.parent
SITE = Settings(Path("/srv/another/place"))
HOMES = "/home/"
CHANCE = random.Random(7)
AN, UP, HEX = string.ascii_letters + string.digits, string.ascii_uppercase + string.digits, \
    "0123456789abcdef"
B64, URL, A32 = AN + "+/", AN + "-_", "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


def made(n: int, letters: str = AN) -> str: return "".join(CHANCE.choice(letters) for _ in range(n))


def coded(value: dict) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def pem(kind: str) -> str: return f"-----BEGIN {kind}-----\n{made(64, B64)}\n-----END {kind}-----"


FORMATS = {
    "AWS access key": "AKIA" + made(16, A32),
    "AWS temporary key": "ASIA" + made(16, A32),
    "AWS secret key, named": "aws_secret_access_key = " + made(40, B64),
    "AWS secret key, bare": made(40, B64),
    "AWS session token": "FwoGZXIvYXdzE" + made(300, B64),
    "AWS session token, named": f'AWS_SESSION_TOKEN="IQoJb3JpZ2luX2Vj{made(400, B64)}"',
    "Bedrock key": "ABSK" + made(128, B64),
    "S3 presigned": "https://b.s3.amazonaws.com/k?X-Amz-Algorithm=AWS4-HMAC-SHA256"
                    "&X-Amz-Signature=" + made(64, HEX),
    "S3 presigned, version 2": "https://b.s3.amazonaws.com/k?AWSAccessKeyId=AK&Signature="
                               + made(27) + "%3D&Expires=1700000000",
    "GitHub classic": "ghp_" + made(36), "GitHub OAuth": "gho_" + made(36),
    "GitHub app": "ghs_" + made(36),
    "GitHub fine-grained": f"github_pat_{made(22)}_{made(59)}",
    "GitLab": "glpat-" + made(20, URL), "GitLab runner": "glrt-" + made(20, URL),
    "GitLab deploy": "gldt-" + made(20, URL),
    "Hugging Face": "hf_" + made(34, string.ascii_letters),
    "Hugging Face organisation": "api_org_" + made(34, string.ascii_letters),
    "OpenAI": f"sk-{made(20)}T3BlbkFJ{made(20)}",
    "OpenAI project": f"sk-proj-{made(74, URL)}T3BlbkFJ{made(74, URL)}",
    "Anthropic": f"sk-ant-api03-{made(93, URL)}AA",
    "Slack bot": f"xoxb-{made(12, string.digits)}-{made(12, string.digits)}-{made(24)}",
    "Slack app": f"xapp-1-A0{made(9, UP)}-{made(13, string.digits)}-{made(64, HEX)}",
    "Slack webhook": f"https://hooks.slack.com/services/T{made(8, UP)}/B{made(8, UP)}/{made(24)}",
    "Google API": "AIza" + made(35, URL), "Google OAuth": "ya29." + made(120, URL),
    "Google client": "GOCSPX-" + made(28, URL),
    **{kind: pem(kind) for kind in ("PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY",
                                    "OPENSSH PRIVATE KEY", "ENCRYPTED PRIVATE KEY",
                                    "PGP PRIVATE KEY BLOCK")},
    "age": "AGE-SECRET-KEY-1" + made(58, UP),
    "JWT": f"{coded({'alg': 'HS256'})}.{coded({'sub': made(10)})}.{made(43, URL)}",
    "Azure storage": f"AccountName=x;AccountKey={made(86, B64)}==;EndpointSuffix=core.windows.net",
    "Azure shared access": f"https://x.blob.core.windows.net/c?sv=2022&sig={made(43)}%3D",
    "Azure client": f"{made(3)}8Q~{made(34, URL)}",
    "npm": "npm_" + made(36), "npmrc": "//registry.npmjs.org/:_authToken=" + made(36, HEX + "-"),
    "PyPI": "pypi-AgEIcHlwaS5vcmc" + made(120, URL),
    "Stripe": "sk_live_" + made(24), "Stripe test": "sk_test_" + made(24),
    "Stripe restricted": "rk_live_" + made(24), "Stripe webhook": "whsec_" + made(32),
    "password in a URL": f"https://someone:{made(12)}@example.org/x",
    "password of a database": f"postgresql://app:{made(14)}@db.example.org/x",
    "basic authorization": "Authorization: Basic " + base64.b64encode(
        f"a:{made(12)}".encode()).decode(),
    "bearer authorization": "Authorization: Bearer " + made(40),
    "SendGrid": f"SG.{made(22, URL)}.{made(43, URL)}", "Mailgun": "key-" + made(32, HEX),
    "Twilio": "SK" + made(32, HEX), "Telegram": f"{made(10, '123456789')}:AA{made(33, URL)}",
    "Databricks": "dapi" + made(32, HEX), "DigitalOcean": "dop_v1_" + made(64, HEX),
    "Weights & Biases": "WANDB_API_KEY=" + made(40, HEX), "Comet": "comet_api_key: " + made(25),
    "MLflow": "MLFLOW_TRACKING_PASSWORD=" + made(16), "Cohere": "CO_API_KEY=" + made(40),
    "Groq": "gsk_" + made(52), "Replicate": "r8_" + made(37), "xAI": "xai-" + made(80),
    "Perplexity": "pplx-" + made(48), "NVIDIA": "nvapi-" + made(64, URL),
    "Vault": "hvs." + made(95, URL), "Terraform": f"{made(14)}.atlasv1.{made(64)}",
    "Docker": "dckr_pat_" + made(27, URL),
    "Docker's settings": json.dumps({"auths": {"x": {"auth": base64.b64encode(
        f"u:{made(20)}".encode()).decode()}}}),
    "Linear": "lin_api_" + made(40), "Shopify": "shpat_" + made(32, HEX),
    "Square": "sq0csp-" + made(43, URL), "Heroku": "HRKU-" + made(60, URL),
    "netrc": "machine api.wandb.ai login user password " + made(40, HEX),
    "password": f'password = "{made(5)}7{made(6)}!"', "client secret": "client_secret=" + made(40),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_found(name):
    assert find_secrets(f"see {FORMATS[name]} there"), name


def a_png(**texts: str) -> bytes:
    note, picture = PngInfo(), io.BytesIO()
    for key, text in texts.items(): note.add_text(key, text, zip=len(text) > 40)
    Image.new("L", (8, 8)).save(picture, "PNG", pnginfo=note)
    return picture.getvalue()


def a_notebook(source: str = "", output: dict | None = None) -> str:
    outputs = [{"output_type": "display_data", "metadata": {}, "data": output}] if output else []
    cells = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Title"]},
             {"cell_type": "code", "id": "b", "metadata": {}, "execution_count": 1,
              "outputs": outputs, "source": source.splitlines(keepends=True)}]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5},
                      indent=1, sort_keys=True)


TOKEN = "ghp_" + made(36)
QUOTED = f'password="{made(5)}7{made(6)}!"'


def carriers(secret: str) -> dict[str, str | bytes]:
    "The same secret in every kind of file; on line 3 where the kind has lines of its own."
    data = base64.b64encode(a_png(Comment=secret)).decode()
    return {
        "notes.md": f"# a\n\nsaid {secret}\n", "rows.txt": f"train\t1\n\ntest\t{secret}\n",
        "facts.json": json.dumps({"a": 1, "b": f"line\n{secret}\nmore"}, indent=1),
        "rows.jsonl": '{"a": 1}\n{"a": 2}\n' + json.dumps({"a": secret}) + "\n",
        "page.html": f"<p>a</p>\n<p>b</p>\n<pre>{html.escape(secret)}</pre>\n",
        "figure.svg": f"<svg>\n<g/>\n<text>{html.escape(secret)}</text>\n</svg>",
        "source.ipynb": a_notebook(f"x = 1\nprint('{secret}')"),
        "output.ipynb": a_notebook("x", {"text/plain": ["one\n", secret]}),
        "table.ipynb": a_notebook("x", {"text/html": [f"<td>{html.escape(secret)}</td>"]}),
        "figure.png": a_png(Comment=secret), "picture.ipynb": a_notebook("x", {
            "image/png": [data[i:i + 76] + "\n" for i in range(0, len(data), 76)]}),
        "picture.html": f'<p>a</p>\n\n<img src="data:image/png;base64,{data}">',
        "wide.txt": f"a\n\nsaid {secret}".encode("utf-16"),
        "model.bin": b"\0\1\2" + secret.encode() + b"\0",
        "traceback.ipynb": a_notebook("x", {"text/plain": [
            f"\x1b[31m{secret[:9]}\x1b[0m\x1b[1m{secret[9:]}\x1b[0m"]}),
    }


@pytest.mark.parametrize("name", carriers(TOKEN))
def test_every_kind_of_file_is_read(name, tmp_path):
    content = carriers(TOKEN)[name]
    (tmp_path/name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = scan(tmp_path, SITE, {})
    assert [(f.file, f.kind) for f in found] == [(name, "GitHub token")]
    if name.split(".")[1] in ("md", "txt", "jsonl", "html", "svg"): assert found[0].line == 3
    if name.endswith("ipynb"): assert found[0].cell == 1
    assert all(TOKEN[i:i + 6] not in str(found[0]) for i in range(4, 34))


@pytest.mark.parametrize("name", ["facts.json", "page.html", "source.ipynb", "output.ipynb"])
def test_quotation_marks_in_other_letters(name, tmp_path):
    content = carriers(QUOTED)[name]
    assert isinstance(content, str)
    (tmp_path/name).write_text(content)
    assert [f.kind for f in scan(tmp_path, SITE, {})] == ["key, token or password"]


@pytest.mark.parametrize("text", [
    "the password is not here", "api_key: str = ''  # from the environment",
    "sentence-transformers/all-MiniLM-L6-v2", "class=\"sk-toggleable__label-arrow-down\"",
    "script-src 'sha256-5Lz/WbcaQG8AL4yW0r392IN3jA3bYP2wjJWNuGHclEg='",
    "https://open.spotify.com/playlist/37i9dQZF1DX9XIFQuFvzM4sT8q2Lw3",
    "sha256:" + made(64, HEX), "uuid 123e4567-e89b-12d3-a456-426614174000",
    "https://user:password@example.org", "https://user:${PASSWORD}@example.org",
    "AKIAIOSFODNN7EXAMPLE", "post_id 362E9TQF2HRABD89HARI0Y2GDU9GIX_nf_2",
    "M 12.3 45.6 L 78.9 10.1112131415 z", "arn:aws:iam::123456789012:role/service-role/Name",
    "tokenizer.model_max_length=512, TOKENIZERS_PARALLELISM=false"])
def test_what_only_looks_like_a_secret(text):
    assert find_secrets(text) == []


def test_the_committed_reports_and_notebooks_hold_nothing():
    started = time.process_time()
    found = [f for folder in ("reports", "nbs") for f in scan(ROOT/folder, SITE, {})]
    assert found == []
    size = sum(p.stat().st_size for p in [*(ROOT/"reports").rglob("*"), *(ROOT/"nbs").rglob("*")]
               if p.is_file())
    assert time.process_time() - started < size/1e6    # a fifth of a second a million bytes here


def test_this_machine_is_not_named(tmp_path, monkeypatch):
    home, site = tmp_path/"home"/"mjones7", Settings((tmp_path/"site").resolve())
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(secrets.getpass, "getuser", lambda: "mjones7")
    monkeypatch.setattr(secrets.platform, "node", lambda: "ip-10-0-0-7.ec2.internal")
    said = [f"{home}/x", f"{site.root}/reports", "by mjones7.", "on ip-10-0-0-7",
            f"{HOMES}jdoe42/x", "/tmp/ipykernel_123/45.py", r"C:\Users\jdoe42\x",
            "D:/Users/jdoe42/x", "/var/folders/ab/abcdefghijklmnopqrstuvw/T/x",
            "ip-10-0-0-7.ec2.internal is up"]
    (tmp_path/"a.txt").write_text("\n".join(said))
    kinds = [(f.line, f.kind) for f in scan(tmp_path/"a.txt", site, {})]
    assert kinds == [(1, "home path"), (2, "repository's path"), (3, "user name"), (4, "host name"),
                     (5, "home path"), (6, "temporary path"), (7, "home path"), (8, "home path"),
                     (9, "temporary path"), (10, "host name")]


def test_ordinary_names_are_let_through(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets.getpass, "getuser", lambda: "ubuntu")
    monkeypatch.setattr(secrets.platform, "node", lambda: "localhost")
    text = f"ubuntu, localhost; {HOMES}ubuntu/x, {HOMES}ec2-user/SageMaker/a, xmjones7x, /usr/bin"
    (tmp_path/"a.txt").write_text(text)
    assert scan(tmp_path/"a.txt", SITE, {}) == []
    assert not any(map(distinctive, ("root", "runner", "jovyan", "vm", "maria", "sagemaker-user")))


def test_a_user_without_an_entry(monkeypatch, tmp_path):
    def none(): raise KeyError("getpwuid(): uid not found: 1234")
    monkeypatch.setattr(secrets.getpass, "getuser", none)
    (tmp_path/"a.txt").write_text("nothing")
    assert scan(tmp_path, SITE, {}) == []


def test_a_short_path_counts_with_what_is_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, "_entries",
                        lambda p: ["/app/nbs", "/app/params"] if str(p) == "/app" else [])
    (tmp_path/"a.txt").write_text("an /app/ of mine\nat /app/nbs/stages\n")
    assert [f.line for f in scan(tmp_path, Settings(Path("/app")), {})] == [2]


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "DB_PASSWORD", "MYSECRET", "DB_PWD",
                                  "AWS_SECRET_ACCESS_KEY", "GITHUB_PAT", "BASIC_AUTH", "apikey"])
@pytest.mark.parametrize("value", ["correct-horse", "abc/def+ghi", "1234567890", "pass word 42"])
def test_values_of_the_environment(name, value, tmp_path):
    (tmp_path/"a.txt").write_text(f"x\nwith {value}.\n")
    (tmp_path/"b.json").write_text(json.dumps({"a": f'"{value}"'}))
    found = scan(tmp_path, SITE, {name: value})
    assert [(f.file, f.kind) for f in found if f.kind.startswith("value")] == [
        ("a.txt", f"value of {name}"), ("b.json", f"value of {name}")]
    assert value not in "".join(map(str, found))


@pytest.mark.parametrize("name, value", [
    ("PWD", "/srv/place"), ("SSH_AUTH_SOCK", "/run/agent"), ("API_KEY", "short"),
    ("TOKENIZERS_PARALLELISM", "falsefalse"), ("PASSWORD", "password"), ("AUTH_URL", "https://login.example.org/x"),
    ("MONKEY", "bananas-77"), ("PATH", "bananas-77")])
def test_values_that_are_no_secret(name, value, tmp_path):
    (tmp_path/"a.txt").write_text(f"with {value}.\n")
    assert scan(tmp_path, SITE, {name: value}) == []


def test_check_names_every_place_and_lets_marks_through(tmp_path):
    (tmp_path/"a.md").write_text(f"x\n{TOKEN}\n")
    (tmp_path/"b.md").write_text(f"{TOKEN}\nhf_{made(34)}\n")
    with pytest.raises(Leak) as e: check(tmp_path, SITE)
    text = str(e.value)
    assert e.value.exit_code == 1 and "a.md line 2" in text and "revoke" in text
    assert "b.md line 1" in text and "b.md line 2" in text and TOKEN[4:] not in text
    marks = " ".join(f.mark for f in e.value.findings)
    check(tmp_path, Settings(SITE.root, Stated(not_secret=marks)))


@given(st.text(max_size=80), st.text(max_size=80))
def test_a_token_is_found_in_any_text(before, after):
    for name, text in (("a.txt", f"{before} {TOKEN} {after}"),
                       ("a.json", json.dumps({"k": f"{before} {TOKEN} {after}"})),
                       ("a.html", f"<p>{html.escape(f'{before} {TOKEN} {after}')}</p>")):
        found = scan_bytes(name, text.encode("utf-8", "replace"), [])
        assert "GitHub token" in [f.kind for f in found]


@given(st.binary(max_size=400), st.sampled_from(["a.png", "a.json", "a.ipynb", "a.html", "a"]))
def test_any_bytes_can_be_scanned(content, name):
    assert all(f.file == name for f in scan_bytes(name, content, [("x", "value-of-x")]))


@given(st.text(alphabet=string.ascii_lowercase + " .,\n", max_size=600))
def test_prose_holds_no_secret(text):
    assert find_secrets(text) == []
