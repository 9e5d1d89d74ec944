"""ftnb doctor: each probe in a set-up in which it passes, and in one in which it fails.

The set-ups stand in a rehearsal that is asked as if it were an account (place aws, with its
address): then nothing is furnished, and nothing is excused.
"""
import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from typer.testing import CliRunner

from ftnb.foundation.settings import Settings, Stated
from ftnb.places import doctor
from ftnb.places.doctor import Finding, Setup, examine, role_needs, statements
from ftnb.rehearsal.service import CLOSED, TRUST

REGION, ACCOUNT = "us-east-1", "123456789012"
SHARED: dict = {}   # sessions and their clients
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/ftnb"


@pytest.fixture(scope="module")
def aws():
    from ftnb.rehearsal.server import rehearsal
    with rehearsal() as running: yield running


@pytest.fixture(autouse=True)
def no_account_of_ours(monkeypatch):
    for name in [n for n in os.environ if n.startswith("AWS_") or n.endswith("_PROXY")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def setup(aws, monkeypatch, tmp_path):
    "Settings in an account that is a rehearsal: setup(role=…, bucket=…)."
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")

    def made(own: bool = False, **stated: str) -> Setup:
        given = {"place": "aws", "region": REGION, "endpoint": aws.endpoint} | stated
        found = Setup(Settings(tmp_path, Stated(**given)))
        if not own and given["region"]:   # reading the services' models takes longest: once each
            key = (given["region"], given["endpoint"], given["place"])
            found.boto, found.clients = SHARED.setdefault(key, (found.boto, found.clients))
        return found
    return made


@pytest.fixture(scope="module")
def client(aws):
    return lambda service, region=REGION: aws.context.client(service, region)


@pytest.fixture(scope="module")
def bucket(client):
    client("s3").create_bucket(Bucket="good")
    client("s3").put_public_access_block(Bucket="good", PublicAccessBlockConfiguration=CLOSED)
    client("s3").put_bucket_versioning(Bucket="good",
                                       VersioningConfiguration={"Status": "Enabled"})
    client("s3").create_bucket(Bucket="plain")
    return "good"


def make_role(client, name: str, trust: dict, policy: dict | None = None) -> str:
    client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
    if policy:
        client("iam").put_role_policy(RoleName=name, PolicyName="p",
                                      PolicyDocument=json.dumps(policy))
    return name


def stubbed(setup: Setup, service: str, *answers, **more) -> Setup:
    "The same set-up with one service that gives these answers (operation, answer or error code)."
    stub_client = boto3.client(service, region_name=REGION, aws_access_key_id="a",
                               aws_secret_access_key="b", config=Config(retries={
                                   "total_max_attempts": 1}))
    stub = Stubber(stub_client)
    for operation, answer in answers:
        if isinstance(answer, str):
            stub.add_client_error(operation, answer, f"is not authorized to perform: {answer}")
        else: stub.add_response(operation, answer)
    stub.activate()
    setup.clients = dict(setup.clients)
    usual = setup.client
    setattr(setup, "client", lambda name, region=None:  # noqa: B010
            stub_client if name == service else usual(name, region))
    return setup


# this machine

def test_python(setup, monkeypatch):
    assert doctor.python(setup()).state == "well"
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.8.1")
    assert doctor.python(setup()).state == "missing"


def test_packages(setup, monkeypatch):
    assert doctor.packages(setup()).state == "well"
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: [
        "numpy>=99", "no-such-package-of-ours", "only-elsewhere; sys_platform == 'none'",
        "numpy>=1; extra == 'x'"])
    found = doctor.packages(setup())
    assert found.state == "missing" and "no-such-package-of-ours (missing)" in found.evidence
    assert "numpy" in found.evidence and "elsewhere" not in found.evidence
    def gone(name): raise doctor.metadata.PackageNotFoundError
    monkeypatch.setattr(doctor.metadata, "requires", gone)
    assert "isn't installed" in doctor.packages(setup()).evidence


def test_sdk(setup, monkeypatch):
    for version, place, state in [("3.27.0", "aws", "well"), ("2.200.1", "aws", "missing"),
                                  ("2.200.1", "local", "missing")]:
        monkeypatch.setattr(doctor.metadata, "version", lambda name, v=version: v)
        assert doctor.sdk(setup(place=place)).state == state
    def gone(name): raise doctor.metadata.PackageNotFoundError
    monkeypatch.setattr(doctor.metadata, "version", gone)
    assert doctor.sdk(setup(place="local")).state == "skipped"
    assert doctor.sdk(setup()).state == "missing"


def test_disk(setup, monkeypatch):
    monkeypatch.setattr(doctor, "free_space", lambda path: int(9e9))
    assert doctor.disk(setup()).state == "well"
    monkeypatch.setattr(doctor, "free_space", lambda path: int(1e9))
    assert doctor.disk(setup()).state == "missing"
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert "writable" in doctor.disk(setup()).evidence


def test_threads(setup, monkeypatch):
    monkeypatch.setattr(doctor, "processors", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert doctor.threads(setup()).state == "well"
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert doctor.threads(setup()).state == "advice"


# who we are

def test_credentials(setup, monkeypatch):
    found = doctor.credentials(setup(own=True))
    assert found.state == "well" and found.evidence == "long-lived, from env"
    monkeypatch.setenv("AWS_SESSION_TOKEN", "testing")
    assert doctor.credentials(setup(own=True)).evidence == "temporary, from env"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"): monkeypatch.delenv(name)
    assert doctor.credentials(setup(own=True)).state == "missing"


def test_account(setup):
    assert ACCOUNT in doctor.account(setup(place="rehearsal")).evidence
    assert doctor.account(setup(place="rehearsal")).state == "well"
    assert doctor.account(setup()).state == "advice"   # a rehearsal where AWS was meant
    expired = stubbed(setup(), "sts", ("get_caller_identity", "ExpiredToken"))
    found = doctor.careful(doctor.account, expired)
    assert found.state == "missing" and "log in" in found.fix


def test_region(setup):
    assert doctor.region(setup()).state == "well"
    assert doctor.region(setup(region="us-middle-7")).state == "missing"
    assert doctor.region(setup(region="")).state == "missing"


def test_clock(setup, monkeypatch):
    assert doctor.clock(setup()).state == "well"
    for minutes, state in [(2, "advice"), (20, "missing"), (-20, "missing")]:
        later = datetime.now(UTC) + timedelta(minutes=minutes)
        monkeypatch.setattr(doctor, "datetime", SimpleNamespace(now=lambda zone, t=later: t))
        assert doctor.clock(setup()).state == state


def test_network(setup, monkeypatch):
    assert doctor.network(setup()).state == "well"
    nobody = setup(endpoint="http://127.0.0.1:9")
    assert doctor.network(nobody).state == "missing"
    far = Setup(Settings(nobody.site.root, Stated(place="aws", region=REGION)))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")   # the proxy is what must answer
    found = doctor.network(far)
    assert found.state == "missing" and "sts.us-east-1.amazonaws.com" in found.evidence


# role and permissions

def test_role(setup, client):
    make_role(client, "There", TRUST)
    assert doctor.role(setup(role="There")).state == "well"
    assert doctor.role(setup(role=f"arn:aws:iam::{ACCOUNT}:role/There")).state == "well"
    gone = doctor.role(setup(role="Gone"))
    assert gone.state == "missing" and "create-role --role-name Gone" in gone.fix
    assert doctor.role(setup()).state == "missing"


def test_trust(setup, client):
    make_role(client, "Trusting", TRUST)
    statement = {"Effect": "Allow", "Action": "sts:AssumeRole",
                 "Principal": {"Service": ["lambda.amazonaws.com"]}}
    make_role(client, "Mistrusting", {**TRUST, "Statement": [statement]})
    assert doctor.trust(setup(role="Trusting")).state == "well"
    found = doctor.trust(setup(role="Mistrusting"))
    assert found.state == "missing" and found.policy == TRUST


def test_permissions(setup, client, bucket):
    key = client("kms").create_key()["KeyMetadata"]["Arn"]
    given = {"bucket": bucket, "kms_key": key, "subnets": "subnet-1", "image": f"{IMAGE}:1"}
    make_role(client, "Poor", TRUST)
    poor = doctor.permissions(setup(role="Poor", **given))
    assert poor.state == "missing" and poor.policy
    wanted = [a for s in poor.policy["Statement"] for a in s["Action"]]
    assert {"s3:GetObject", "kms:Decrypt", "ec2:CreateNetworkInterface",
            "ecr:BatchGetImage"} <= set(wanted)
    # what it says to add is enough
    make_role(client, "Able", TRUST, poor.policy)
    assert doctor.permissions(setup(role="Able", **given)).state == "well"
    # and one that is denied again isn't
    client("iam").put_role_policy(RoleName="Able", PolicyName="no", PolicyDocument=json.dumps(
        {"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "s3:PutObject",
                                                 "Resource": "*"}]}))
    assert doctor.permissions(setup(role="Able", **given)).evidence == "Able may not s3:PutObject"


def test_the_policy_asks_for_no_more_than_the_set_up_needs(setup):
    plain = statements(role_needs(setup(bucket="b", prefix="p")))
    text = json.dumps(plain)
    assert "kms:" not in text and "ec2:" not in text and '"s3:*"' not in text
    assert plain["Statement"][0]["Resource"] == "arn:aws:s3:::b/p/*"


def test_launching(setup, client):
    make_role(client, "Job", TRUST)
    def answer(decision):
        actions = ("sagemaker:CreateTrainingJob", "iam:PassRole")
        return [("simulate_principal_policy", {"IsTruncated": False, "EvaluationResults": [
            {"EvalActionName": a, "EvalDecision": decision}]}) for a in actions]
    assert doctor.launching(stubbed(setup(role="Job"), "iam", *answer("allowed"))).state == "well"
    found = doctor.launching(stubbed(setup(role="Job"), "iam", *answer("implicitDeny")))
    assert found.state == "missing" and "iam:PassRole" in found.evidence and found.policy
    refused = stubbed(setup(role="Job"), "iam", ("simulate_principal_policy", "AccessDenied"))
    assert doctor.careful(doctor.launching, refused).state == "unknown"
    root = setup(role="Job")
    root.me = {"Arn": f"arn:aws:iam::{ACCOUNT}:root", "Account": ACCOUNT}
    assert doctor.launching(root).state == "advice"


# bucket and key

def test_bucket(setup, client, bucket):
    assert doctor.bucket(setup(bucket=bucket)).state == "well"
    gone = doctor.bucket(setup(bucket="gone-away"))
    assert gone.state == "missing" and "aws s3 mb s3://gone-away" in gone.fix
    client("s3", "eu-west-1").create_bucket(
        Bucket="irish", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert "eu-west-1" in doctor.bucket(setup(bucket="irish")).evidence
    assert doctor.bucket(setup(bucket="irish", region="eu-west-1")).state == "well"
    closed = doctor.bucket(stubbed(setup(bucket="x"), "s3", ("head_bucket", "403")))
    assert closed.state == "missing" and "somebody else's" in closed.evidence


def test_encryption(setup, client, bucket):
    s3, key = client("s3"), client("kms").create_key()["KeyMetadata"]["KeyId"]
    def rule(**by): return {"Rules": [{"ApplyServerSideEncryptionByDefault": by}]}
    assert doctor.encryption(setup(bucket=bucket)).state == "advice"
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration=rule(
        SSEAlgorithm="AES256"))
    assert doctor.encryption(setup(bucket=bucket)).state == "well"
    with_key = doctor.encryption(setup(bucket=bucket, kms_key=key))
    assert with_key.state == "advice" and key in with_key.fix
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration=rule(
        SSEAlgorithm="aws:kms", KMSMasterKeyID=key))
    assert doctor.encryption(setup(bucket=bucket, kms_key=key)).state == "well"


def test_versioning(setup, bucket):
    assert doctor.versioning(setup(bucket=bucket)).state == "well"
    assert doctor.versioning(setup(bucket="plain")).state == "advice"


def test_public_access(setup, client, bucket):
    assert doctor.public_access(setup(bucket=bucket)).state == "well"
    assert doctor.public_access(setup(bucket="plain")).state == "missing"
    client("s3").put_public_access_block(Bucket="plain", PublicAccessBlockConfiguration=CLOSED | {
        "BlockPublicPolicy": False})
    assert doctor.public_access(setup(bucket="plain")).evidence == "not blocked: BlockPublicPolicy"


def test_objects(setup, client, bucket):
    assert doctor.objects(setup(bucket=bucket)).state == "well"
    assert doctor.objects(setup(bucket=bucket, prefix="")).state == "well"
    assert client("s3").list_objects_v2(Bucket=bucket)["KeyCount"] == 0     # nothing is left
    denied = stubbed(setup(bucket=bucket), "s3", ("put_object", "AccessDenied"))
    assert doctor.careful(doctor.objects, denied).state == "unknown"
    assert doctor.careful(doctor.objects, setup(bucket="gone-away")).state == "missing"


def test_key(setup, client):
    kms = client("kms")
    good, off = (kms.create_key()["KeyMetadata"]["KeyId"] for _ in range(2))
    sign = kms.create_key(KeyUsage="SIGN_VERIFY", KeySpec="RSA_2048")["KeyMetadata"]["KeyId"]
    kms.disable_key(KeyId=off)
    assert doctor.key(setup()).state == "skipped"
    assert doctor.key(setup(kms_key=good)).state == "well"
    assert "enable-key" in doctor.key(setup(kms_key=off)).fix
    assert doctor.key(setup(kms_key=sign)).state == "missing"
    assert doctor.key(setup(kms_key="alias/none")).state == "missing"
    assert doctor.key(setup(kms_key=good, region="eu-west-1")).state == "missing"


# quota, VPC, image

def test_quota(setup):
    def quotas(value, name="ml.g5.xlarge for spot training job usage"):
        one = {"QuotaName": name, "QuotaCode": "L-1", "Value": value}
        return [("list_service_quotas", {"Quotas": [
            {"QuotaName": "ml.g5.xlarge for endpoint usage", "QuotaCode": "L-0", "Value": 9.0},
            one]}), ("get_service_quota", {"Quota": one})]
    given = {"instance_type": "ml.g5.xlarge", "spot": "yes"}
    assert doctor.quota(stubbed(setup(**given), "service-quotas", *quotas(2.0))).state == "well"
    none = doctor.quota(stubbed(setup(**given), "service-quotas", *quotas(0.0)))
    assert none.state == "missing" and "--quota-code L-1" in none.fix
    other = stubbed(setup(**given), "service-quotas", *quotas(1.0, "something else"))
    assert doctor.quota(other).state == "unknown"
    assert doctor.quota(setup(place="rehearsal")).state == "skipped"


def test_vpc(setup, client):
    ec2 = client("ec2")
    home, elsewhere = (ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"] for _ in range(2))
    net = ec2.create_subnet(VpcId=home, CidrBlock="10.1.0.0/24")["Subnet"]["SubnetId"]
    group, foreign = (ec2.create_security_group(VpcId=v, GroupName="g", Description="g")["GroupId"]
                      for v in (home, elsewhere))
    def found(subnets=net, groups=group):
        return doctor.vpc(setup(subnets=subnets, security_groups=groups))
    assert doctor.vpc(setup()).state == "skipped"
    assert "only one" in found(groups="").evidence
    assert "does not exist" in found(subnets="subnet-0123456789abcdef0").evidence
    assert "several VPCs" in found(groups=foreign).evidence
    lost = found()
    assert lost.state == "missing" and f"no way to S3 from {net}" in lost.evidence
    assert "rtb-" in lost.fix and f"--vpc-id {home}" in lost.fix
    # the command that it gives is the one that helps
    tables = lost.fix.rpartition("--route-table-ids ")[2].strip("`").split()
    ec2.create_vpc_endpoint(VpcId=home, VpcEndpointType="Gateway", RouteTableIds=tables,
                            ServiceName=f"com.amazonaws.{REGION}.s3")
    assert found().state == "well"


def test_image(setup, client):
    ecr = client("ecr")
    ecr.create_repository(repositoryName="ftnb")
    manifest = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution."
                           "manifest.v2+json", "config": {"digest": "sha256:" + "a"*64},
                           "layers": []})
    digest = ecr.put_image(repositoryName="ftnb", imageManifest=manifest, imageTag="1")[
        "image"]["imageId"]["imageDigest"]
    assert doctor.image(setup(image=f"{IMAGE}:1")).evidence == digest
    assert doctor.image(setup(image=f"{IMAGE}@{digest}")).state == "well"
    for image in ("", f"{IMAGE}:2", f"{IMAGE}-other:1", "docker.io/library/python:3.11"):
        assert doctor.image(setup(image=image)).state == "missing", image
    assert doctor.image(setup(place="rehearsal")).state == "skipped"


# together

def test_a_probe_that_hangs_is_given_up(setup):
    over = threading.Event()
    def hangs(setup): over.wait(60); return Finding("hangs", "well", "")
    def quick(setup): return Finding("quick", "well", "")
    impatient = setup(own=True)
    impatient.patience = .3
    began = time.monotonic()
    found = doctor.side_by_side([hangs, hangs, quick], impatient)
    assert time.monotonic() - began < 30      # not the minute that they take
    over.set()
    assert [f.state for f in found] == ["unknown", "unknown", "well"]


def test_everything_at_once_is_quick(setup, client, bucket):
    began = time.monotonic()
    found = examine(setup(bucket=bucket).site)
    assert time.monotonic() - began < 30
    assert {f.probe for f in found.findings} == {
        doctor.title(p) for p in (*doctor.HERE, doctor.credentials, doctor.account, doctor.region,
                                  *doctor.THERE)}
    about = {f.probe: f for f in found.findings}
    assert about["role"].state == "missing" and about["trust"].state == "skipped"   # said once


def test_errors_are_findings():
    class Lost(Exception): pass
    denied = ClientError({"Error": {"Code": "AccessDeniedException", "Message": "User: x is not "
                          "authorized to perform: kms:DescribeKey on resource: y"}}, "DescribeKey")
    assert "kms:DescribeKey" in doctor.told("p", denied).evidence
    assert doctor.told("p", denied).state == "unknown"
    assert doctor.told("p", Lost("no route")).state == "unknown"
    odd = ClientError({"Error": {"Code": "Odd", "Message": "what?"}}, "X")
    assert doctor.told("p", odd).state == "missing"


def test_no_secret_is_shown(setup, aws, monkeypatch, tmp_path):
    secrets = {"AWS_ACCESS_KEY_ID": "AKIA" + "Q7RTZ2LM4NPX6VWB",
               "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzSECRETKEY",
               "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEAsessiontokensessiontoken"}
    for name, value in secrets.items(): monkeypatch.setenv(name, value)
    found = examine(setup().site)
    said = json.dumps(found.to_dict()) + found._repr_markdown_() + found.todo
    assert not [name for name, value in secrets.items() if value in said]


def test_the_command(aws, monkeypatch, tmp_path):
    from ftnb.cli import app
    monkeypatch.setenv("FTNB_STORE", str(tmp_path/"store"))
    alone = CliRunner().invoke(app, ["doctor", "--on", "local", "--json"])
    assert alone.exit_code == 0 and json.loads(alone.stdout)["well"]
    monkeypatch.setenv("FTNB_ENDPOINT", aws.endpoint)
    rehearsed = CliRunner().invoke(app, ["doctor", "--on", "rehearsal", "--json"])
    assert rehearsed.exit_code == 0, rehearsed.stdout
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("FTNB_REGION", REGION)
    real = CliRunner().invoke(app, ["doctor", "--on", "aws", "--json"])
    assert real.exit_code == 1 and not json.loads(real.stdout)["well"]
    assert CliRunner().invoke(app, ["doctor", "--on", "moon"]).exit_code == 2
    text = CliRunner().invoke(app, ["doctor", "--on", "aws"]).stdout
    assert "create-role" in text and "are missing" in text


def test_without_an_account_it_says_so(tmp_path):
    found = examine(Settings(tmp_path, Stated(place="aws")))
    about = {f.probe: f for f in found.findings}
    assert found.exit_code == 1 and about["credentials"].state == "missing"
    assert "--on rehearsal" in about["credentials"].fix
    assert about["objects"].evidence == "not without an account"
