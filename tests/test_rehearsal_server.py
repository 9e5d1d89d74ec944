"The rehearsal as a process: who reaches it, what clients make of it, what it leaves behind."
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from ftnb.foundation.errors import BadInput
from ftnb.foundation.files import read_json, write_json
from ftnb.rehearsal import client, server
from ftnb.rehearsal.processes import belonging, identity, process_of
from ftnb.rehearsal.server import BUCKET, ROLE, down, rehearsal, status, up

TRUST = json.dumps(server.TRUST)
REAL = "AKIA" + "Q3XY" * 4


@pytest.fixture(scope="module")
def aws(tmp_path_factory):
    "A rehearsal in a process of its own, for the tests that only talk to it."
    folder = tmp_path_factory.mktemp("shared")/"rehearsal"
    yield up(folder, 0)
    down(folder)


@pytest.fixture
def folder(tmp_path):
    "A folder for a server; whatever the test does, none stays."
    yield tmp_path/"rehearsal"
    down(tmp_path/"rehearsal", seconds=5)


def connect(endpoint, service, region="us-east-1", **config):
    return boto3.client(service, endpoint_url=endpoint, region_name=region,
                        aws_access_key_id="testing", aws_secret_access_key="testing",
                        config=Config(**config) if config else None)


def sleeping_job(name):
    "A request for a job that sleeps for a minute."
    return {"TrainingJobName": name, "RoleArn": f"arn:aws:iam::123456789012:role/{ROLE}",
            "AlgorithmSpecification": {
                "TrainingImage": "123456789012.dkr.ecr.us-east-1.amazonaws.com/own:1",
                "TrainingInputMode": "File", "ContainerEntrypoint": ["sleep", "61.5"]},
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1,
                               "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 120}}


def until(true, seconds=20.0):
    "Wait until something is so."
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end: time.sleep(0.05)
    assert found, "waited in vain"
    return found


def raw(endpoint, method="GET", path="/", body=None, **headers):
    "A request as it is written, with no client's help."
    connection = HTTPConnection(urlsplit(endpoint).netloc, timeout=10)
    connection.putrequest(method, path, skip_host="host" in headers, skip_accept_encoding=True)
    for name, value in headers.items(): connection.putheader(name.replace("_", "-"), value)
    if body is not None: connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace"), answer.headers


# Who reaches it -----------------------------------------------------------------------------------

def other_addresses():
    return [a.address for found in psutil.net_if_addrs().values() for a in found
            if a.family == socket.AF_INET and not a.address.startswith("127.")]


def test_it_listens_on_the_loopback_interface_only(aws):
    port = urlsplit(aws.endpoint).port
    for address in ["127.0.0.2", *other_addresses()]:
        with pytest.raises(OSError): socket.create_connection((address, port), timeout=2)
    found = [c for c in psutil.Process(aws.pid).net_connections("tcp") if c.laddr.port == port
             and c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip for c in found} == {"127.0.0.1"}


@pytest.mark.parametrize("headers", [
    {"host": "evil.example"}, {"host": "evil.example:5005"}, {"host": "127.0.0.1.evil.example"},
    {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
    {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors"}])
@pytest.mark.parametrize("path", ["/", "/_rehearsal/faults", f"/{BUCKET}/a", "/moto-api/reset"])
def test_no_foreign_page_uses_it(aws, headers, path):
    for method in ("GET", "POST", "DELETE", "PUT"):
        body = None if method == "GET" else b""
        code, text, got = raw(aws.endpoint, method, path, body, **headers)
        assert code == 403 and got["x-ftnb-rehearsal"] == "1", text
    assert connect(aws.endpoint, "s3").list_buckets()["Buckets"]


def test_a_link_to_its_page_may_be_followed(aws):
    code, text, headers = raw(aws.endpoint, Accept="text/html", Sec_Fetch_Site="cross-site",
                              Sec_Fetch_Mode="navigate")
    assert code == 200 and "not AWS" in text and "default-src 'none'" in headers[
        "Content-Security-Policy"]


@pytest.mark.parametrize("path", [
    "/_rehearsal/jobs/training-job/../../../../etc/passwd/log",
    "/_rehearsal/jobs/training-job/%2e%2e%2f%2e%2e%2fetc%2fpasswd/log",
    "/_rehearsal/jobs/..%2f..%2f/x/log", "/_rehearsal/jobs/%00/x/log",
    "/_rehearsal/jobs/training-job/x%0d%0aSet-Cookie:%20a/log", "/_rehearsal/../../etc/passwd",
    "/_rehearsal/jobs//etc/passwd/log", "/_rehearsal/page.html.j2"])
def test_no_path_leads_out(aws, path):
    code, text, headers = raw(aws.endpoint, "GET", path)
    assert code in (400, 404) and "root:" not in text and "Set-Cookie" not in headers


def test_a_key_of_s3_is_a_name_and_no_path(tmp_path):
    with rehearsal(keep=tmp_path/"kept") as aws:
        s3 = aws.context.client("s3")
        keys = ["../../../escaped", "a/../../b", "/etc/passwd", "..", "a" * 1000, "ü/€", "a//b"]
        for key in keys: s3.put_object(Bucket=BUCKET, Key=key, Body=key.encode())
    with rehearsal(keep=tmp_path/"kept") as aws:
        s3 = aws.context.client("s3")
        for key in keys:
            assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == key.encode()
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_real_keys_are_refused(folder, monkeypatch):
    monkeypatch.setenv("MY_ACCESS_KEY", REAL)
    with pytest.raises(BadInput, match="MY_ACCESS_KEY"): up(folder, 0)
    with pytest.raises(BadInput, match="MY_ACCESS_KEY"), rehearsal(): pass
    for module in ("ftnb.rehearsal.server", "ftnb.rehearsal"):
        words = ["--folder", str(folder)] if module.endswith("server") else [
            "up", "--folder", str(folder)]
        told = subprocess.run([sys.executable, "-m", module, *words], capture_output=True,
                              text=True)
        assert told.returncode == 2 and "MY_ACCESS_KEY" in told.stderr and REAL not in told.stderr
    assert not folder.exists()
    assert up(folder, 0, real_keys=True).running      # told that they're meant
    monkeypatch.setenv("MY_ACCESS_KEY", "AKIAIOSFODNN7EXAMPLE")
    server.refuse_real_keys(os.environ)


# Unmodified clients -------------------------------------------------------------------------------

def test_the_command_line_of_aws(aws, tmp_path):
    (tmp_path/"data.csv").write_text("1,2\n")
    (tmp_path/"job.json").write_text(json.dumps(
        {**sleeping_job("by-cli"), "StoppingCondition": {"MaxRuntimeInSeconds": 60}}))

    def command(*words):
        told = client.run(["aws", *words, "--output", "json"], aws.endpoint, cwd=tmp_path,
                          capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
        return told.stdout
    command("s3", "cp", "data.csv", f"s3://{BUCKET}/cli/data.csv")
    made = json.loads(command("sagemaker", "create-training-job", "--cli-input-json",
                              "file://job.json"))
    sagemaker, named = connect(aws.endpoint, "sagemaker"), {"TrainingJobName": "by-cli"}
    sagemaker.stop_training_job(**named)
    until(lambda: sagemaker.describe_training_job(**named)["TrainingJobStatus"] == "Stopped")
    command("sagemaker", "wait", "training-job-completed-or-stopped", "--training-job-name",
            "by-cli")
    assert made["TrainingJobArn"].endswith("training-job/by-cli")
    assert connect(aws.endpoint, "s3").head_object(Bucket=BUCKET, Key="cli/data.csv")


def test_paginators_and_the_header_that_tells_it_from_aws(aws):
    s3 = connect(aws.endpoint, "s3")
    s3.create_bucket(Bucket="many")
    for n in range(7): s3.put_object(Bucket="many", Key=str(n))
    pages = list(s3.get_paginator("list_objects_v2").paginate(
        Bucket="many", PaginationConfig={"PageSize": 3}))
    assert [len(page["Contents"]) for page in pages] == [3, 3, 1]
    for page in pages:
        assert page["ResponseMetadata"]["HTTPHeaders"]["x-ftnb-rehearsal"] == "1"


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "ap-southeast-2"])
def test_any_region(aws, region):
    s3 = connect(aws.endpoint, "s3", region)
    where = {} if region == "us-east-1" else {
        "CreateBucketConfiguration": {"LocationConstraint": region}}
    s3.create_bucket(Bucket=f"here-{region}", **where)
    found = connect(aws.endpoint, "sagemaker", region).list_training_jobs()
    assert found["TrainingJobSummaries"] == [] or region == "us-east-1"
    assert connect(aws.endpoint, "sts", region).get_caller_identity()["Arn"].endswith(
        f":assumed-role/{ROLE}/rehearsal")


def test_what_is_not_rehearsed_is_not_pretended(aws):
    sagemaker, began = connect(aws.endpoint, "sagemaker"), time.monotonic()
    calls = [
        lambda: sagemaker.create_endpoint(EndpointName="e", EndpointConfigName="c"),
        lambda: sagemaker.create_cluster(ClusterName="c"),
        lambda: sagemaker.start_pipeline_execution(PipelineName="p", ClientRequestToken="t" * 32),
        lambda: sagemaker.list_human_task_uis(),       # moto hasn't got it
        lambda: connect(aws.endpoint, "sagemaker-runtime").invoke_endpoint(
            EndpointName="e", Body=b"{}"),
        lambda: connect(aws.endpoint, "bedrock-runtime").converse(modelId="amazon.nova-lite-v1:0"),
        lambda: connect(aws.endpoint, "bedrock").create_model_customization_job(
            jobName="j", customModelName="m", roleArn=f"arn:aws:iam::123456789012:role/{ROLE}",
            baseModelIdentifier="amazon.nova-lite-v1:0",
            trainingDataConfig={"s3Uri": "s3://a/b"}, outputDataConfig={"s3Uri": "s3://a/b"})]
    for call in calls:
        with pytest.raises(ClientError) as told: call()
        assert told.value.response["Error"]["Code"] == "UnsupportedOperationException"
        assert told.value.response["ResponseMetadata"]["RetryAttempts"] == 0
    assert time.monotonic() - began < 20


def test_models_answer_as_the_sdk_expects(aws):
    sagemaker = connect(aws.endpoint, "sagemaker")
    sagemaker.create_model(ModelName="m", ExecutionRoleArn=f"arn:aws:iam::123456789012:role/{ROLE}",
                           PrimaryContainer={"Image": "i"})
    assert "VpcConfig" not in sagemaker.describe_model(ModelName="m")


def test_a_role_is_judged_by_its_policies(aws):
    iam = connect(aws.endpoint, "iam")
    iam.create_role(RoleName="Narrow", AssumeRolePolicyDocument=TRUST)
    iam.put_role_policy(RoleName="Narrow", PolicyName="one", PolicyDocument=json.dumps(
        {"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::mine/*"},
            {"Effect": "Deny", "Action": "s3:DeleteObject", "Resource": "*"}]}))

    def judged(role, action, resource):
        pages = iam.get_paginator("simulate_principal_policy").paginate(
            PolicySourceArn=f"arn:aws:iam::123456789012:role/{role}", ActionNames=[action],
            ResourceArns=[resource])
        return [r["EvalDecision"] for page in pages for r in page["EvaluationResults"]]
    assert judged("Narrow", "s3:PutObject", "arn:aws:s3:::mine/a") == ["allowed"]
    assert judged("Narrow", "s3:DeleteObject", "arn:aws:s3:::mine/a") == ["explicitDeny"]
    assert judged("Narrow", "s3:PutObject", "arn:aws:s3:::other/a") == ["implicitDeny"]
    assert judged(ROLE, "sagemaker:CreateTrainingJob", "*") == ["allowed"]
    with pytest.raises(iam.exceptions.NoSuchEntityException): judged("Nobody", "s3:Get*", "*")


def test_the_sdk_validates_the_role_here_too(aws):
    with client.connected(aws.endpoint):
        from sagemaker.core.helper.iam_role_resolver import (
            RoleValidationError,
            resolve_and_validate_role,
        )
        arn = resolve_and_validate_role(ROLE)
        assert arn == resolve_and_validate_role()      # the caller's own
        boto3.client("iam").create_role(RoleName="Empty", AssumeRolePolicyDocument=TRUST)
        with pytest.raises(RoleValidationError, match="Missing permissions"):
            resolve_and_validate_role("Empty")
    assert arn == f"arn:aws:iam::123456789012:role/{ROLE}"


def test_large_objects_ranges_and_virtual_hosts(aws):
    s3, content = connect(aws.endpoint, "s3"), os.urandom(12_000_000)
    s3.put_object(Bucket=BUCKET, Key="large", Body=content)
    part = s3.get_object(Bucket=BUCKET, Key="large", Range="bytes=1000000-1000099")["Body"].read()
    assert part == content[1_000_000:1_000_100]
    port = urlsplit(aws.endpoint).port
    signed = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request"
    code, _, headers = raw(aws.endpoint, "HEAD", "/large", host=f"{BUCKET}.localhost:{port}",
                           Authorization=signed)
    assert code == 200 and headers["Content-Length"] == "12000000"
    assert raw(aws.endpoint, "GET", f"/{BUCKET}/large")[0] == 403     # unsigned, and private


# Starting, ending, being killed -------------------------------------------------------------------

def test_up_status_down(folder, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    monkeypatch.setenv("AWS_MY_SECRET", "hidden")
    found = up(folder, 0)
    variables = psutil.Process(found.pid).environ()
    assert not [name for name in variables if name.startswith("AWS_")]
    used = psutil.Process(found.pid).cpu_times()    # on a busy machine, what a start takes
    assert used.user + used.system < 3
    assert up(folder, 0).already and status(folder).pid == found.pid
    with pytest.raises(Exception, match="already answers"):
        server.begun(folder, 0, None, server.Options())
    assert folder.stat().st_mode & 0o77 == 0
    ended = down(folder)
    assert ended.ended == [found.pid] and str(ended) == "ended, with 1 process"
    assert not folder.exists()
    assert str(down(folder)) == "no rehearsal runs"


def test_a_taken_port_is_said(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(Exception, match="is taken"): up(folder, taken.getsockname()[1])
    assert not status(folder).running and not list(folder.glob("run-*"))


@pytest.mark.slow
def test_two_that_start_at_once_are_one(folder):
    found: list = []
    threads = [threading.Thread(target=lambda: found.append(attempt(folder))) for _ in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    pids = {s.pid for s in found if s}
    assert pids == {status(folder).pid} and len(list(folder.glob("run-*"))) == 1


def attempt(folder):
    "Start, or be told that another one was quicker."
    try: return up(folder, 0)
    except Exception as e: assert "already answers" in str(e)


def test_killed_and_begun_again_and_ended(folder):
    first = up(folder, 0)
    connect(first.endpoint, "sagemaker").create_training_job(**sleeping_job("night"))
    run = next(folder.glob("run-*"))
    running = until(lambda: [p for p in psutil.process_iter() if sleeps(p)])
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not status(folder).running)
    assert status(folder).crashed
    second = up(folder, 0)
    gone = until(lambda: not [p for p in running if p.is_running() and sleeps(p)])
    assert gone and not run.exists() and belonging(run) == []
    assert client.tell(second.endpoint, "GET", "/status")["jobs"] == []
    with pytest.raises(OSError): socket.create_connection(
        ("127.0.0.1", urlsplit(first.endpoint).port), timeout=1)

    connect(second.endpoint, "sagemaker").create_training_job(**sleeping_job("night"))
    until(lambda: [p for p in psutil.process_iter() if sleeps(p)])
    page = raw(second.endpoint, Accept="text/html")[1]
    assert "night" in page and "state lives" in page
    down(folder)
    assert not [p for p in psutil.process_iter() if sleeps(p)] and not folder.exists()


def sleeps(process):
    "Whether a process is our job's, by its odd number of seconds."
    try: return "61.5" in process.cmdline()
    except psutil.Error: return False


def test_down_ends_a_server_that_does_not_answer(folder):
    found = up(folder, 0)
    os.kill(found.pid, signal.SIGSTOP)
    began = time.monotonic()
    assert found.pid in down(folder, seconds=1).ended and time.monotonic() - began < 10
    assert not folder.exists()


def test_a_strangers_process_is_left_alone(folder):
    "It got the number of a server that was killed long ago."
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    named = identity(stranger.pid)
    folder.mkdir()
    write_json(folder/"server.json", {**named, "created": named["created"] - 1000,
                                      "endpoint": "http://127.0.0.1:1", "keep": ""})
    assert not status(folder).running and status(folder).crashed
    down(folder)
    assert process_of(named) and not (folder/"server.json").exists()
    stranger.communicate(b"\n")


# What survives ------------------------------------------------------------------------------------

def test_what_is_kept_survives_a_kill(folder, tmp_path):
    keep = tmp_path/"kept"
    first = up(folder, 0, keep=keep)
    s3, iam = connect(first.endpoint, "s3"), connect(first.endpoint, "iam")
    kms = connect(first.endpoint, "kms")
    s3.create_bucket(Bucket="data")
    s3.put_bucket_versioning(Bucket="data", VersioningConfiguration={"Status": "Enabled"})
    s3.put_bucket_encryption(Bucket="data", ServerSideEncryptionConfiguration={"Rules": [
        {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms"}}]})
    s3.put_bucket_tagging(Bucket="data", Tagging={"TagSet": [{"Key": "team", "Value": "a"}]})
    s3.put_public_access_block(Bucket="data", PublicAccessBlockConfiguration={
        "BlockPublicAcls": True})
    assert all(s3.get_public_access_block(Bucket=server.BUCKET)[
        "PublicAccessBlockConfiguration"].values())
    assert s3.get_bucket_encryption(Bucket=server.BUCKET)["ServerSideEncryptionConfiguration"]
    s3.put_public_access_block(Bucket=server.BUCKET, PublicAccessBlockConfiguration={
        "BlockPublicAcls": True})       # opened, and it stays so
    for body in (b"1", b"2"):
        s3.put_object(Bucket="data", Key="x/y.csv", Body=body, ContentType="text/csv",
                      Metadata={"Rows": "1"}, Tagging="kind=train")
    s3.upload_file(__file__, "data", "file")
    s3.put_object(Bucket="data", Key="gone", Body=b"3")
    s3.delete_objects(Bucket="data", Delete={"Objects": [{"Key": "gone"}]})
    role = iam.create_role(RoleName="Trainer", AssumeRolePolicyDocument=TRUST)["Role"]
    iam.attach_role_policy(RoleName="Trainer",
                           PolicyArn="arn:aws:iam::aws:policy/AmazonSageMakerFullAccess")
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    kms.create_alias(AliasName="alias/data", TargetKeyId=key)
    connect(first.endpoint, "sagemaker").create_training_job(**sleeping_job("night"))
    versions = s3.list_object_versions(Bucket="data")
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not status(folder).running)

    second = up(folder, 0, keep=keep)
    s3, iam = connect(second.endpoint, "s3"), connect(second.endpoint, "iam")
    again = s3.list_object_versions(Bucket="data")
    for name in ("Versions", "DeleteMarkers"): assert again[name] == versions[name]
    found = s3.get_object(Bucket="data", Key="x/y.csv")
    assert (found["Body"].read(), found["ContentType"], found["Metadata"]) == (
        b"2", "text/csv", {"rows": "1"})
    assert s3.get_object_tagging(Bucket="data", Key="x/y.csv")["TagSet"][0]["Value"] == "train"
    assert s3.get_bucket_versioning(Bucket="data")["Status"] == "Enabled"
    assert s3.get_bucket_encryption(Bucket="data")["ServerSideEncryptionConfiguration"]
    assert s3.get_bucket_tagging(Bucket="data")["TagSet"][0]["Value"] == "a"
    assert s3.get_public_access_block(Bucket="data")["PublicAccessBlockConfiguration"][
        "BlockPublicAcls"]
    assert not s3.get_public_access_block(Bucket=server.BUCKET)[
        "PublicAccessBlockConfiguration"]["BlockPublicPolicy"]
    assert iam.get_role(RoleName="Trainer")["Role"]["RoleId"] == role["RoleId"]
    assert iam.list_attached_role_policies(RoleName="Trainer")["AttachedPolicies"]
    assert connect(second.endpoint, "kms").describe_key(KeyId="alias/data")["KeyMetadata"][
        "KeyId"] == key
    job = connect(second.endpoint, "sagemaker").describe_training_job(TrainingJobName="night")
    assert job["TrainingJobStatus"] == "Failed" and "rehearsal" in job["FailureReason"]
    assert not list(keep.rglob("*.pkl")) and keep.stat().st_mode & 0o77 == 0


def test_state_is_kept_by_one_at_a_time(tmp_path):
    with rehearsal(keep=tmp_path/"kept"):
        told = subprocess.run([sys.executable, "-m", "ftnb.rehearsal.server", "--folder",
                               str(tmp_path/"other"), "--port", "0", "--keep",
                               str(tmp_path/"kept")], capture_output=True, text=True)
        assert told.returncode == 2 and "another rehearsal keeps" in told.stderr
    assert read_json(tmp_path/"kept"/"rehearsal.json") == {"format": "ftnb/rehearsal/1"}


@pytest.mark.slow
def test_edited_state_does_no_harm(tmp_path):
    keep = tmp_path/"kept"
    with rehearsal(keep=keep) as aws:
        aws.context.client("s3").put_object(Bucket=BUCKET, Key="a", Body=b"1")
        aws.context.client("s3").put_object(Bucket=BUCKET, Key="b", Body=b"2")
    file = next(f for f in keep.rglob("keys/*.json") if read_json(f)["key"] == "a")
    held = read_json(file)
    held["versions"][0]["content"] = "../../../../etc/passwd"
    write_json(file, held)
    (keep/"iam.json").write_text("{")
    with rehearsal(keep=keep) as aws:
        s3 = aws.context.client("s3")
        assert [o["Key"] for o in s3.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["b"]
        assert aws.context.client("iam").get_role(RoleName=ROLE)


def test_search_finds_jobs_that_run_here(aws):
    sagemaker = connect(aws.endpoint, "sagemaker")
    sagemaker.create_training_job(**sleeping_job("searched"),
                                  Tags=[{"Key": "team", "Value": "a"}])
    found = sagemaker.search(Resource="TrainingJob", SearchExpression={"Filters": [
        {"Name": "Tags.team", "Operator": "Equals", "Value": "a"},
        {"Name": "ResourceConfig.InstanceType", "Operator": "Contains", "Value": "m5"}]})
    assert [r["TrainingJob"]["TrainingJobName"] for r in found["Results"]] == ["searched"]
    sagemaker.stop_training_job(TrainingJobName="searched")
    assert sagemaker.search(Resource="Experiment")["Results"] == []          # moto's


def test_reading_takes_little_time(aws):
    "A Describe call is short work; half of ten are quicker than 0.1 s even on a busy machine."
    sagemaker, seconds = connect(aws.endpoint, "sagemaker"), []
    sagemaker.create_training_job(**{**sleeping_job("described"), "AlgorithmSpecification": {
        **sleeping_job("")["AlgorithmSpecification"], "ContainerEntrypoint": ["true"]}})
    for _ in range(10):
        began = time.perf_counter()
        sagemaker.describe_training_job(TrainingJobName="described")
        seconds.append(time.perf_counter() - began)
    assert sorted(seconds)[5] < 0.1


@pytest.mark.slow
def test_source_is_found_wherever_it_is_started(folder, tmp_path):
    "`up` works from a directory in which there's no ftnb."
    here = Path(server.__file__).resolve().parents[2]
    script = f"from ftnb.rehearsal.server import up; print(up({str(folder)!r}, 0).running)"
    told = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(here)})
    assert told.stdout.strip() == "True", told.stderr
