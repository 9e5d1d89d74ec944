"Spot training on the rehearsal: interrupted, restarted from its checkpoints, and billed so."
import random
import time

import pytest
from botocore.exceptions import ClientError
from training_jobs import BUCKET, statuses, training_jobs

from ftnb.rehearsal.faults import Interruption
from ftnb.rehearsal.records import training_seconds

# Counts to TOTAL, a step every STEP seconds, and saves each step by writing beside and renaming.
COUNTS = """
import hashlib, os, time
step, total = float(os.environ.get('STEP', '0.1')), int(os.environ.get('TOTAL', '30'))
folder = '/opt/ml/checkpoints'
done, state = 0, b''
for name in os.listdir(folder) if os.path.isdir(folder) else []:
    if name.startswith('step-'):
        n = int(name[5:])
        if n > done: done, state = n, open(f'{folder}/{name}', 'rb').read()
assert len(state) in (0, 100_000), len(state)
print('from', done)
while done < total:
    done += 1
    state = (hashlib.sha256(state).digest() * 3125)[:100_000]
    time.sleep(step)
    if os.path.isdir(folder):
        with open(f'{folder}/.part', 'wb') as f: f.write(state)
        os.rename(f'{folder}/.part', f'{folder}/step-{done}')
    print('step', done)
open('/opt/ml/model/state', 'wb').write(state)
"""


@pytest.fixture(scope="module")
def jobs():
    with training_jobs(spot_notice=0.4) as found:
        yield found


def spot(name, checkpoints=True, wait=300, **more):
    "The members of a request for spot training."
    made = {"EnableManagedSpotTraining": True,
            "StoppingCondition": {"MaxRuntimeInSeconds": min(wait, 200),
                                  "MaxWaitTimeInSeconds": wait}}
    if checkpoints: made["CheckpointConfig"] = {"S3Uri": f"s3://{BUCKET}/checkpoints/{name}"}
    return made | more


def interrupted(jobs, name, *after):
    jobs.rehearsal.context.interruptions.add(Interruption(name, after))


@pytest.fixture(scope="module")
def undisturbed(jobs):
    "The bits of a job that nothing happens to."
    told = jobs.run("undisturbed", COUNTS, Environment={"STEP": "0.01"}, **spot("undisturbed"))
    assert "Interrupted" not in statuses(told)
    return jobs.members("out/undisturbed/output/model.tar.gz")


def starts(jobs, name):
    "The steps that each attempt began from."
    return [int(line.split()[1]) for line in jobs.printed(name) if line.startswith("from")]


def test_an_interrupted_job_goes_on_from_its_checkpoints(jobs, undisturbed):
    interrupted(jobs, "goes-on", 1.5, 1.0)
    told = jobs.run("goes-on", COUNTS, **spot("goes-on"))
    assert told["TrainingJobStatus"] == "Completed"
    assert statuses(told) == ["Starting", "Downloading", "Training", "Interrupted"] * 2 + [
        "Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert jobs.members("out/goes-on/output/model.tar.gz") == undisturbed
    first, second, third = sorted(starts(jobs, "goes-on"))
    assert first == 0 < second < third < 30
    assert len(jobs.lines("goes-on")) >= 2   # a stream an attempt, but for attempts in one second


def test_spot_seconds_are_counted_by_attempt_and_cost_their_share(jobs):
    interrupted(jobs, "billed", 1.0)
    told = jobs.run("billed", COUNTS, Environment={"TOTAL": "40"}, **spot("billed"))
    seconds = training_seconds(jobs.parts.record("billed"))
    assert told["TrainingTimeInSeconds"] == max(1, round(seconds))
    assert told["BillableTimeInSeconds"] == max(1, round(0.3 * seconds))
    whole = (told["TrainingEndTime"] - told["TrainingStartTime"]).total_seconds()
    assert seconds <= whole - 0.05   # waiting for capacity isn't paid


def test_without_checkpoints_it_starts_from_nothing(jobs, undisturbed):
    interrupted(jobs, "forgets", 1.0)
    told = jobs.run("forgets", COUNTS, Environment={"STEP": "0.05"},
                    **spot("forgets", checkpoints=False))
    assert told["TrainingJobStatus"] == "Completed" and starts(jobs, "forgets") == [0, 0]
    assert jobs.members("out/forgets/output/model.tar.gz") == undisturbed


def test_a_job_is_interrupted_when_somebody_says_so(jobs, undisturbed):
    record = jobs.create("by-hand", COUNTS, **spot("by-hand"))
    jobs.until_printed("by-hand", "step 12")
    jobs.parts.interrupt("by-hand")
    assert record.ended.wait(60)
    assert starts(jobs, "by-hand")[1] >= 1
    assert jobs.members("out/by-hand/output/model.tar.gz") == undisturbed


def test_on_demand_instances_stay(jobs):
    interrupted(jobs, "stays", 0.1)
    told = jobs.run("stays", COUNTS, Environment={"STEP": "0.01"})
    assert "Interrupted" not in statuses(told)
    with pytest.raises(Exception, match="no spot instances"): jobs.parts.interrupt("stays")
    assert told["BillableTimeInSeconds"] == told["TrainingTimeInSeconds"]


def test_checkpoints_are_in_s3_while_the_job_runs(jobs):
    record = jobs.create("mirrored", COUNTS, Environment={"TOTAL": "200"},
                         CheckpointConfig={"S3Uri": f"s3://{BUCKET}/checkpoints/mirrored/"})
    jobs.until(lambda: len(jobs.keys("checkpoints/mirrored/")) >= 3)
    assert not record.ended.is_set()
    for key in jobs.keys("checkpoints/mirrored/"):
        assert len(jobs.get(f"checkpoints/mirrored/{key}")) == 100_000 and key.startswith("step-")
    jobs.sm.stop_training_job(TrainingJobName="mirrored")
    assert record.ended.wait(30)
    later = jobs.create("continued", COUNTS, Environment={"TOTAL": "200"},
                        CheckpointConfig={"S3Uri": f"s3://{BUCKET}/checkpoints/mirrored"})
    jobs.until_printed("continued", "from")
    assert starts(jobs, "continued")[0] >= 3
    jobs.sm.stop_training_job(TrainingJobName="continued")
    assert later.ended.wait(30)


def test_what_hears_sigterm_saves_in_its_last_seconds(jobs):
    script = """
import os, signal, sys, time
def save(*_):
    open('/opt/ml/checkpoints/last', 'w').write('saved in time')
    sys.exit(0)
if os.path.exists('/opt/ml/checkpoints/last'):
    open('/opt/ml/model/found', 'w').write(open('/opt/ml/checkpoints/last').read())
else:
    signal.signal(signal.SIGTERM, save)
    print('ready')
    time.sleep(60)
"""
    record = jobs.create("hears", script, **spot("hears"))
    jobs.until_printed("hears", "ready")
    jobs.parts.interrupt("hears")
    assert record.ended.wait(30)
    assert jobs.members("out/hears/output/model.tar.gz") == {"found": b"saved in time"}


def test_capacity_that_comes_too_late(jobs):
    jobs.rehearsal.context.options.wait = 60.0
    try:
        interrupted(jobs, "waits", 0.3)
        told = jobs.run("waits", COUNTS, **spot("waits", wait=4))
        assert (told["TrainingJobStatus"], told["SecondaryStatus"]) == (
            "Stopped", "MaxWaitTimeExceeded")
        interrupted(jobs, "stopped", 0.3)
        record = jobs.create("stopped", COUNTS, **spot("stopped"))
        jobs.until(lambda: record.secondary_status == "Interrupted")
        start = time.monotonic()
        jobs.sm.stop_training_job(TrainingJobName="stopped")
        assert record.ended.wait(30) and time.monotonic() - start < 20
        assert record.secondary_status == "Stopped"
    finally: jobs.rehearsal.context.options.wait = 0.05


def test_two_instances_are_lost_and_come_back_together(jobs):
    script = COUNTS.replace("folder = '/opt/ml/checkpoints'", """
import json
me = json.load(open('/opt/ml/input/config/resourceconfig.json'))['current_host']
folder = '/opt/ml/checkpoints/' + me
os.makedirs(folder, exist_ok=True)
""").replace("/opt/ml/model/state", "/opt/ml/model/' + me + '")
    interrupted(jobs, "pair", 2.0)
    jobs.run("pair", script, instances=2, **spot("pair"))
    assert sorted(jobs.members("out/pair/output/model.tar.gz")) == ["algo-1", "algo-2"]
    begun = starts(jobs, "pair")
    assert begun.count(0) == 2 and len(begun) == 4


def test_what_the_service_refuses(jobs):
    with pytest.raises(ClientError, match="MaxWaitTimeInSeconds"):
        jobs.create("no-wait", COUNTS, EnableManagedSpotTraining=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_kill_at_a_random_moment_changes_no_bit(jobs, undisturbed, seed):
    moment = random.Random(seed).uniform(0.05, 3.0)
    interrupted(jobs, f"random-{seed}", moment)
    told = jobs.run(f"random-{seed}", COUNTS, **spot(f"random-{seed}"))
    assert told["TrainingJobStatus"] == "Completed", told.get("FailureReason")
    assert jobs.members(f"out/random-{seed}/output/model.tar.gz") == undisturbed
