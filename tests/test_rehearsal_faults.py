"Faults on demand, as a client's own retries meet them."
import io
import json
import threading
import time
from http.client import HTTPConnection
from types import SimpleNamespace
from urllib.parse import urlsplit

import boto3
import botocore.endpoint
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from ftnb.foundation.errors import BadInput
from ftnb.rehearsal import client
from ftnb.rehearsal.faults import Rule
from ftnb.rehearsal.server import BUCKET, ROLE, rehearsal

ACCOUNT_ROLE = f"arn:aws:iam::123456789012:role/{ROLE}"


@pytest.fixture(scope="module")
def aws():
    with rehearsal() as running: yield running


@pytest.fixture(autouse=True)
def quick(aws, monkeypatch):
    "Retries don't wait, and no rule outlives its test."
    monkeypatch.setattr(botocore.endpoint, "time", SimpleNamespace(sleep=lambda seconds: None))
    yield
    client.clear_faults(aws.endpoint)


def connect(aws, service, attempts=4, **config):
    "A client as a user makes one."
    return boto3.client(
        service, endpoint_url=aws.endpoint, region_name="us-east-1",
        aws_access_key_id="testing", aws_secret_access_key="testing",
        config=Config(retries={"mode": "standard", "total_max_attempts": attempts}, **config))


def training_job(name, command=("true",)):
    "A request for a job that does nothing."
    return {"TrainingJobName": name, "RoleArn": ACCOUNT_ROLE,
            "AlgorithmSpecification": {
                "TrainingImage": "123456789012.dkr.ecr.us-east-1.amazonaws.com/own:1",
                "TrainingInputMode": "File", "ContainerEntrypoint": list(command)},
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1,
                               "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 60}}


def jobs_of(aws, name):
    listed = connect(aws, "sagemaker").list_training_jobs(NameContains=name)
    return [job["TrainingJobName"] for job in listed["TrainingJobSummaries"]]


def struck(aws): return [rule["struck"] for rule in client.faults(aws.endpoint)]


# Errors that are answered -------------------------------------------------------------------------

CALLS = {   # operation: how it's called, and the codes of throttle, internal and unavailable
    "s3:ListBuckets": (lambda aws, n: connect(aws, "s3", n).list_buckets(),
                       ("SlowDown", "InternalError", "ServiceUnavailable")),
    "s3:PutObject": (lambda aws, n: connect(aws, "s3", n).put_object(
        Bucket=BUCKET, Key="a", Body=b"1" * 100_000),
                     ("SlowDown", "InternalError", "ServiceUnavailable")),
    "s3:HeadBucket": (lambda aws, n: connect(aws, "s3", n).head_bucket(Bucket=BUCKET),
                      ("503", "500", "503")),
    "sagemaker:ListTrainingJobs": (
        lambda aws, n: connect(aws, "sagemaker", n).list_training_jobs(),
        ("ThrottlingException", "InternalFailure", "ServiceUnavailable")),
    "iam:GetRole": (lambda aws, n: connect(aws, "iam", n).get_role(RoleName=ROLE),
                    ("Throttling", "InternalFailure", "ServiceUnavailable")),
    "logs:DescribeLogGroups": (lambda aws, n: connect(aws, "logs", n).describe_log_groups(),
                               ("ThrottlingException", "InternalFailure", "ServiceUnavailable")),
    "cloudwatch:PutMetricData": (lambda aws, n: connect(aws, "cloudwatch", n).put_metric_data(
        Namespace="test", MetricData=[{"MetricName": "loss", "Value": 1.0}]),
                                 ("ThrottlingException", "InternalFailure", "ServiceUnavailable")),
}


@pytest.mark.parametrize("fault", ["throttle", "internal", "unavailable"])
@pytest.mark.parametrize("operation", CALLS)
def test_an_error_passes_or_is_told(aws, operation, fault):
    call, codes = CALLS[operation]
    client.add_fault(aws.endpoint, operation, fault, count=3)
    call(aws, 4)                                    # three fail, the fourth doesn't
    assert struck(aws) == [3]
    client.clear_faults(aws.endpoint)
    client.add_fault(aws.endpoint, operation, fault, count=3)
    with pytest.raises(ClientError) as told: call(aws, 3)
    assert told.value.response["Error"]["Code"] == codes[
        ("throttle", "internal", "unavailable").index(fault)]


def test_rules_count_wait_and_name(aws):
    s3 = connect(aws, "s3", 1)
    client.add_fault(aws.endpoint, "s3:Put*", "internal", after=2, count=1)
    outcomes = []
    for n in range(4):
        try: outcomes.append(bool(s3.put_object(Bucket=BUCKET, Key=str(n))))
        except ClientError: outcomes.append(False)
    assert outcomes == [True, True, False, True]
    s3.list_objects_v2(Bucket=BUCKET)               # isn't meant
    assert client.faults(aws.endpoint)[0]["seen"] == 4


def test_a_probability_is_seeded(aws):
    def outcomes():
        client.clear_faults(aws.endpoint)
        client.add_fault(aws.endpoint, "s3:ListBuckets", "internal", probability=0.5, seed=3)
        found = []
        for _ in range(20):
            try: found.append(bool(connect(aws, "s3", 1).list_buckets()))
            except ClientError: found.append(False)
        return found
    first = outcomes()
    assert first == outcomes() and 4 < sum(first) < 16


def test_the_rehearsals_own_calls_are_never_struck(aws):
    client.add_fault(aws.endpoint, "*", "internal", count=None)
    assert aws.context.client("s3").list_buckets()["Buckets"]
    assert struck(aws) == [0]


def test_wrong_rules_are_refused(aws):
    for wrong in (("s3:PutObjects", "drop"), ("PutObject", "explode"), ("nothing:Put", "drop")):
        with pytest.raises(BadInput): client.add_fault(aws.endpoint, *wrong)
    for body in (b"[1]", b"{", b'{"operation": "*", "fault": "drop", "count": "many"}'):
        at = HTTPConnection(urlsplit(aws.endpoint).netloc)
        at.request("POST", "/_rehearsal/faults", body)
        answer = at.getresponse()
        assert answer.status == 400 and json.loads(answer.read())["error"]
    assert client.faults(aws.endpoint) == []


# Answers that don't come --------------------------------------------------------------------------

def test_a_timeout_passes(aws):
    client.add_fault(aws.endpoint, "ListTrainingJobs", "timeout", seconds=5)
    began = time.monotonic()
    connect(aws, "sagemaker", read_timeout=0.5).list_training_jobs()
    assert struck(aws) == [1] and time.monotonic() - began < 5
    client.add_fault(aws.endpoint, "ListTrainingJobs", "timeout", seconds=5)
    with pytest.raises(ReadTimeoutError):
        connect(aws, "sagemaker", 1, read_timeout=0.3).list_training_jobs()


def test_a_timeout_ends_when_it_says(aws):
    client.add_fault(aws.endpoint, "ListTrainingJobs", "timeout", seconds=0.2)
    with pytest.raises(ConnectionClosedError): connect(aws, "sagemaker", 1).list_training_jobs()


@pytest.mark.parametrize("when", ["upload", "answer"])
def test_an_upload_survives_a_lost_connection(aws, when):
    content = bytes(range(256)) * 4096 * 4
    client.add_fault(aws.endpoint, "s3:PutObject", "drop", count=2, when=when)
    s3 = connect(aws, "s3")
    s3.put_object(Bucket=BUCKET, Key=f"whole-{when}", Body=content)
    assert struck(aws) == [2]
    assert s3.get_object(Bucket=BUCKET, Key=f"whole-{when}")["Body"].read() == content


def test_nothing_half_uploaded_is_there(aws):
    client.add_fault(aws.endpoint, "s3:PutObject", "drop", count=None)
    s3 = connect(aws, "s3", 2)
    with pytest.raises(Exception, match="(?i)connection"):
        s3.put_object(Bucket=BUCKET, Key="half", Body=b"1" * 5_000_000)
    assert "Contents" not in s3.list_objects_v2(Bucket=BUCKET, Prefix="half")


@pytest.mark.parametrize("when", ["upload", "answer"])
def test_a_multipart_upload_survives(aws, when):
    content = bytes(range(256)) * 4096 * 24          # 24 MB in parts of 8
    client.add_fault(aws.endpoint, "s3:UploadPart", "drop", count=2, when=when)
    s3 = connect(aws, "s3")
    s3.upload_fileobj(io.BytesIO(content), BUCKET, f"parts-{when}",
                      Config=TransferConfig(max_concurrency=2))
    found = io.BytesIO()
    s3.download_fileobj(BUCKET, f"parts-{when}", found)
    assert struck(aws) == [2] and found.getvalue() == content


def test_a_download_survives_a_lost_connection(aws):
    content = bytes(range(256)) * 4096
    s3 = connect(aws, "s3")
    s3.put_object(Bucket=BUCKET, Key="down", Body=content)
    client.add_fault(aws.endpoint, "s3:GetObject", "drop", count=2, when="answer")
    found = io.BytesIO()
    s3.download_fileobj(BUCKET, "down", found)
    assert struck(aws) == [2] and found.getvalue() == content


# Jobs ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("fault", ["throttle", "unavailable", "drop", "timeout"])
def test_a_job_that_is_retried_is_one_job(aws, fault):
    name = f"retried-{fault}"
    client.add_fault(aws.endpoint, "CreateTrainingJob", fault, count=2, seconds=5)
    connect(aws, "sagemaker", read_timeout=1).create_training_job(**training_job(name))
    assert jobs_of(aws, name) == [name] and struck(aws) == [2]


@pytest.mark.parametrize("fault", ["internal", "drop", "timeout"])
def test_a_job_whose_answer_was_lost_is_not_made_twice(aws, fault):
    "It was made: the retry is told so, which is a clear error, and there's one job."
    name = f"lost-{fault}"
    client.add_fault(aws.endpoint, "CreateTrainingJob", fault, when="answer", seconds=5)
    sagemaker = connect(aws, "sagemaker", read_timeout=1)
    with pytest.raises(ClientError) as told: sagemaker.create_training_job(**training_job(name))
    assert told.value.response["Error"]["Code"] == "ResourceInUse"
    assert jobs_of(aws, name) == [name]


def test_a_waiter_stands_faults(aws):
    sagemaker = connect(aws, "sagemaker")
    sagemaker.create_training_job(**training_job("waited"))
    client.add_fault(aws.endpoint, "DescribeTrainingJob", "throttle", count=3)
    waiter = sagemaker.get_waiter("training_job_completed_or_stopped")
    waiter.wait(TrainingJobName="waited", WaiterConfig={"Delay": 1, "MaxAttempts": 30})
    assert struck(aws) == [3]


def test_many_threads_meet_exactly_as_many_faults_as_were_ordered(aws):
    client.add_fault(aws.endpoint, "s3:ListBuckets", "internal", count=7)
    failed: list[Exception] = []

    def ask():
        for _ in range(5):
            try: connect(aws, "s3", 1).list_buckets()
            except ClientError as e: failed.append(e)
    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(failed) == 7 == struck(aws)[0]


def test_rules_of_jobs_and_of_calls_do_not_mix(aws):
    faults = aws.context.faults
    faults.add(Rule("*", "capacity", count=1))
    assert faults.strikes("s3", "PutObject") is None
    assert faults.strikes("job", "any") == "capacity"
