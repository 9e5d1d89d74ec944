"Processing jobs on the rehearsal, through boto3 and the SageMaker SDK's processors."
import json
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from ftnb.rehearsal.client import connected
from ftnb.rehearsal.faults import Rule
from ftnb.rehearsal.processing import GROUP
from ftnb.rehearsal.server import BUCKET, ROLE, rehearsal

ARN = f"arn:aws:iam::123456789012:role/{ROLE}"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/mine:1"
BASE = "/opt/ml/processing"


class Client:
    "A client of a rehearsal's processing jobs."

    def __init__(self, running):
        self.running, self.sagemaker = running, running.context.client("sagemaker")
        self.s3, self.logs = running.context.client("s3"), running.context.client("logs")

    def put(self, key, text): self.s3.put_object(Bucket=BUCKET, Key=key, Body=text)

    def files(self, prefix) -> dict[str, bytes]:
        "What lies below a prefix."
        found = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        get = lambda key: self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return {o["Key"][len(prefix):]: get(o["Key"]) for o in found}

    def request(self, name, script="", inputs=(), outputs=(), instances=1, command=None, **more):
        "A request; its script is the input named code."
        code: list[tuple[str, str, dict[str, Any]]] = []
        if script:
            self.put(f"{name}/code/main.py", script)
            code = [("code", f"{name}/code/main.py", {})]
        brought = [{"InputName": n, "S3Input": {
            "S3Uri": f"s3://{BUCKET}/{key}", "LocalPath": f"{BASE}/{n}", "S3DataType": "S3Prefix",
            "S3InputMode": "File", **extra}} for n, key, extra in [*code, *inputs]]
        taken = [{"OutputName": n, "S3Output": {
            "S3Uri": f"s3://{BUCKET}/{name}/{n}", "LocalPath": f"{BASE}/{n}",
            "S3UploadMode": mode}} for n, mode in outputs]
        cluster = {"InstanceType": "ml.m5.large", "InstanceCount": instances, "VolumeSizeInGB": 10}
        entrypoint = command or ["python3", f"{BASE}/code/main.py"]
        return {"ProcessingJobName": name, "RoleArn": ARN, "ProcessingInputs": brought,
                "AppSpecification": {"ImageUri": IMAGE, "ContainerEntrypoint": entrypoint},
                "ProcessingOutputConfig": {"Outputs": taken},
                "ProcessingResources": {"ClusterConfig": cluster}, **more}

    def create(self, name, *arguments, **more):
        self.sagemaker.create_processing_job(**self.request(name, *arguments, **more))

    def describe(self, name): return self.sagemaker.describe_processing_job(ProcessingJobName=name)

    def finished(self, name, seconds=60):
        until = time.monotonic() + seconds
        while (told := self.describe(name))["ProcessingJobStatus"] in ("InProgress", "Stopping"):
            assert time.monotonic() < until, told
            time.sleep(.05)
        return told

    def run(self, name, *arguments, **more):
        self.create(name, *arguments, **more)
        return self.finished(name)

    def printed(self, name):
        found = self.logs.filter_log_events(logGroupName=GROUP, logStreamNamePrefix=f"{name}/")
        return [event["message"] for event in found["events"]]

    def until(self, check, seconds=30):
        until = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < until
            time.sleep(.05)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processing")/"run"
    with rehearsal(folder, stop_notice=.5) as running: yield Client(running)


def refused(call, code, text=""):
    with pytest.raises(ClientError) as e: call()
    assert e.value.response["Error"]["Code"] == code, e.value
    assert text in e.value.response["Error"]["Message"]


LOOKS = """
import json, os, pathlib, sys
base = pathlib.Path("/opt/ml")
files = [p for p in (base/"processing").rglob("*") if p.is_file()]
told = {"config": json.loads((base/"config/processingjobconfig.json").read_text()),
        "resources": json.loads((base/"config/resourceconfig.json").read_text()),
        "inputs": sorted(str(p.relative_to(base/"processing")) for p in files),
        "outputs": sorted(p.name for p in (base/"processing").iterdir() if p.is_dir()),
        "colour": os.environ["COLOUR"], "arguments": sys.argv[1:],
        "region": os.environ["AWS_REGION"], "endpoint": os.environ["AWS_ENDPOINT_URL"]}
(base/"processing/out/sub").mkdir(parents=True)
(base/"processing/out/sub/told.json").write_text(json.dumps(told))
(base/"output/message").write_text("looked around")
"""


def test_what_a_job_finds_and_leaves(client):
    for name in ("a", "b"): client.put(f"finds/data/{name}.txt", name)
    app = client.request("finds", LOOKS)["AppSpecification"]
    app["ContainerArguments"] = ["--fast", "1"]
    told = client.run("finds", LOOKS, [("data", "finds/data/", {})], [("out", "EndOfJob")],
                      Environment={"COLOUR": "blue"}, AppSpecification=app)
    assert told["ProcessingJobStatus"] == "Completed" and told["ExitMessage"] == "looked around"
    assert told["ProcessingEndTime"] >= told["ProcessingStartTime"] >= told["CreationTime"]
    assert told["StoppingCondition"] == {"MaxRuntimeInSeconds": 86400}
    [found] = [json.loads(body) for body in client.files("finds/out/").values()]
    assert list(client.files("finds/out/")) == ["sub/told.json"]
    assert found["config"]["ProcessingJobArn"] == told["ProcessingJobArn"]
    assert found["config"]["AppSpecification"]["ContainerArguments"] == ["--fast", "1"]
    assert found["config"]["ProcessingOutputConfig"]["Outputs"][0]["OutputName"] == "out"
    assert found["resources"]["current_host"] == "algo-1"
    assert found["resources"]["hosts"] == ["algo-1"]
    assert found["inputs"] == ["code/main.py", "data/a.txt", "data/b.txt"]
    assert found["outputs"] == ["code", "data", "out"] and found["arguments"] == ["--fast", "1"]
    assert found["colour"] == "blue" and found["endpoint"] == client.running.endpoint


def test_failures_say_why(client):
    told = client.run("fails", "import sys; print('going down'); "
                      "open('/opt/ml/output/message', 'w').write('no data'); sys.exit(7)",
                      outputs=[("out", "EndOfJob")])
    assert told["ProcessingJobStatus"] == "Failed" and told["ExitMessage"] == "no data"
    assert "exit code: 7" in told["FailureReason"] and client.printed("fails") == ["going down"]
    assert not client.files("fails/out/")


def test_a_missing_program_fails(client):
    told = client.run("missing", command=["/no/such/program"])
    assert told["ProcessingJobStatus"] == "Failed" and "127" in told["FailureReason"]


def test_without_a_command_nothing_is_known(client):
    told = client.run("image-only", AppSpecification={"ImageUri": IMAGE})
    assert told["ProcessingJobStatus"] == "Failed" and "has no images" in told["FailureReason"]


def test_a_message_that_is_no_text_fails_the_job(client):
    told = client.run("garbled", "open('/opt/ml/output/message', 'wb').write(b'\\xff\\xfe')")
    assert told["ProcessingJobStatus"] == "Failed" and "UTF-8" in told["FailureReason"]


def test_continuous_outputs_are_there_while_it_runs(client):
    script = f"import time\nopen('{BASE}/early/one', 'w').write('1')\ntime.sleep(60)"
    client.create("continuous", script, outputs=[("early", "Continuous"), ("late", "EndOfJob")])
    client.until(lambda: client.files("continuous/early/") == {"one": b"1"})
    assert client.describe("continuous")["ProcessingJobStatus"] == "InProgress"
    client.sagemaker.stop_processing_job(ProcessingJobName="continuous")
    assert client.finished("continuous")["ProcessingJobStatus"] == "Stopped"
    refused(lambda: client.sagemaker.stop_processing_job(ProcessingJobName="continuous"),
            "ValidationException", "Stopped")


def test_a_stopped_job_may_say_goodbye(client):
    script = """
import pathlib, signal, sys, time
def leave(*_):
    pathlib.Path("/opt/ml/processing/kept/last").write_text("bye")
    pathlib.Path("/opt/ml/output/message").write_text("asked to leave")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(60)
"""
    client.create("goodbye", script, outputs=[("kept", "Continuous")])
    log = client.running.context.folder/"jobs"/"processing"/"goodbye"/"algo-1.log"
    client.until(lambda: log.exists() and "ready" in log.read_text())
    client.sagemaker.stop_processing_job(ProcessingJobName="goodbye")
    told = client.finished("goodbye")
    assert told["ProcessingJobStatus"] == "Stopped" and told["ExitMessage"] == "asked to leave"
    assert client.files("goodbye/kept/") == {"last": b"bye"}


def test_time_runs_out(client):
    told = client.run("endless", "import time; time.sleep(60)",
                      StoppingCondition={"MaxRuntimeInSeconds": 1})
    assert told["ProcessingJobStatus"] == "Stopped"
    assert 1 <= (told["ProcessingEndTime"] - told["ProcessingStartTime"]).total_seconds() < 20


def test_instances_share_by_key(client):
    for i in range(5): client.put(f"shares/data/{i}.txt", str(i))
    script = f"""
import json, pathlib
host = json.load(open("/opt/ml/config/resourceconfig.json"))["current_host"]
names = sorted(p.name for p in pathlib.Path("{BASE}/data").iterdir())
pathlib.Path("{BASE}/out", host).write_text(" ".join(names))
open("/opt/ml/output/message", "w").write(host + ";")
"""
    shared = ("data", "shares/data/", {"S3DataDistributionType": "ShardedByS3Key"})
    told = client.run("shares", script, [shared], [("out", "EndOfJob")], instances=2)
    assert told["ExitMessage"] == "algo-1;algo-2;"
    assert client.files("shares/out/") == {"algo-1": b"0.txt 2.txt 4.txt", "algo-2": b"1.txt 3.txt"}


def test_one_failing_instance_ends_all(client):
    script = """
import json, sys, time
if json.load(open("/opt/ml/config/resourceconfig.json"))["current_host"] == "algo-2": sys.exit(4)
time.sleep(60)
"""
    told = client.run("one-fails", script, instances=2)
    assert "exit code: 4" in told["FailureReason"]
    assert (told["ProcessingEndTime"] - told["ProcessingStartTime"]).total_seconds() < 30


def test_links_lead_nowhere(client):
    script = f"""
import os
os.symlink("/etc/passwd", "{BASE}/out/passwd")
os.symlink("/etc", "{BASE}/out/etc")
open("{BASE}/out/real", "w").write("real")
os.symlink("/etc/passwd", "/opt/ml/output/message")
os.rmdir("{BASE}/moved")
os.symlink("/etc", "{BASE}/moved")
"""
    told = client.run("links", script, outputs=[("out", "EndOfJob"), ("moved", "EndOfJob")])
    assert told["ProcessingJobStatus"] == "Completed" and "ExitMessage" not in told
    assert client.files("links/out/") == {"real": b"real"} and not client.files("links/moved/")


def test_a_manifest_names_the_inputs(client):
    for name in ("x", "y"): client.put(f"listed/data/{name}", name)
    client.put("listed/data.manifest", json.dumps([{"prefix": f"s3://{BUCKET}/listed/data/"}, "y"]))
    script = f"import os; open('{BASE}/out/names', 'w').write(' '.join(os.listdir('{BASE}/data')))"
    manifest = ("data", "listed/data.manifest", {"S3DataType": "ManifestFile"})
    client.run("listed", script, [manifest], [("out", "EndOfJob")])
    assert client.files("listed/out/") == {"names": b"y"}


def test_faults(client):
    client.running.context.faults.add(Rule("capacity*", "capacity"))
    client.running.context.faults.add(Rule("hangs*", "hang"))
    told = client.run("capacity", "print('never')")
    assert told["FailureReason"].startswith("CapacityError") and "ProcessingStartTime" not in told
    assert client.run("hangs", "print('never')", StoppingCondition={"MaxRuntimeInSeconds": 1})[
        "ProcessingJobStatus"] == "Stopped"


def test_refusals(client):
    client.run("taken", "print('hello')")
    refused(lambda: client.create("taken", LOOKS), "ResourceInUse", "unique")
    for operation in ("describe", "stop", "delete"):
        call = getattr(client.sagemaker, f"{operation}_processing_job")
        refused(lambda call=call: call(ProcessingJobName="nobody"), "ValidationException",
                "Could not find requested job with name: nobody")
    client.put("piped/data/rows", "1")
    piped = ("data", "piped/data/", {"S3InputMode": "Pipe"})
    refused(lambda: client.create("piped", LOOKS, [piped]), "UnsupportedOperationException", "Pipe")


def test_lists_waiters_and_tags(client):
    client.create("waited", "print('hello')", Tags=[{"Key": "team", "Value": "blue"}])
    waiter = client.sagemaker.get_waiter("processing_job_completed_or_stopped")
    waiter.wait(ProcessingJobName="waited", WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    arn = client.describe("waited")["ProcessingJobArn"]
    assert client.sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "team", "Value": "blue"}]
    failing = ("third", "first", "second")
    for name in failing: client.run(name, "raise SystemExit(1)")
    pages = client.sagemaker.get_paginator("list_processing_jobs").paginate(
        StatusEquals="Failed", SortBy="Name", PaginationConfig={"PageSize": 2})
    names = [one["ProcessingJobName"] for page in pages for one in page["ProcessingJobSummaries"]]
    assert names == sorted(names) and {*failing} <= {*names} and "waited" not in names
    client.sagemaker.delete_processing_job(ProcessingJobName="waited")
    refused(lambda: client.describe("waited"), "ValidationException")


def test_what_is_kept_comes_back_and_nothing_is_left(client):
    jobs = client.running.parts["processing"]
    says = "open('/opt/ml/output/message', 'w').write('all done')"
    client.run("ended", says, instances=2)
    client.create("lost", "import time; time.sleep(60)")
    client.until(lambda: jobs.job("lost").record.logs)
    state = json.loads(json.dumps(jobs.state()))
    other = type(jobs)(jobs.context)
    other.restore(state)
    assert other.job("ended").record.message == 2 * "all done"
    assert other.job("lost").record.status == "Failed"
    assert "rehearsal was stopped" in other.job("lost").record.reason
    client.sagemaker.stop_processing_job(ProcessingJobName="lost")
    client.finished("lost")
    folder = client.running.context.folder/"jobs"/"processing"
    assert {path.name for path in folder.glob("*/*")} == {"algo-1.log", "algo-2.log"}
    assert {row["kind"] for row in jobs.table()} == {"processing"}
    assert all(Path(row["log"]).is_file() for row in jobs.table() if row["log"])


# ---- through the SDK

CLEAN = """
import argparse, csv, os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
parser = argparse.ArgumentParser()
parser.add_argument("--least", type=int)
given = parser.parse_args()
with open("/opt/ml/processing/input/rows.csv") as f: rows = list(csv.reader(f))
kept = [row for row in rows if int(row[1]) >= given.least]
with open("/opt/ml/processing/output/rows.csv", "w") as f: csv.writer(f).writerows(kept)
print("kept", len(kept))
"""


@pytest.fixture
def sdk(client, tmp_path):
    pytest.importorskip("sagemaker.core")
    from sagemaker.core.helper.session_helper import Session
    (tmp_path/"rows.csv").write_text("a,1\nb,2\nc,3\n")
    (tmp_path/"source").mkdir()
    (tmp_path/"source"/"clean.py").write_text(CLEAN)
    with connected(client.running.endpoint): yield Session(), tmp_path


def parts(folder):
    from sagemaker.core.shapes import (
        ProcessingInput,
        ProcessingOutput,
        ProcessingS3Input,
        ProcessingS3Output,
    )
    made = ProcessingInput(input_name="rows", s3_input=ProcessingS3Input(
        s3_uri=str(folder/"rows.csv"), local_path=f"{BASE}/input", s3_data_type="S3Prefix"))
    out = ProcessingOutput(output_name="rows", s3_output=ProcessingS3Output(
        s3_uri="", local_path=f"{BASE}/output", s3_upload_mode="EndOfJob"))
    return [made], [out]


def outcome(client, job):
    told = client.finished(job.processing_job_name)
    assert told["ProcessingJobStatus"] == "Completed", client.printed(job.processing_job_name)
    uri = told["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["S3Uri"]
    files = client.files(uri.removeprefix(f"s3://{BUCKET}/").rstrip("/") + "/")
    assert {k: v.decode().split() for k, v in files.items()} == {"rows.csv": ["b,2", "c,3"]}
    assert client.printed(job.processing_job_name)[-1] == "kept 2"


def test_the_sdks_script_processor(client, sdk):
    from sagemaker.core.processing import ScriptProcessor
    session, folder = sdk
    processor = ScriptProcessor(
        role=ARN, image_uri=IMAGE, command=["python3"], instance_count=1,
        instance_type="ml.m5.large", base_job_name="script", sagemaker_session=session)
    inputs, outputs = parts(folder)
    processor.run(code=str(folder/"source"/"clean.py"), inputs=inputs, outputs=outputs,
                  arguments=["--least", "2"], wait=False, logs=False)
    outcome(client, processor.latest_job)
    processor.latest_job.wait(poll=1)
    assert processor.latest_job.processing_job_status == "Completed"


def test_the_sdks_framework_processor(client, sdk):
    from sagemaker.core.processing import FrameworkProcessor
    session, folder = sdk
    processor = FrameworkProcessor(
        role=ARN, image_uri=IMAGE, instance_count=1, instance_type="ml.m5.large",
        base_job_name="framework", sagemaker_session=session)
    inputs, outputs = parts(folder)
    processor.run(code="clean.py", source_dir=str(folder/"source"), inputs=inputs, outputs=outputs,
                  arguments=["--least", "2"], wait=False, logs=False)
    outcome(client, processor.latest_job)


@pytest.mark.slow
def test_the_sdk_waits_with_logs(client, sdk, capsys):
    from sagemaker.core.processing import ScriptProcessor
    session, folder = sdk
    processor = ScriptProcessor(
        role=ARN, image_uri=IMAGE, command=["python3"], instance_count=1,
        instance_type="ml.m5.large", base_job_name="logs", sagemaker_session=session)
    inputs, outputs = parts(folder)
    processor.run(code=str(folder/"source"/"clean.py"), inputs=inputs, outputs=outputs,
                  arguments=["--least", "2"])
    assert "kept 2" in capsys.readouterr().out      # the SDK looks every 30 seconds
