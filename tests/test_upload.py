"Data go up once, whole, closed to others, and from where they stopped."
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from ftnb.foundation.errors import BadInput, FtnbError, StudyFailed
from ftnb.foundation.files import sha256
from ftnb.foundation.settings import Settings, Stated
from ftnb.places import fetch, upload
from ftnb.places.account import Account, check_bucket, config, open_account
from ftnb.places.upload import channel_files, put_up, put_up_all, send, summed
from ftnb.rehearsal.faults import Rule
from ftnb.rehearsal.server import Rehearsal, rehearsal
from ftnb.rehearsal.service import CLOSED

PART = 5 * 2**20      # the smallest that S3 takes


@pytest.fixture(scope="module")
def aws():
    with rehearsal() as running: yield running


@pytest.fixture
def account(aws: Rehearsal, request, monkeypatch):
    "An account with a bucket of its own, whose waits are short."
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)
    bucket = f"bucket-{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    stated = Stated(place="rehearsal", endpoint=aws.endpoint, bucket=bucket)
    yield open_account(Settings(Path("/"), stated))
    aws.context.faults.clear()


def large(folder: Path, parts: float = 2.5) -> Path:
    "A file of so many parts, no two of them alike."
    file = folder/"model.bin"
    file.write_bytes(os.urandom(int(parts * PART)))
    return file


def counted(account: Account) -> Counter:
    "What S3 is asked from now on, by operation."
    asked: Counter = Counter()
    events = account.client("s3").meta.events
    events.register("after-call.s3", lambda model, **_: asked.update([model.name]))
    return asked


def got(account: Account, key: str) -> bytes:
    return account.client("s3").get_object(Bucket=account.bucket, Key=key)["Body"].read()


def keys(account: Account) -> list[str]:
    found = account.client("s3").list_objects_v2(Bucket=account.bucket)
    return [o["Key"] for o in found.get("Contents", [])]


def test_the_same_content_goes_up_once_whoever_sends_it(account, tmp_path):
    for name in ("one", "two"):
        (tmp_path/name/"sub").mkdir(parents=True)
        (tmp_path/name/"sub"/"a.txt").write_text("a")
        (tmp_path/name/"b.txt").write_text("")          # an empty file is one, too
    first = put_up(account, "base", tmp_path/"one")
    asked = counted(account)
    assert put_up(account, "other", tmp_path/"two") == first
    assert asked["PutObject"] == 0 and sha256(tmp_path/"one") in first
    assert sorted(k.rpartition(first.split("/")[-2] + "/")[2] for k in keys(account)) == [
        "b.txt", "sub/a.txt"]
    (tmp_path/"two"/"b.txt").write_text("b")
    assert put_up(account, "other", tmp_path/"two") != first


def test_one_file_is_a_channel_under_its_name(account, tmp_path):
    (tmp_path/"train.jsonl").write_text("{}\n")
    uri = put_up(account, "train", tmp_path/"train.jsonl")
    (tmp_path/"folder").mkdir()
    (tmp_path/"folder"/"train.jsonl").write_text("{}\n")
    assert uri == put_up(account, "train", tmp_path/"folder")   # what the job sees is the same
    assert channel_files(tmp_path/"train.jsonl").keys() == {"train.jsonl"}


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_a_channel_without_data_is_refused(account, tmp_path, what):
    if what == "empty": (tmp_path/"empty").mkdir()
    with pytest.raises(BadInput, match="channel train has no data"):
        put_up(account, "train", tmp_path/what)


def test_names_stay_below_their_folder(account, tmp_path):
    (tmp_path/"in").mkdir()
    for name in ("..a", "é ü", "a+b%20&c", "#x"): (tmp_path/"in"/name).write_text(name)
    uri = put_up(account, "odd", tmp_path/"in")
    prefix = fetch.address(uri)[1]
    assert {k.removeprefix(prefix) for k in keys(account)} == {"..a", "é ü", "a+b%20&c", "#x"}


def test_a_part_that_is_there_isnt_sent_again(account, tmp_path):
    file = large(tmp_path)
    sums, asked = summed(file, PART), counted(account)

    def breaks(params, **_):
        if params["PartNumber"] == 3: raise KeyboardInterrupt

    events = account.client("s3").meta.events
    events.register("provide-client-params.s3.UploadPart", breaks)
    with pytest.raises(KeyboardInterrupt): send(account, file, "key", sums)
    events.unregister("provide-client-params.s3.UploadPart", breaks)
    assert asked["UploadPart"] == 2 and keys(account) == []     # nothing half-visible
    assert send(account, file, "key", sums) and asked["UploadPart"] == 3
    assert hashlib.sha256(got(account, "key")).hexdigest() == sums.sha256
    assert asked["CreateMultipartUpload"] == 1
    assert not send(account, file, "key", sums) and asked["UploadPart"] == 3


def test_parts_of_another_content_are_replaced(account, tmp_path):
    file = large(tmp_path)
    s3, at = account.client("s3"), {"Bucket": account.bucket, "Key": "key"}
    begun = s3.create_multipart_upload(**at, ChecksumAlgorithm="SHA256")["UploadId"]
    for number in (1, 3, 4):    # damaged, damaged, and one too many
        s3.upload_part(**at, UploadId=begun, PartNumber=number, Body=b"x" * PART,
                       ChecksumAlgorithm="SHA256")
    assert send(account, file, "key", summed(file, PART))
    assert got(account, "key") == file.read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from ftnb.foundation.settings import Settings, Stated
from ftnb.places import upload
from ftnb.places.account import open_account

upload.PART = 5 * 2**20
endpoint, bucket, file, parts_before = sys.argv[1:]
account = open_account(Settings(Path("/"), Stated(place="rehearsal", endpoint=endpoint,
                                                  bucket=bucket)))
arrived = []


def told(model, **_):
    if model.name == "UploadPart": arrived.append(model)
    if len(arrived) == int(parts_before): os.kill(os.getpid(), signal.SIGKILL)


account.client("s3").meta.events.register("after-call.s3", told)
upload.put_up(account, "base", Path(file))
"""


@pytest.mark.parametrize("parts_before", [1, 3])
def test_killed_in_the_middle_it_goes_on(account, tmp_path, parts_before, monkeypatch):
    file = large(tmp_path, 5.5)
    words = [sys.executable, "-c", KILLED, account.endpoint, account.bucket, str(file),
             str(parts_before)]
    assert subprocess.run(words, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert keys(account) == []
    monkeypatch.setattr(upload, "PART", PART)
    asked = counted(account)
    uri = put_up(account, "base", file)
    assert asked["UploadPart"] <= 6 - parts_before
    assert got(account, f"{fetch.address(uri)[1]}model.bin") == file.read_bytes()


def test_two_at_once_send_one_object(account, tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "PART", PART)
    file, found = large(tmp_path), []
    both = [threading.Thread(target=lambda: found.append(put_up(account, "base", file)))
            for _ in range(2)]
    for thread in both: thread.start()
    for thread in both: thread.join()
    assert len(found) == 2 and len(set(found)) == 1 and len(keys(account)) == 1
    assert got(account, keys(account)[0]) == file.read_bytes()


@pytest.mark.parametrize("operation, more", [
    ("upload_part", {"PartNumber": 1, "Body": b"x"}),
    ("upload_part_copy", {"PartNumber": 1, "CopySource": "there"}),
    ("complete_multipart_upload", {"MultipartUpload": {"Parts": [
        {"PartNumber": 1, "ETag": "x"}]}}),
    ("abort_multipart_upload", {}), ("list_parts", {})])
def test_an_upload_that_has_ended_is_no_upload(account, operation, more):
    s3, at = account.client("s3"), {"Bucket": account.bucket, "Key": "key"}
    s3.put_object(Bucket=account.bucket, Key="there", Body=b"x")
    if "CopySource" in more: more = {**more, "CopySource": f"{account.bucket}/there"}
    with pytest.raises(ClientError) as e: getattr(s3, operation)(**at, UploadId="gone", **more)
    assert e.value.response["Error"]["Code"] == "NoSuchUpload"


@pytest.mark.parametrize("comes", [True, False])
def test_an_upload_that_another_process_ended(account, tmp_path, monkeypatch, comes):
    "S3 forgets an upload before its object can be seen, or because somebody aborted it."
    monkeypatch.setattr(upload, "PART", PART)
    monkeypatch.setattr(upload, "ASSEMBLED", 30 if comes else .3)
    ended, begun = iter([("gone", dict[int, str]())]), upload.begun
    monkeypatch.setattr(upload, "begun", lambda *given: next(ended, None) or begun(*given))
    file = large(tmp_path)
    sums, other = summed(file), replace(account)
    late = threading.Timer(.5, upload.send_parts, (other, file, "key", sums, lambda n: None))
    if comes:
        late.start()
        assert send(account, file, "key", sums)
        late.join()
    else:
        with pytest.raises(StudyFailed, match="another process ended this upload") as e:
            send(account, file, "key", sums)
        assert "run it again" in str(e.value)


def test_what_another_request_replaced_meanwhile_is_tried_again(aws, account, monkeypatch):
    "moto closes the file of a part that somebody sends again, also while it is being read."
    moto, failed = aws.front.moto, list[int]()

    def races(environment, start):
        if environment["REQUEST_METHOD"] == "PUT" and not failed:
            failed.append(1)
            raise ValueError("I/O operation on closed file.")
        return moto(environment, start)

    monkeypatch.setattr(aws.front, "moto", races)
    account.client("s3").put_object(Bucket=account.bucket, Key="key", Body=b"x")
    assert failed and got(account, "key") == b"x"


def test_a_file_that_changes_meanwhile_is_noticed(account, tmp_path):
    file = tmp_path/"rows.txt"
    file.write_text("before")
    sums = summed(file)
    file.write_text("after!")
    with pytest.raises(StudyFailed, match="changed while it went up"):
        send(account, file, "key", sums)
    assert keys(account) == []


def test_what_s3_has_is_compared_with_what_was_sent(account, tmp_path):
    file = tmp_path/"rows.txt"
    file.write_text("right")
    account.client("s3").put_object(Bucket=account.bucket, Key="key", Body=b"wrong")
    assert send(account, file, "key", summed(file)) and got(account, "key") == b"right"

    def swaps(params, **_): params["Body"] = b"other"      # on its way, without a checksum
    def unsaid(params, **_):
        for name in ("ChecksumSHA256", "ChecksumAlgorithm"): params.pop(name, None)

    events = account.client("s3").meta.events
    for each in (swaps, unsaid): events.register("provide-client-params.s3.PutObject", each)
    file.write_text("again")
    with pytest.raises(StudyFailed, match="something else than what was sent"):
        send(account, file, "key", summed(file))


def test_kms_encrypts_and_an_unencrypted_copy_doesnt_count(account, tmp_path):
    file = tmp_path/"rows.txt"
    file.write_text("secret")
    put_up(account, "train", file)
    key = account.client("kms").create_key()["KeyMetadata"]["Arn"]
    secret = replace(account, kms_key=key, clients={})
    uri = put_up(secret, "train", file)
    said = account.client("s3").head_object(
        Bucket=account.bucket, Key=f"{fetch.address(uri)[1]}rows.txt")
    assert said["ServerSideEncryption"] == "aws:kms" and said["SSEKMSKeyId"] == key
    asked = counted(secret)
    assert put_up(secret, "train", file) == uri and asked["PutObject"] == 0


@pytest.mark.parametrize("switch", list(CLOSED))
def test_a_bucket_that_could_be_public_is_refused_with_the_command_that_closes_it(account, switch):
    s3 = account.client("s3")
    s3.put_public_access_block(Bucket=account.bucket,
                               PublicAccessBlockConfiguration={**CLOSED, switch: False})
    with pytest.raises(BadInput, match=switch) as e:
        put_up_all(account, {})
    assert "aws s3api put-public-access-block" in e.value.fix
    s3.put_public_access_block(Bucket=account.bucket, PublicAccessBlockConfiguration=CLOSED)
    check_bucket(account)


def test_a_bucket_that_isnt_there_is_said_with_the_command_that_makes_it(account):
    with pytest.raises(BadInput, match="no bucket 'not-there-at-all'") as e:
        check_bucket(replace(account, bucket="not-there-at-all"))
    assert "aws s3 mb s3://not-there-at-all" in e.value.fix


def patient(account: Account) -> Account:
    "The same account, whose clients give up on an answer after a second."
    from botocore.config import Config
    short = config("s3").merge(Config(read_timeout=1))
    return replace(account, clients={"s3": account.boto.client("s3", config=short)})


OPERATIONS = ("HeadObject", "PutObject", "ListMultipartUploads", "CreateMultipartUpload",
              "UploadPart", "CompleteMultipartUpload")
FAULTS = ("throttle", "drop", *(pytest.param(fault, marks=pytest.mark.slow)
                                for fault in ("internal", "unavailable", "timeout")))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_an_upload_are_recovered(aws, account, tmp_path, operation, fault, monkeypatch):
    monkeypatch.setattr(upload, "PART", PART)
    (tmp_path/"in").mkdir()
    (tmp_path/"in"/"small.txt").write_text("small")
    file = large(tmp_path/"in", 1.5)
    aws.context.faults.add(Rule(f"s3:{operation}", fault, 2 if fault != "timeout" else 1))
    uri = put_up(patient(account), "base", tmp_path/"in")
    prefix = fetch.address(uri)[1]
    assert got(account, f"{prefix}model.bin") == file.read_bytes()
    assert got(account, f"{prefix}small.txt") == b"small"
    assert [rule["struck"] for rule in aws.context.faults.table()] == [
        2 if fault != "timeout" else 1]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_answer_that_is_lost_after_the_work_does_no_harm(aws, account, tmp_path, operation,
                                                            monkeypatch):
    monkeypatch.setattr(upload, "PART", PART)
    (tmp_path/"in").mkdir()
    (tmp_path/"in"/"small.txt").write_text("small")
    file = large(tmp_path/"in", 1.5)
    aws.context.faults.add(Rule(f"s3:{operation}", "drop", 1, when="answer"))
    uri = put_up(account, "base", tmp_path/"in")
    assert got(account, f"{fetch.address(uri)[1]}model.bin") == file.read_bytes()
    assert len(keys(account)) == 2


@pytest.mark.parametrize(("fault", "words"), [
    ("throttle", "AWS is busy"), ("unavailable", "AWS is busy"), ("drop", "doesn't answer")])
def test_a_fault_that_lasts_is_a_clear_error_and_leaves_no_object(aws, account, tmp_path, fault,
                                                                  words):
    file = tmp_path/"rows.txt"
    file.write_text("rows")
    aws.context.faults.add(Rule("s3:PutObject", fault, None))
    with pytest.raises(StudyFailed, match=words) as e: put_up(account, "train", file)
    assert "uploading channel train" in e.value.where and "run it again" in e.value.fix
    aws.context.faults.clear()
    assert keys(account) == []
    assert put_up(account, "train", file)


@pytest.mark.parametrize("fault", ["drop", "internal", "throttle"])
def test_a_download_goes_on_where_it_broke(aws, account, tmp_path, fault):
    file = large(tmp_path)
    send(account, file, "model.tar.gz", summed(file, PART))
    aws.context.faults.add(Rule("s3:GetObject", fault, 2, when="answer"))
    how = fetch.download(account, f"s3://{account.bucket}/model.tar.gz", tmp_path/"back")
    assert (tmp_path/"back").read_bytes() == file.read_bytes() and how == "SHA-256"
    assert not list(tmp_path.glob(".*part"))


def test_a_download_that_isnt_the_object_is_thrown_away(account, tmp_path, monkeypatch):
    file = tmp_path/"a"
    file.write_text("right")
    send(account, file, "a", summed(file))

    def wrong(account, bucket, key, said, part, bar):
        part.write_text("wrong")
        return True

    monkeypatch.setattr(fetch, "fetched", wrong)
    with pytest.raises(StudyFailed, match="what arrived isn't what S3 has"):
        fetch.download(account, f"s3://{account.bucket}/a", tmp_path/"back")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_waiting_for_aws_isnt_for_ever(aws, account):
    "The other side is gone: the error says so, within the client's patience."
    gone = replace(account, clients={})
    object.__setattr__(gone, "boto", account.boto)
    from ftnb.places.account import session
    object.__setattr__(gone, "boto", session("us-east-1", "http://127.0.0.1:9", made_up=True))
    begun = time.monotonic()
    with pytest.raises(FtnbError, match="doesn't answer"): check_bucket(gone)
    assert time.monotonic() - begun < 30
