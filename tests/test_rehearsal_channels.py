"What a job finds in its folders, and that nothing leaves them."
import gzip
import io
import json
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_jobs import BUCKET, ROLE, channel, training_jobs

from ftnb.rehearsal.artifacts import gathered, inside, pack
from ftnb.rehearsal.channels import Found, JobFailed, fetch, placed, relative, share
from ftnb.rehearsal.mirror import Mirror, sync
from ftnb.rehearsal.watching import BATCH_BYTES, LINE, batches, bursts, weight

# Prints the files below /opt/ml/input/data, but for the code's.
LISTS = """
import os
root = '/opt/ml/input/data'
for folder, _, files in sorted(os.walk(root)):
    for name in sorted(files):
        path = os.path.relpath(os.path.join(folder, name), root)
        if not path.startswith('code/'): print(path, open(os.path.join(folder, name)).read())
"""
NAMES = st.text(st.sampled_from("ab./\\\0é"), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def jobs():
    with training_jobs() as found: yield found


@given(st.lists(NAMES, max_size=8))
def test_no_key_leaves_its_folder_or_shares_a_place(paths):
    try: places = placed([Found("b", path, 0, path) for path in paths])
    except JobFailed: return
    root = Path("/channel")
    for path in places:
        assert Path(os.path.normpath(root/path)).is_relative_to(root) and path == path.strip("/")
        assert "\0" not in path and ".." not in Path(path).parts
        assert not any(other.startswith(path + "/") for other in places)
    assert len(places) == len(paths)


@given(st.lists(st.integers(), max_size=30), st.integers(1, 7), st.none() | st.integers(0, 9))
def test_shards_are_a_division(items, count, seed):
    found = [Found("b", str(i), 0, str(i)) for i in range(len(items))]
    source = {"S3DataDistributionType": "ShardedByS3Key"}
    shards = [share(found, i, count, source, seed) for i in range(count)]
    assert sorted((f.key for s in shards for f in s), key=int) == [f.key for f in found]
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@given(st.text(st.sampled_from("ab/"), max_size=6), st.text(st.sampled_from("ab/"), max_size=6))
def test_a_path_is_the_end_of_its_key(prefix, rest):
    path = relative(prefix + rest, prefix)
    assert (prefix + rest).endswith(path) and not path.startswith("/")


@given(st.lists(st.text(max_size=40), max_size=30))
def test_batches_hold_all_events_in_order(messages):
    events = [{"timestamp": i, "message": m * 3000} for i, m in enumerate(messages)]
    found = list(batches(events))
    assert [e for batch in found for e in batch] == events
    assert all(len(batch) == 1 or sum(map(weight, batch)) <= BATCH_BYTES for batch in found)


@given(st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\xff", "é".encode(), b"x" * LINE])))
def test_any_bytes_are_lines(pieces):
    content = b"".join(pieces)
    found = [line for burst in bursts(io.BytesIO(content)) for line in burst]
    assert len(found) >= content.count(b"\n") and max(map(len, found), default=0) <= LINE
    assert "".join(found).count("a") == content.count(b"a")


def test_what_is_gathered_may_vanish_meanwhile(tmp_path, monkeypatch):
    "A trainer deletes its older checkpoints while they are looked at."
    (tmp_path/"old").mkdir()
    for name in ("old/a", "old/b", "new"): (tmp_path/name).write_text(name)
    look = os.lstat

    def gone(path):
        if Path(path).name == "b": os.remove(path)
        return look(path)

    monkeypatch.setattr(os, "lstat", gone)
    assert [*gathered([tmp_path])] == ["new", "old", "old/a"]


def test_channels_of_all_kinds(jobs):
    for key in ("train/a", "train/sub/b", "trainer", "listed/x/1", "listed/x/2"):
        jobs.put(f"kinds/{key}", key)
    manifest = jobs.put("kinds/m.manifest", json.dumps(
        [{"prefix": f"s3://{BUCKET}/kinds/listed/"}, "x/2"]))
    jobs.run("kinds", LISTS, channels=[
        channel("folder", f"s3://{BUCKET}/kinds/train/"),
        channel("prefix", f"s3://{BUCKET}/kinds/train", "FastFile"),
        channel("one", f"s3://{BUCKET}/kinds/train/a"),
        channel("manifest", manifest, S3DataType="ManifestFile")])
    note, *found = jobs.printed("kinds")      # the note comes first
    assert note == "[rehearsal] channel prefix: FastFile, fetched as a whole"
    assert found == [
        "folder/a train/a", "folder/sub/b train/sub/b", "manifest/x/2 listed/x/2", "one/a train/a",
        "prefix/a train/a", "prefix/trainer trainer", "prefix/sub/b train/sub/b"]


def test_shards_of_two_instances(jobs):
    for i in range(5): jobs.put(f"shards/{i}", str(i))
    jobs.run("shards", LISTS, instances=2, channels=[
        channel("dealt", f"s3://{BUCKET}/shards/", S3DataDistributionType="ShardedByS3Key"),
        channel("whole", f"s3://{BUCKET}/shards/")])
    printed = {name[:6]: found for name, found in jobs.lines("shards").items()}
    dealt = {host: [line for line in found if line.startswith("dealt")]
             for host, found in printed.items()}
    assert dealt == {"algo-1": [f"dealt/{i} {i}" for i in (0, 2, 4)],
                     "algo-2": [f"dealt/{i} {i}" for i in (1, 3)]}
    assert all(len(found) - len(dealt[host]) == 5 for host, found in printed.items())


def test_a_key_that_leads_out_fails_the_job_and_writes_nothing(jobs):
    jobs.put("evil/ok", "1")
    jobs.put("evil/../../../../escaped", "2")
    told = jobs.run("evil", LISTS, channels=[channel("train", f"s3://{BUCKET}/evil/")])
    assert told["TrainingJobStatus"] == "Failed" and "escaped" in told["FailureReason"]
    assert not list(jobs.rehearsal.context.folder.rglob("escaped"))
    jobs.put("clash/a", "1")
    jobs.put("clash/a/b", "2")
    told = jobs.run("clash", LISTS, channels=[channel("train", f"s3://{BUCKET}/clash/")])
    assert told["TrainingJobStatus"] == "Failed" and "clash/a" in told["FailureReason"]


def test_an_object_that_vanishes_fails_the_job(jobs):
    jobs.put("vanishes/a", "1")
    record = jobs.create("vanishes", LISTS, channels=[channel("train", f"s3://{BUCKET}/vanishes/")])
    jobs.s3.delete_object(Bucket=BUCKET, Key="vanishes/a")
    assert record.ended.wait(30)
    if record.status == "Failed":   # it was quicker than the download
        assert record.failure_reason.startswith("ClientError: ")
        assert "vanishes" in record.failure_reason


def test_a_large_object_comes_in_parts(jobs, tmp_path, monkeypatch):
    from ftnb.rehearsal import channels
    content = os.urandom(12 << 20)
    jobs.put("large/file", content)
    monkeypatch.setattr(channels, "LARGE", 1 << 20)
    found = [Found(BUCKET, "large/file", len(content), "file")]
    assert fetch(jobs.s3, found, tmp_path) == len(content)
    assert (tmp_path/"file").read_bytes() == content


def test_the_files_that_say_what_was_asked(jobs):
    jobs.put("asked/a", "1")
    script = """
import json
for name in ('hyperparameters', 'inputdataconfig', 'resourceconfig'):
    print(json.dumps(json.load(open(f'/opt/ml/input/config/{name}.json'))))
"""
    jobs.run("asked", script, HyperParameters={"epochs": "3"}, channels=[
        channel("train", f"s3://{BUCKET}/asked/", "FastFile") | {"ContentType": "text/csv"}])
    hyper, inputs, resources = map(json.loads, jobs.printed("asked")[1:])
    assert hyper == {"epochs": "3"}
    assert inputs["train"] == {"TrainingInputMode": "FastFile", "RecordWrapperType": "None",
                               "S3DistributionType": "FullyReplicated", "ContentType": "text/csv"}
    assert resources == {
        "current_host": "algo-1", "current_instance_type": "ml.m5.large", "hosts": ["algo-1"],
        "current_group_name": "homogeneousCluster", "network_interface_name": "lo",
        "instance_groups": [{"instance_group_name": "homogeneousCluster", "hosts": ["algo-1"],
                             "instance_type": "ml.m5.large"}]}


LINKS = """
import os
open('/opt/ml/model/real', 'w').write('weights')
os.symlink('real', '/opt/ml/model/relative')
os.symlink('/etc/passwd', '/opt/ml/model/stranger')
os.mkfifo('/opt/ml/model/pipe')
"""


def test_outputs_without_compression_and_without_what_lies_elsewhere(jobs):
    config = {"S3OutputPath": f"s3://{BUCKET}/out/", "CompressionType": "NONE"}
    told = jobs.run("plain", LINKS, OutputDataConfig=config)
    assert told["ModelArtifacts"]["S3ModelArtifacts"] == f"s3://{BUCKET}/out/plain/output/model/"
    assert jobs.keys("out/plain/output/") == ["model/real", "model/relative"]
    jobs.run("packed", LINKS)
    assert jobs.members("out/packed/output/model.tar.gz") == {"real": b"weights"}


def test_outputs_are_encrypted_with_the_jobs_key(jobs):
    key = jobs.client("kms").create_key()["KeyMetadata"]["Arn"]
    config = {"S3OutputPath": f"s3://{BUCKET}/out", "KmsKeyId": key}
    told = jobs.run("forbidden", LINKS, OutputDataConfig=config)
    assert told["TrainingJobStatus"] == "Failed" and "kms:" in told["FailureReason"]
    allow = {"Effect": "Allow", "Action": ["kms:GenerateDataKey", "kms:Decrypt", "kms:Encrypt"],
             "Resource": key}
    policy = {"Version": "2012-10-17", "Statement": [allow]}
    jobs.client("iam").put_role_policy(RoleName=ROLE.rpartition("/")[2], PolicyName="key",
                                       PolicyDocument=json.dumps(policy))
    told = jobs.run("secret", LINKS, OutputDataConfig=config)
    assert told["TrainingJobStatus"] == "Completed", told["FailureReason"]
    stored = jobs.s3.head_object(Bucket=BUCKET, Key="out/secret/output/model.tar.gz")
    assert (stored["ServerSideEncryption"], stored["SSEKMSKeyId"]) == ("aws:kms", key)


def test_a_place_that_is_gone_fails_the_upload(jobs):
    jobs.s3.create_bucket(Bucket="gone")
    record = jobs.create("gone", "import time; print('x'); time.sleep(1)",
                         OutputDataConfig={"S3OutputPath": "s3://gone/out"})
    jobs.until_printed("gone", "x")
    jobs.s3.delete_bucket(Bucket="gone")
    assert record.ended.wait(30)
    assert record.failure_reason.startswith("ClientError: Artifact upload failed:")


def test_tensorboard_events_are_in_s3_while_the_job_runs(jobs):
    script = """
import os, time
os.makedirs('/opt/ml/output/tensorboard', exist_ok=True)
open('/opt/ml/output/tensorboard/events', 'w').write('scalars')
time.sleep(60)
"""
    record = jobs.create("board", script,
                         TensorBoardOutputConfig={"S3OutputPath": f"s3://{BUCKET}/boards"})
    assert jobs.until(lambda: jobs.keys("boards/board/tensorboard-output/")) == ["events"]
    jobs.sm.stop_training_job(TrainingJobName="board")
    assert record.ended.wait(30)


def test_archives_are_the_same_whatever_the_machine(tmp_path):
    for name in ("one", "two"):
        (tmp_path/name/"sub").mkdir(parents=True)
        for file in (["b", "sub/a"] if name == "one" else ["sub/a", "b"]):
            (tmp_path/name/file).write_text(file)
    os.chmod(tmp_path/"two"/"b", 0o640)
    os.utime(tmp_path/"two"/"b", (0, 0))
    for name in ("one", "two"): pack([tmp_path/name], tmp_path/f"{name}.tar.gz")
    assert (tmp_path/"one.tar.gz").read_bytes() == (tmp_path/"two.tar.gz").read_bytes()
    assert gzip.decompress((tmp_path/"one.tar.gz").read_bytes())[:1] == b"b"
    assert not inside(Path("/etc/passwd"), [tmp_path])


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="leases are Linux's")
def test_what_s3_holds_of_a_checkpoint_is_always_whole(jobs, tmp_path):
    "A writer in a process of its own rewrites in place, slowly; a reader of S3 sees whole states."
    import subprocess
    import sys
    folder, size = tmp_path/"checkpoints", 200_000
    folder.mkdir()
    writer = subprocess.Popen([sys.executable, "-c", f"""
import time
for state in range(12):
    with open({str(folder/'state')!r}, 'wb') as f:
        for _ in range(10):
            f.write(bytes([65 + state]) * {size // 10})
            f.flush()
            time.sleep(0.01)
    time.sleep(0.05)
"""])
    mirror = Mirror(jobs.s3, folder, f"s3://{BUCKET}/whole", tmp_path/"work", every=0.01)
    mirror.start()
    seen = set()
    while writer.poll() is None:
        if jobs.keys("whole/"): seen.add(jobs.get("whole/state"))
        time.sleep(0.01)
    mirror.stop()
    sync(mirror, settled=True)
    assert jobs.get("whole/state") == b"L" * size
    assert seen and all(len(state) == size and len(set(state)) == 1 for state in seen)
    assert not mirror.problem and threading.active_count() < 60
