"A job in a rehearsed AWS: the same bits, one job whatever happens, clear ends."
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ftnb.foundation.errors import BadInput, StudyFailed
from ftnb.foundation.files import read_json, sha256, write_json
from ftnb.foundation.settings import Settings, Stated
from ftnb.places import local, order, sagemaker
from ftnb.places.chosen import place
from ftnb.places.contract import Job, JobResult
from ftnb.places.trial import state_after
from ftnb.rehearsal.faults import Rule
from ftnb.rehearsal.server import Rehearsal, rehearsal
from ftnb.rehearsal.service import CLOSED

slow = pytest.mark.slow
ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"


@pytest.fixture(scope="module")
def aws():
    with rehearsal() as running: yield running


@pytest.fixture
def site(aws: Rehearsal, request, tmp_path, monkeypatch):
    "Settings with a bucket of their own; whatever was made to go wrong ends with the test."
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)
    bucket = f"bucket-{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    yield Settings(tmp_path, Stated(place="rehearsal", endpoint=aws.endpoint, bucket=bucket))
    aws.context.faults.clear()
    aws.context.interruptions.clear()


def trial(folder: Path, steps: int = 3, **more) -> Job:
    "A small job; its data are the folder's name, so each test has a job of its own."
    (folder/"rows.txt").write_text(folder.name)
    return Job("trial", "ftnb.places.trial", {"steps": steps, **more},
               {"train": folder/"rows.txt"})


def right(result: JobResult, steps: int = 3) -> bool:
    "Whether a job's result is that of its whole work, done once."
    found = read_json(result.model/"state.json")
    return found["state"] == state_after(steps, found["data"])


def jobs(aws: Rehearsal, site: Settings) -> list[dict]:
    "The jobs that were ordered with a site's bucket, oldest first."
    client = aws.context.client("sagemaker")
    pages = client.get_paginator("list_training_jobs").paginate(SortBy="CreationTime")
    names = [j["TrainingJobName"] for page in pages for j in page["TrainingJobSummaries"]]
    found = [client.describe_training_job(TrainingJobName=name) for name in names]
    mine = [j for j in found if site.stated.bucket in j["OutputDataConfig"]["S3OutputPath"]]
    return sorted(mine, key=lambda j: j["CreationTime"])


def wait_for(what, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it took too long"
        time.sleep(.1)


# The same job, the same bits

@slow      # test_a_study_is_the_same_version_wherever_it_is_trained says more
def test_a_training_here_and_there_ends_with_the_same_bits(site, tmp_path):
    from test_train_job import job as tiny
    job = tiny(tmp_path/"in")
    here = local.run(job, tmp_path/"here").checked()
    there = place(site)(job, tmp_path/"there").checked()
    assert sha256(here.model) == sha256(there.model)
    assert sha256(here.output/"history.json") == sha256(there.output/"history.json")
    assert there.where["place"] == "rehearsal" and here.where == {"place": "local"}
    assert there.where["billable_seconds"] > 0 and there.where["image_digest"] is None


def network(aws: Rehearsal) -> tuple[str, str]:
    "A subnet from which S3 can be reached, and a security group."
    ec2 = aws.context.client("ec2")
    subnet = ec2.describe_subnets()["Subnets"][0]
    mine = [{"Name": "vpc-id", "Values": [subnet["VpcId"]]}]
    tables = ec2.describe_route_tables(Filters=mine)["RouteTables"]
    ec2.create_vpc_endpoint(VpcId=subnet["VpcId"], ServiceName="com.amazonaws.us-east-1.s3",
                            RouteTableIds=[t["RouteTableId"] for t in tables])
    group = ec2.describe_security_groups(Filters=mine)["SecurityGroups"][0]
    return subnet["SubnetId"], group["GroupId"]


@slow
def test_what_is_asked_for_is_what_the_settings_say(aws, site, tmp_path):
    key = aws.context.client("kms").create_key()["KeyMetadata"]["Arn"]
    stated = replace(site.stated, kms_key=key, spot="yes", max_hours="2", volume="50",
                     instance_type="ml.c5.xlarge", prefix="our/place")
    subnet, group = network(aws)
    stated = replace(stated, subnets=subnet, security_groups=group)
    result = place(replace(site, stated=stated))(trial(tmp_path), tmp_path/"job").checked()
    said, = jobs(aws, site)
    assert right(result) and said["TrainingJobName"] == result.where["job"]
    assert said["ResourceConfig"] == {"InstanceType": "ml.c5.xlarge", "InstanceCount": 1,
                                      "VolumeSizeInGB": 50, "VolumeKmsKeyId": key}
    assert said["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200,
                                         "MaxWaitTimeInSeconds": 14400}
    assert said["VpcConfig"] == {"Subnets": [subnet], "SecurityGroupIds": [group]}
    assert said["EnableManagedSpotTraining"] and said["EnableNetworkIsolation"]
    assert said["OutputDataConfig"]["KmsKeyId"] == key
    assert said["CheckpointConfig"]["S3Uri"].startswith(
        f"s3://{site.stated.bucket}/our/place/checkpoints/")
    assert said["RetryStrategy"] == {"MaximumRetryAttempts": 3}
    assert said["AlgorithmSpecification"]["ContainerEntrypoint"] == [
        "python", "-m", "ftnb.places.inside"]
    tags = aws.context.client("sagemaker").list_tags(ResourceArn=said["TrainingJobArn"])["Tags"]
    assert {"Key": "ftnb:study", "Value": "ftnb"} in tags


# Never a second job

CLIENT = """
import sys
from pathlib import Path
from ftnb.foundation.settings import Settings, Stated
from ftnb.places.chosen import place
from ftnb.places.contract import Job

endpoint, bucket, folder, steps, pause = sys.argv[1:]
site = Settings(Path(folder), Stated(place="rehearsal", endpoint=endpoint, bucket=bucket))
job = Job("trial", "ftnb.places.trial", {"steps": int(steps), "pause": float(pause)},
          {"train": Path(folder)/"rows.txt"})
place(site)(job, Path(folder)/"job", lambda line: print(line, flush=True)).checked()
"""


def in_a_process(site: Settings, folder: Path, steps: int, pause: float) -> subprocess.Popen:
    words = [site.stated.endpoint, site.stated.bucket, str(folder), str(steps), str(pause)]
    return subprocess.Popen([sys.executable, "-c", CLIENT, *words], stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True)


def test_a_killed_notebook_attaches_to_its_job(aws, site, tmp_path, capsys):
    job = trial(tmp_path, 12, pause=.5)
    process = in_a_process(site, tmp_path, 12, .5)
    for line in process.stdout or []:
        if line.startswith("[step 2/"): break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [j["TrainingJobStatus"] for j in jobs(aws, site)] == ["InProgress"]
    assert read_json(tmp_path/"job"/"where.json")["status"] == "InProgress"
    result = place(site)(job, tmp_path/"job").checked()
    assert right(result, 12) and len(jobs(aws, site)) == 1
    assert "runs already: following it" in capsys.readouterr().err
    assert result.log.read_text().count("[step 1/12]") == 1     # all lines, from the first on


def test_a_job_that_is_done_is_fetched_and_force_runs_it_again(aws, site, tmp_path, monkeypatch):
    job = trial(tmp_path)
    first = place(site)(job, tmp_path/"one").checked()
    again = place(site)(job, tmp_path/"two").checked()
    assert sha256(first.model) == sha256(again.model) and len(jobs(aws, site)) == 1
    monkeypatch.setenv("FTNB_AFRESH", "yes")
    third = place(site)(job, tmp_path/"three").checked()
    assert third.where["job"] == first.where["job"] + "-2" and len(jobs(aws, site)) == 2
    assert "going on" not in third.log.read_text() and sha256(third.model) == sha256(first.model)


@slow
def test_two_at_the_same_moment_share_one_job(aws, site, tmp_path):
    trial(tmp_path)
    both = []
    for name in ("a", "b"):
        (tmp_path/name).mkdir()
        (tmp_path/name/"rows.txt").write_text("the same")
        both.append(in_a_process(site, tmp_path/name, 3, .2))
    for process in both:
        process.communicate()
        assert process.returncode == 0
    assert len(jobs(aws, site)) == 1
    assert sha256(tmp_path/"a"/"job"/"model") == sha256(tmp_path/"b"/"job"/"model")


@slow
def test_a_name_that_was_taken_meanwhile_is_attached_to(aws, site, tmp_path, monkeypatch):
    "Both looked, nobody had ordered it yet; the second one's order is refused."
    job = trial(tmp_path)
    place(site)(job, tmp_path/"one").checked()
    monkeypatch.setattr(sagemaker, "find", lambda order: (1, None))
    result = place(site)(job, tmp_path/"two").checked()
    assert right(result) and len(jobs(aws, site)) == 1


@pytest.mark.parametrize("fault", ["drop", *(pytest.param(f, marks=slow)
                                            for f in ("internal", "throttle"))])
def test_an_order_whose_answer_is_lost_is_one_job(aws, site, tmp_path, fault):
    aws.context.faults.add(Rule("CreateTrainingJob", fault, 1, when="answer"))
    result = place(site)(trial(tmp_path), tmp_path/"job").checked()
    assert right(result) and len(jobs(aws, site)) == 1


@slow
def test_somebody_elses_job_of_that_name_isnt_taken_for_ours(aws, site, tmp_path, monkeypatch):
    job = trial(tmp_path)
    first = place(site)(job, tmp_path/"one").checked()
    monkeypatch.setattr(sagemaker, "ours", lambda order, said: order.digest == "another")
    monkeypatch.setattr(sagemaker, "_made", lambda order, name: False)
    second = place(site)(job, tmp_path/"two").checked()
    assert second.where["job"] == first.where["job"] + "-2"


def test_after_a_failure_there_is_a_next_attempt_which_says_so(aws, site, tmp_path, capsys):
    job = trial(tmp_path, fails="the file is empty")
    for n in (1, 2):
        result = place(site)(job, tmp_path/"job")
        assert (result.status, result.exit_code) == ("Failed", 2)
        assert result.reason == "the file is empty · hyperparameter fails"
        with pytest.raises(BadInput, match="the file is empty"): result.checked()
        assert len(jobs(aws, site)) == n
    assert "failed earlier: trying again" in capsys.readouterr().err


@slow
def test_a_stopped_job_goes_on_from_its_checkpoint_in_the_next_attempt(aws, site, tmp_path):
    job, client = trial(tmp_path, 8, pause=.4), aws.context.client("sagemaker")

    def stop(line: str) -> None:
        if line.startswith("[step 2/"):
            client.stop_training_job(TrainingJobName=jobs(aws, site)[0]["TrainingJobName"])

    stopped = sagemaker.run(site, job, tmp_path/"job", stop)
    assert (stopped.status, stopped.reason) == ("Stopped", "stopped")
    result = place(site)(job, tmp_path/"job").checked()
    assert "going on after step" in result.log.read_text() and right(result, 8)
    assert result.where["job"].endswith("-2")
    left = aws.context.client("s3").list_objects_v2(
        Bucket=site.stated.bucket, Prefix="ftnb/checkpoints/")
    assert left["KeyCount"] == 0        # a job that is done needs none


@slow
def test_spot_interruptions_end_with_the_bits_of_an_undisturbed_job(aws, site, tmp_path):
    job = trial(tmp_path, 10, pause=.3)
    spot = replace(site, stated=replace(site.stated, spot="yes"))
    aws.context.interruptions.add(_interruption(aws, [1.5, 1.5]))
    result = place(spot)(job, tmp_path/"job").checked()
    assert right(result, 10) and result.where["interruptions"] == 2
    assert result.where["billable_seconds"] <= result.where["training_seconds"]
    assert len(jobs(aws, site)) == 1


def _interruption(aws: Rehearsal, after: list[float]):
    from ftnb.rehearsal.faults import read_interruption
    return read_interruption({"job": "*", "after": after})


# What is wrong is said before anything is paid for

def strict(site: Settings, **stated: str) -> Settings:
    "As in AWS: nothing is made that the settings name."
    return replace(site, stated=replace(site.stated, **{"place": "aws", "region": "us-east-1",
                                                        "image": IMAGE, **stated}))


IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/ftnb:1"


@pytest.fixture
def keys(monkeypatch):
    "As in AWS: keys come from the environment."
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"): monkeypatch.setenv(name, "testing")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)


def closed(aws: Rehearsal, bucket: str, **switches: bool) -> None:
    s3 = aws.context.client("s3")
    s3.create_bucket(Bucket=bucket)
    s3.put_public_access_block(Bucket=bucket,
                               PublicAccessBlockConfiguration={**CLOSED, **switches})


@pytest.mark.parametrize(("stated", "words"), [
    ({}, "no bucket"),
    ({"image": ""}, "no image to run in"),
    ({"instance_type": "ml.nosuch.large", "bucket": "closed-1"}, "instance"),
    ({"role": "arn:aws:iam::123456789012:role/nobody", "bucket": "closed-1"}, "role"),
    ({"role": "not a role", "bucket": "closed-1"}, "role"),
    ({"bucket": "open-1"}, "doesn't block public access"),
    ({"subnets": "subnet-1"}, "needs both"),
    ({"spot": "maybe"}, "spot is 'maybe'"),
    ({"max_hours": "0"}, "max_hours is '0'"),
    ({"volume": "much"}, "volume is 'much'"),
    ({"budget": "0.0001", "bucket": "closed-1", "max_hours": "1"}, "budget is"),
    ({"budget": "a lot", "bucket": "closed-1"}, "budget is 'a lot'"),
    ({"price_table": "none.csv", "bucket": "closed-1"}, "no such price list"),
    ({"region": ""}, "no AWS region")])
def test_wrong_settings_are_refused_and_nothing_is_ordered(aws, site, keys, tmp_path, stated,
                                                           words):
    from contextlib import suppress
    for bucket, open_ended in (("closed-1", {}), ("open-1", {"BlockPublicPolicy": False})):
        with suppress(Exception): closed(aws, bucket, **open_ended)
    before = len(aws.context.client("sagemaker").list_training_jobs()["TrainingJobSummaries"])
    wrong = strict(site, **{"role": ROLE, **stated})
    with pytest.raises((BadInput, StudyFailed), match=f"(?i){words}") as e:
        place(wrong)(trial(tmp_path), tmp_path/"job")
    assert e.value.exit_code == 2, e.value
    after = len(aws.context.client("sagemaker").list_training_jobs()["TrainingJobSummaries"])
    assert before == after


def test_beyond_the_budget_nothing_goes_up(aws, site, tmp_path):
    poor = replace(site, stated=replace(site.stated, budget="0.01", max_hours="1"))
    with pytest.raises(BadInput, match="the budget is"):
        place(poor)(trial(tmp_path), tmp_path/"job")
    found = aws.context.client("s3").list_objects_v2(Bucket=site.stated.bucket)
    assert found["KeyCount"] == 0 and jobs(aws, site) == []


@slow
def test_a_rehearsal_isnt_passed_off_as_aws(aws, site, keys, tmp_path):
    closed(aws, "closed-2")
    pretending = strict(site, role=ROLE, bucket="closed-2")
    result = place(pretending)(trial(tmp_path), tmp_path/"job").checked()
    assert result.where["place"] == "rehearsal"


def test_what_isnt_a_rehearsal_isnt_used_as_one(site, tmp_path):
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Sts(BaseHTTPRequestHandler):
        def do_POST(self):
            body = (b"<GetCallerIdentityResponse><GetCallerIdentityResult><Account>1</Account>"
                    b"<Arn>arn:aws:iam::1:user/x</Arn><UserId>x</UserId></GetCallerIdentityResult>"
                    b"</GetCallerIdentityResponse>")
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_): pass

    server = HTTPServer(("127.0.0.1", 0), Sts)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    there = replace(site, stated=replace(
        site.stated, endpoint=f"http://127.0.0.1:{server.server_port}"))
    with pytest.raises(BadInput, match="isn't a rehearsal"):
        place(there)(trial(tmp_path), tmp_path/"job")
    server.shutdown()


def test_an_image_with_other_code_is_refused_inside(aws, site, tmp_path, monkeypatch):
    monkeypatch.setattr(order, "code_of", lambda module: "0" * 64)
    result = place(site)(trial(tmp_path), tmp_path/"job")
    assert result.exit_code == 2 and "the image has another ftnb" in result.reason
    with pytest.raises(BadInput, match="build the image"): result.checked()


# Ends that aren't good

@pytest.mark.parametrize("when_stopped", ["leave", pytest.param("stop", marks=slow)])
def test_ctrl_c_leaves_the_job_or_stops_it_and_says_which(aws, site, tmp_path, capsys,
                                                          when_stopped):
    job = trial(tmp_path, 40, pause=.3)
    there = replace(site, stated=replace(site.stated, when_stopped=when_stopped))

    def ctrl_c(line: str) -> None:
        if line.startswith("[step 1/"): raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt): sagemaker.run(there, job, tmp_path/"job", ctrl_c)
    said, name = capsys.readouterr().err, jobs(aws, site)[0]["TrainingJobName"]
    if when_stopped == "leave":
        assert jobs(aws, site)[0]["TrainingJobStatus"] == "InProgress"
        assert f"stop-training-job --training-job-name {name}" in said and "goes on in" in said
        aws.context.client("sagemaker").stop_training_job(TrainingJobName=name)
    else: assert "is being stopped" in said
    wait_for(lambda: jobs(aws, site)[0]["TrainingJobStatus"] == "Stopped")


@slow
def test_a_job_that_runs_too_long_is_stopped(aws, site, tmp_path, monkeypatch):
    monkeypatch.setattr(order.Terms, "seconds", property(lambda self: 2))
    result = place(site)(trial(tmp_path, 100, pause=.2), tmp_path/"job")
    assert (result.status, result.reason) == ("Stopped", "it ran longer than max_hours")
    with pytest.raises(StudyFailed, match="longer than max_hours"): result.checked()


@slow
def test_a_job_that_hangs_for_ever_is_given_up(aws, site, tmp_path, monkeypatch):
    monkeypatch.setattr(order.Terms, "waiting", property(lambda self: -57))
    aws.context.faults.add(Rule("ftnb-trial-*", "hang", 1))
    with pytest.raises(StudyFailed, match="still InProgress") as e:
        place(site)(trial(tmp_path), tmp_path/"job")
    assert "may go on" in e.value.where and "stop-training-job" in e.value.fix
    for job in jobs(aws, site):
        aws.context.client("sagemaker").stop_training_job(TrainingJobName=job["TrainingJobName"])


@slow
def test_no_capacity_is_a_failure_with_amazons_words(aws, site, tmp_path):
    aws.context.faults.add(Rule("ftnb-trial-*", "capacity", 1))
    result = place(site)(trial(tmp_path), tmp_path/"job")
    assert result.status == "Failed" and "capacity" in result.reason.lower()
    assert right(place(site)(trial(tmp_path), tmp_path/"job").checked())     # the next attempt


def test_a_rehearsal_that_is_gone_is_said(site, tmp_path):
    gone = replace(site, stated=replace(site.stated, endpoint="http://127.0.0.1:9"))
    with pytest.raises(StudyFailed, match="AWS doesn't answer"):
        place(gone)(trial(tmp_path), tmp_path/"job")


# 12 operations × 4 faults, from the first question to the last; tests/test_upload.py has others

OPERATIONS = ("sts:GetCallerIdentity", "iam:GetRole", "s3:HeadBucket", "s3:GetPublicAccessBlock",
              "s3:HeadObject", "s3:PutObject", "CreateTrainingJob", "DescribeTrainingJob",
              "logs:DescribeLogStreams", "logs:GetLogEvents", "s3:GetObject", "s3:ListObjectsV2")
ANSWERS = ("throttle", "internal", "unavailable", "drop")
QUICK = {("CreateTrainingJob", "throttle"), ("DescribeTrainingJob", "throttle"),
         ("s3:GetObject", "drop")}
PAIRS = [pytest.param(o, f, marks=[] if (o, f) in QUICK else [slow])
         for o in OPERATIONS for f in ANSWERS]


@pytest.mark.parametrize(("operation", "fault"), PAIRS)
def test_faults_are_recovered_and_there_is_one_job(aws, site, tmp_path, operation, fault):
    aws.context.faults.add(Rule(operation, fault, 2))
    result = place(site)(trial(tmp_path), tmp_path/"job").checked()
    assert right(result) and len(jobs(aws, site)) == 1
    assert result.log.read_text().count("[step 3/3]") == 1


@slow
@pytest.mark.parametrize("fault", ["throttle", "drop"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_lasting_faults_are_clear_errors_and_the_next_run_is_right(aws, site, tmp_path, operation,
                                                                   fault, monkeypatch):
    monkeypatch.setattr(sagemaker, "patience", lambda account: 2.0)
    monkeypatch.setattr("ftnb.places.following.patience", lambda account: 2.0)
    aws.context.faults.add(Rule(operation, fault, None))
    try: result = place(site)(trial(tmp_path), tmp_path/"job").checked()
    except (StudyFailed, BadInput) as e:
        assert any(words in e.what for words in ("AWS is busy", "AWS doesn't", "download")), e
    else: assert right(result)      # what failed wasn't needed, such as removing checkpoints
    aws.context.faults.clear()
    assert right(place(site)(trial(tmp_path), tmp_path/"job").checked())
    *failed, last = [j["TrainingJobStatus"] for j in jobs(aws, site)]
    assert last == "Completed" and set(failed) <= {"Failed"}     # a job downloads its data, too


# A study

STAGE = [
    "steps: int = 3      # of the chain, in [1, 100]\n"
    "pause: float = 0.0  # seconds each, in [0, 9]",
    "from ftnb.foundation.files import read_json, write_json\n"
    "from ftnb.foundation.records import Workbench\n"
    "from ftnb.places.chosen import place\nfrom ftnb.places.contract import Job",
    "bench = Workbench.open('train')\n"
    "rows = bench.receive('prepare', 'train')\n"
    "told = {'steps': steps, 'pause': pause}\n"
    "job = Job('train', 'ftnb.places.trial', told, {'train': rows})\n"
    "result = place()(job, bench.folder/'job').checked()\nbench.ran(result.where)",
    "state = read_json(result.model/'state.json')['state']\n"
    "write_json(result.model/'weight.json', {'weight': 1 + int(state[:6], 16) % 7})\n"
    "bench.hand_on('model', result.model, 'toy/model/1')\nbench.facts(steps=steps)"]


def toy(folder: Path) -> Settings:
    "The toy study, whose train stage runs a job."
    from toy import toy_site, write_stage
    site = toy_site(folder)
    write_stage(site, "train", STAGE)
    return site


def ftnb(site: Settings, *words: str, **more) -> subprocess.CompletedProcess:
    told = {k: v for k, v in os.environ.items() if not k.startswith("FTNB_")}
    return subprocess.run([sys.executable, "-c", "from ftnb.door import main; main()", *words],
                          cwd=site.root, env=told | {"FTNB_ROOT": str(site.root)}, text=True,
                          capture_output=True, **more)


def test_a_study_is_the_same_version_wherever_it_is_trained(tmp_path):
    here, there = toy(tmp_path/"here"), toy(tmp_path/"there")
    first = ftnb(here, "run", "params/toy.yaml", "--json")
    second = ftnb(there, "run", "params/toy.yaml", "--on", "rehearsal", "--json")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    facts = [json.loads(p.stdout) for p in (first, second)]
    assert facts[0]["fingerprint"] == facts[1]["fingerprint"]
    versions = [site.reports/"toy"/"1" for site in (here, there)]
    files = [read_json(v/"version.json")["files"] for v in versions]
    assert files[0] == files[1] and "starting a rehearsal" in second.stderr
    pages = [(v/"run.html").read_text() for v in versions]
    assert "a rehearsal of AWS" in pages[1] and "a rehearsal of AWS" not in pages[0]
    from ftnb.places.rehearsing import home, kept
    from ftnb.rehearsal.server import status
    assert not status(home(there)).running and not kept(there).exists()
    again = ftnb(there, "run", "params/toy.yaml", "--on", "rehearsal")
    assert "nothing had to be trained on rehearsal" in again.stdout and "--force" in again.stdout
    assert "starting a rehearsal" not in again.stderr
    forced = ftnb(there, "run", "params/toy.yaml", "--on", "rehearsal", "--force")
    assert forced.returncode == 0 and "the same bytes as toy@1" in forced.stdout


@slow
def test_the_rehearsal_from_a_terminal(tmp_path):
    site = toy(tmp_path/"site")
    assert ftnb(site, "aws", "env").returncode == 2
    up = ftnb(site, "aws", "up", "-b", "--port", "0", "--json")
    try:
        assert up.returncode == 0, up.stderr
        assert json.loads(ftnb(site, "aws", "status", "--json").stdout)["running"]
        inside = ("import boto3; print(boto3.client('sts').get_caller_identity()['Account'])")
        ran = ftnb(site, "aws", "exec", "--", sys.executable, "-c", inside)
        assert ran.stdout.strip() == "123456789012", ran.stderr
        ftnb(site, "aws", "fault", "DescribeTrainingJob", "throttle", "--count", "2")
        study = ftnb(site, "run", "params/toy.yaml", "--on", "rehearsal")
        assert study.returncode == 0 and "starting a rehearsal" not in study.stderr, study.stderr
        faults = json.loads(ftnb(site, "aws", "fault", "--json").stdout)["faults"]
        assert [f["struck"] for f in faults] == [2]
        assert ftnb(site, "aws", "fault", "Describe", "throttle").returncode == 2
    finally: down = ftnb(site, "aws", "down", "--json")
    assert down.returncode == 0 and json.loads(down.stdout)["ended"]
    assert not json.loads(ftnb(site, "aws", "status", "--json").stdout)["running"]


def test_an_unknown_place_is_bad_input(tmp_path):
    site = toy(tmp_path/"site")
    said = ftnb(site, "run", "params/toy.yaml", "--on", "mars")
    assert said.returncode == 2 and "no place 'mars'" in said.stderr
    assert not site.reports.exists()


@slow
def test_a_stopped_study_says_what_becomes_of_its_job(tmp_path):
    site = toy(tmp_path/"site")
    assert ftnb(site, "aws", "up", "-b", "--port", "0").returncode == 0
    try:
        told = {k: v for k, v in os.environ.items() if not k.startswith("FTNB_")}
        words = ["run", "params/toy.yaml", "-p", "train.steps=99", "-p", "train.pause=1",
                 "--on", "rehearsal"]
        running = subprocess.Popen(
            [sys.executable, "-c", "from ftnb.door import main; main()", *words], cwd=site.root,
            env=told | {"FTNB_ROOT": str(site.root)}, stderr=subprocess.PIPE, text=True,
            stdout=subprocess.DEVNULL)
        where = lambda: list(site.store.glob("runs/*/workbench/train/job/where.json"))
        wait_for(lambda: bool(where()) or running.poll() is not None, 120)
        running.send_signal(signal.SIGTERM)
        said = running.communicate(timeout=60)[1]
        assert "goes on: `aws sagemaker stop-training-job" in said, said
        now, = json.loads(ftnb(site, "aws", "status", "--json").stdout)["jobs"]
        assert now["status"] in ("Training", "InProgress")
    finally: ftnb(site, "aws", "down")


def test_where_it_ran_is_json_that_can_be_kept(tmp_path):
    write_json(tmp_path/"where.json", {"place": "rehearsal"})
    from ftnb.places.contract import JobFolders
    result = JobResult("a", "Completed", 0, "", JobFolders(tmp_path), tmp_path/"job.log")
    assert result.where["place"] == "rehearsal"


@pytest.mark.parametrize(("stated", "words"), [
    ({"place": "rehearsal", "spot": "maybe"}, "spot is 'maybe'"),
    ({"place": "aws"}, "no AWS region"),
    ({"place": "aws", "region": "us-east-1", "bucket": "nobodys-1"}, "no bucket"),
    ({"place": "aws", "region": "us-east-1", "image": ""}, "no image")])
def test_wrong_settings_are_said_before_the_first_stage(aws, keys, tmp_path, stated, words):
    from ftnb.foundation.settings import settings
    from ftnb.study.plan import read_study
    from ftnb.study.runner import perform
    whole = Stated(reports=str(tmp_path/"r"), store=str(tmp_path/"s"), tracking_uri="",
                   data_cards=str(tmp_path/"c"), workbench=str(tmp_path/"w"),
                   **{"image": IMAGE, "endpoint": aws.endpoint, **stated})
    wrong = Settings(settings().root, whole)
    with pytest.raises(BadInput, match=words):
        perform(read_study(wrong.root/"params"/"smoke.yaml", site=wrong), site=wrong)
    assert not list(wrong.store.glob("receipts/**/*.json"))
