"Names, keys, archives and links that try to leave a job's folders: none gets out, or lets out."
import io
import json
import os
import tarfile
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError
from training_jobs import BUCKET, IMAGE, ROLE, channel, training_jobs

from ftnb.rehearsal.isolation import VARIABLE, try_namespaces

SECRET = "what only the user may read"
FOLDERS = ("model", "output/data", "output", "checkpoints", "model/sub", "checkpoints/sub")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder deep enough to climb out of, with something to find and to spoil on the way."
    root = tmp_path_factory.mktemp("safety")
    deep = root/"a"/"b"/"c"/"d"
    deep.mkdir(parents=True)
    for folder in (root, root/"a", root/"a"/"b", deep):
        (folder/"failure").write_text(SECRET)
        (folder/"victim").write_text("unharmed")
    return root


@pytest.fixture(scope="module")
def jobs(place):
    with training_jobs(place/"a"/"b"/"c"/"d"/"rehearsal") as found:
        found.run("other", "print('its log')")
        yield found


@pytest.fixture(autouse=True)
def nothing_left_its_folder(place):
    "Whatever a test does: nothing appears outside of the rehearsal's folder, or changes there."
    inside = place/"a"/"b"/"c"/"d"/"rehearsal"
    look = lambda: {str(p): (p.lstat().st_mode, p.is_file() and p.read_text())
                    for p in place.rglob("*") if not p.is_relative_to(inside)}
    before = look()
    yield
    assert look() == before
    assert not [p for p in place.rglob("*escaped*") if "/jobs/" not in str(p)]
    for folder in ("/", "/tmp", "/opt", "/etc", Path.home(), Path.cwd()):
        assert not list(Path(folder).glob("*escaped*")), folder


@pytest.fixture(params=["namespaces", "rewriting"])
def mode(request, monkeypatch):
    if request.param == "namespaces" and try_namespaces()[0] == "none": pytest.skip("no namespaces")
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


def stored(jobs, prefix: str) -> bytes:
    "All that S3 holds below a prefix, archives unpacked."
    found = []
    for key in jobs.keys(prefix):
        found.append(key.encode())
        if key.endswith(".tar.gz"):
            found += [n.encode() + b for n, b in jobs.members(prefix + key).items()]
        else: found.append(jobs.get(prefix + key))
    return b"\n".join(found)


def checkpoints(name: str) -> dict:
    return {"CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/checkpoints/{name}"}}


# What a job does with its own folders

@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
def test_a_folder_that_becomes_a_link_lets_nothing_out(jobs, place, compression):
    "The server, which sees more than the job, mustn't follow it."
    output = {"S3OutputPath": f"s3://{BUCKET}/out", "CompressionType": compression}
    names = {f: f"links-{f.replace('/', '-')}-{compression.lower()}" for f in FOLDERS}
    made = [jobs.create(name, f"""
import os, shutil, time
os.makedirs('/opt/ml/{folder}', exist_ok=True); os.makedirs('/opt/ml/model', exist_ok=True)
open('/opt/ml/model/own', 'w').write('mine')
shutil.rmtree('/opt/ml/{folder}'); os.symlink({str(place)!r}, '/opt/ml/{folder}')
time.sleep(.7)
""", OutputDataConfig=output, **checkpoints(name)) for folder, name in names.items()]
    assert all(record.ended.wait(90) for record in made)
    for folder, name in names.items():
        told = stored(jobs, f"out/{name}/") + stored(jobs, f"checkpoints/{name}/")
        assert not any(word in told for word in (SECRET.encode(), b"unharmed", b"victim")), folder
        if folder.startswith(("checkpoints", "output")): assert b"mine" in told


@pytest.mark.parametrize("what", ["/opt/ml/output/failure", "/opt/ml/output"])
def test_a_failure_that_is_a_link_tells_nothing(jobs, place, what):
    target = place/"failure" if what.endswith("failure") else place
    script = f"""
import os, shutil
shutil.rmtree('/opt/ml/output', ignore_errors=True)
os.makedirs(os.path.dirname({what!r}), exist_ok=True)
os.symlink({str(target)!r}, {what!r})
raise SystemExit(3)
"""
    told = jobs.run(f"reason-{what[-3:]}", script)
    assert told["TrainingJobStatus"] == "Failed" and SECRET not in told["FailureReason"]
    assert told["FailureReason"].endswith("exit code: 3")


def test_links_in_a_model_are_links(jobs, place, mode):
    script = f"""
import os
os.makedirs('/opt/ml/model', exist_ok=True); os.chdir('/opt/ml/model')
open('weights', 'w').write('mine')
os.symlink({str(place)!r} + '/victim', 'out'); os.symlink('weights', 'in'); os.symlink('.', 'loop')
os.symlink({str(place)!r}, 'folder'); os.symlink('nowhere', 'dangling')
"""
    jobs.run(f"model-links-{mode}", script)
    members = jobs.members(f"out/model-links-{mode}/output/model.tar.gz")
    assert members["weights"] == b"mine" and b"unharmed" not in b"".join(members.values())


def test_names_and_kinds_that_nobody_expects(jobs, mode):
    "Names that aren't text, pipes that nobody writes to, files that nobody may read."
    script = """
import os, socket
for folder in (b'/opt/ml/model', b'/opt/ml/checkpoints'):
    os.makedirs(folder, exist_ok=True); os.chdir(folder)
    for name in (b'\\xff\\xfe', b'new\\nline', b'n' * 255, b'-rf', b' ', b"a'b\\"c\\\\"):
        open(name, 'w').write('x')
    os.mkfifo('pipe'); socket.socket(socket.AF_UNIX).bind('socket')
    open('unreadable', 'w').write('x'); os.chmod('unreadable', 0)
    os.makedirs('closed/below'); os.chmod('closed', 0)
os.mkfifo('/opt/ml/output/failure') if os.path.isdir('/opt/ml/output') else None
"""
    told = jobs.run(f"names-{mode}", script, **checkpoints(f"names-{mode}"))
    if os.geteuid() == 0: assert told["TrainingJobStatus"] == "Completed", told.get("FailureReason")
    else: assert told["TrainingJobStatus"] in ("Completed", "Failed")
    assert not list(jobs.rehearsal.context.folder.glob("jobs/*/names-*/attempt-*"))   # cleaned up


def test_a_job_cannot_reach_the_rehearsals_own_files(jobs, monkeypatch):
    if try_namespaces()[0] == "none": pytest.skip("only a view of its own protects them")
    monkeypatch.setenv(VARIABLE, "namespaces")
    folder = jobs.rehearsal.context.folder
    log = next(folder.glob("jobs/training/other/*.log"))
    script = f"""
import glob, os, shutil
for name in ({str(log)!r}, {str(folder)!r}, '/opt/machine/../training', '/opt/ml/../../opt/x'):
    shutil.rmtree(name, ignore_errors=True)
    try: os.remove(name)
    except OSError: pass
for name in ({str(log)!r}, {str(folder/'escaped')!r}):
    try: open(name, 'w').write('mine')
    except OSError: pass
os.kill(os.getppid(), 9) if os.getppid() > 1 else None
"""
    before = log.read_text()
    assert jobs.run("spoils", script)["TrainingJobStatus"] == "Completed"
    assert log.read_text() == before and "its log" in before
    assert not list(folder.rglob("escaped"))


# Keys

KEYS = ["../escaped", "../" * 14 + "tmp/escaped", "/../escaped", "a/../../escaped", "./../escaped",
        "..", ".", "a/..", "\\..\\escaped", "a\\..\\..\\escaped", "escaped/../../x", "a/./b"]


def test_a_key_lands_in_its_channel_or_fails_the_job(jobs):
    for number, key in enumerate(KEYS): jobs.put(f"keys/{number}/{key}", "evil")
    made = [jobs.create(f"key-{n}", channels=[channel("train", f"s3://{BUCKET}/keys/{n}/")])
            for n in range(len(KEYS))]
    for key, record in zip(KEYS, made, strict=True):
        assert record.ended.wait(60) and record.status in ("Failed", "Completed")
        if ".." in key: assert "ClientError: Data download failed" in record.failure_reason


def test_a_checkpoint_lands_in_its_folder_or_fails_the_job(jobs):
    for name, key in (("c1", "../../escaped"), ("c2", "x/../../../escaped")):
        jobs.put(f"checkpoints/{name}/{key}", "evil")
        told = jobs.run(name, **checkpoints(name))
        assert told["TrainingJobStatus"] == "Failed" and "outside" in told["FailureReason"]


def test_a_manifest_names_no_way_out(jobs):
    jobs.put("evil", "evil")
    for number, names in enumerate((["../escaped"], ["/../../escaped"], ["a/../../../escaped"])):
        for name in names: jobs.put(f"manifest/{name}", "evil")
        text = json.dumps([{"prefix": f"s3://{BUCKET}/manifest/"}, *names])
        listed = channel("train", jobs.put(f"m{number}.manifest", text), S3DataType="ManifestFile")
        told = jobs.run(f"manifest-{number}", channels=[listed])
        assert told["TrainingJobStatus"] == "Failed" and "outside" in told["FailureReason"]


# Names and paths in requests

@pytest.mark.parametrize("name", ["..", ".", "...", "../escaped", "a/../../x", "a\\b", "%2e", ""])
def test_the_name_of_a_channel(jobs, name):
    jobs.put("named/escaped", "evil")
    number = sum(map(ord, name))
    try: jobs.run(f"channel-{number}", channels=[channel(name, f"s3://{BUCKET}/named/")])
    except Exception as e: assert "channel" in str(e).lower(), e
    assert not list(jobs.rehearsal.context.folder.rglob("escaped"))


@pytest.mark.parametrize("name", ["..", "../x", "a/../../escaped", "/escaped", "a\0b", "a\n", ".",
                                  "~", "a" * 64, "-", "a.b", "é"])
def test_the_name_of_a_job(jobs, name):
    request = jobs.parts.record("other").request | {"TrainingJobName": name}
    with pytest.raises(ClientError, match="rainingJobName"): jobs.sm.create_training_job(**request)


@pytest.mark.parametrize("number,path", enumerate([
    "/opt/ml/../../../../escaped", "/opt/ml/..", "/etc/escaped", "/opt/ml/a/../../../x", "opt/ml/x",
    "/"]))
def test_where_checkpoints_lie(jobs, number, path):
    jobs.put("checkpoints/local/escaped", "evil")
    config = {"S3Uri": f"s3://{BUCKET}/checkpoints/local", "LocalPath": path}
    try: jobs.run(f"local-{number}", CheckpointConfig=config)
    except ClientError as e: assert "LocalPath" in str(e) or "localPath" in str(e), e


REGIONS = ["../../../../escaped", "..", "us-east-1/../../../escaped", "%2e%2e", "a" * 300,
           "us-east-1\\..", "~"]


@pytest.mark.parametrize("region", REGIONS)
def test_the_region_of_a_request(jobs, region):
    "It is whatever a client signs with; job folders are named after it."
    request = {key: value for key, value in jobs.parts.record("other").request.items()}
    url = urlsplit(jobs.rehearsal.endpoint)
    connection = HTTPConnection(url.hostname, url.port, timeout=20)
    scope = f"testing/20260101/{region}/sagemaker/aws4_request"
    connection.request("POST", "/", json.dumps(request | {"TrainingJobName": "from-afar"}), {
        "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0",
        "X-Amz-Target": "SageMaker.CreateTrainingJob",
        "Content-Type": "application/x-amz-json-1.1"})
    answer = connection.getresponse()
    assert b"TrainingJobArn" not in answer.read()
    folders = {p.name for p in (jobs.rehearsal.context.folder/"jobs").glob("*")}
    assert "training" in folders <= {"training", "processing"}


# Archives

def archive(*members: tuple[str, str, str]) -> bytes:
    "A tar archive of (name, kind, content or target)."
    buffer = io.BytesIO()
    kinds = {"file": tarfile.REGTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE,
             "device": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE}
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name); info.type = kinds[kind]; info.mode = 0o4777
            info.devmajor, info.devminor = 1, 3
            if kind == "file": info.size = len(content)
            else: info.linkname = content
            tar.addfile(info, io.BytesIO(content.encode()) if kind == "file" else None)
    return buffer.getvalue()


def evil_archives(place):
    return {
        "climbs": [("../../../../escaped", "file", "evil")],
        "absolute": [(f"{place}/escaped", "file", "evil")],
        "dots": [("a/../../../escaped", "file", "evil")],
        "link": [("out", "link", str(place)), ("out/victim", "file", "evil")],
        "relative-link": [("out", "link", "../../../../../../.."), ("out/escaped", "file", "evil")],
        "links": [("a", "link", "."), ("a/b", "link", ".."), ("a/b/c", "link", "../.."),
                  ("a/b/c/escaped", "file", "evil")],
        "hard": [("h", "hard", f"{place}/victim"), ("h", "file", "evil")],
        "hard-relative": [("h", "hard", "../../../../../../victim"), ("h", "file", "evil")],
        "replaced": [("train.py", "link", f"{place}/victim"), ("train.py", "file", "print('ok')")],
        "device": [("null", "device", "")],
    }


def test_an_archive_of_source_code(jobs, place):
    request = {key: value for key, value in jobs.parts.record("other").request.items()
               if key not in ("InputDataConfig", "Environment")}
    for kind, members in evil_archives(place).items():
        body = archive(("train.py", "file", "print('ok')"), *members)
        toolkit = {"sagemaker_program": "train.py",
                   "sagemaker_submit_directory": jobs.put(f"source/{kind}.tar.gz", body)}
        jobs.sm.create_training_job(**request | {
            "TrainingJobName": f"archive-{kind}", "HyperParameters": toolkit,
            "AlgorithmSpecification": {"TrainingImage": IMAGE, "TrainingInputMode": "File"}})
    for kind in evil_archives(place):
        record = jobs.parts.record(f"archive-{kind}")
        assert record.ended.wait(60)
        if kind in ("climbs", "dots", "hard", "link"):
            assert record.status == "Failed" and "isn't safe" in record.failure_reason


# Processing jobs

def process(jobs, name, script, local="/opt/ml/processing/in", output="/opt/ml/processing/out",
            **source):
    "A processing job that runs a script; its record, at its end."
    code = jobs.put(f"processing/{name}/main.py", script)
    given = lambda title, uri, path: {"InputName": title, "S3Input": {
        "S3Uri": uri, "LocalPath": path, "S3DataType": "S3Prefix", "S3InputMode": "File"}}
    jobs.sm.create_processing_job(
        ProcessingJobName=name, RoleArn=ROLE,
        AppSpecification={"ImageUri": IMAGE, "ContainerEntrypoint": [
            "python3", "/opt/ml/processing/input/code/main.py"]},
        ProcessingInputs=[given("code", code, "/opt/ml/processing/input/code"),
                          given("data", jobs.put(f"processing/{name}/in/escaped", "evil"), local)],
        ProcessingOutputConfig={"Outputs": [{"OutputName": mode.lower(), "S3Output": {
            "S3Uri": f"s3://{BUCKET}/processed/{name}/{mode}", "LocalPath": f"{output}/{mode}",
            "S3UploadMode": mode}} for mode in ("EndOfJob", "Continuous")]},
        ProcessingResources={"ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.large",
                                               "VolumeSizeInGB": 1}})
    record = jobs.rehearsal.parts["processing"].job(name).record
    assert record.over.wait(60)
    return record


@pytest.mark.parametrize("number,path", enumerate([
    "/opt/ml/processing/../../../../../escaped", "/etc/escaped", "/opt/ml/processing/..", "escaped",
    "/opt/ml/../escaped", "/opt/ml/processing/a/../../../../../../escaped", "/"]))
def test_where_a_processing_jobs_data_lie(jobs, place, number, path):
    for name, where in (("in", {"local": path}), ("out", {"output": path})):
        try: record = process(jobs, f"{name}-{number}", "print('ran')", **where)
        except ClientError as e: assert "LocalPath" in str(e) or "localPath" in str(e), e
        else: assert record.status in ("Failed", "Completed")


def test_what_a_processing_job_leaves(jobs, place):
    script = f"""
import os, shutil, time
out = '/opt/ml/processing/out/'
open(out + 'EndOfJob/own', 'w').write('mine'); open(out + 'Continuous/own', 'w').write('mine')
time.sleep(.7)
os.symlink({str(place)!r} + '/failure', out + 'EndOfJob/one')
os.symlink('own', out + 'EndOfJob/two')
open(out + 'EndOfJob/three', 'w').write('mine')
shutil.rmtree(out + 'Continuous'); os.symlink({str(place)!r}, out + 'Continuous')
shutil.rmtree('/opt/ml/output'); os.symlink({str(place)!r}, '/opt/ml/output')
time.sleep(.7)
"""
    (place/"message").write_text(SECRET)
    try: record = process(jobs, "leaves", script)
    finally: (place/"message").unlink()
    told = stored(jobs, "processed/leaves/")
    assert record.status == "Completed" and SECRET not in (record.message or "")
    assert SECRET.encode() not in told and b"unharmed" not in told and b"mine" in told
