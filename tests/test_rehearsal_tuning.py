"Tuning jobs on the rehearsal, through boto3 and the SageMaker SDK; and the search by itself."
import io
import json
import math
import re
import tarfile
import time
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ftnb.rehearsal import checks, tuning
from ftnb.rehearsal.client import connected
from ftnb.rehearsal.faults import Rule
from ftnb.rehearsal.search import (
    AUTO,
    Attempt,
    Range,
    Search,
    behind,
    drawn,
    grid,
    know,
    not_improving,
    report,
    scale,
    tell,
    to_draw,
)
from ftnb.rehearsal.server import BUCKET, ROLE, rehearsal
from ftnb.rehearsal.service import ServiceError
from ftnb.rehearsal.tuning_records import Child, Tuning

ARN = f"arn:aws:iam::123456789012:role/{ROLE}"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/mine:1"
OBJECTIVE = {"Type": "Maximize", "MetricName": "score"}
RATE = [{"Name": "rate", "MinValue": "0", "MaxValue": "1"}]

# ---- the search by itself


def error(values):
    "What a training might make of these values; least, 0, at a rate of 10^-3.2, 4 layers, adam."
    rate, depth = math.log10(float(values["rate"])) + 3.2, int(values["layers"]) - 4
    return rate**2 + .15 * depth**2 + {"adam": 0, "sgd": .7}[values["optimizer"]]


SPACE = (Range("layers", "Integer", 1, 12), Range("rate", "Continuous", 1e-6, 1e-1),
         Range("optimizer", "Categorical", values=("adam", "sgd")))


def ask(search: Search) -> Attempt:
    one = search.ask()
    assert one
    return one


def best_of(strategy, seed, attempts=15, parallel=2):
    "The best error that a search finds."
    search = Search(SPACE, strategy, maximize=False, seed=seed)
    running: list[Attempt] = []
    for _ in range(attempts):
        if len(running) == parallel: tell(search, one := running.pop(0), error(one.values))
        running.append(ask(search))
    for one in running: tell(search, one, error(one.values))
    return min(error(one.values) for one in search.attempts)


@pytest.mark.slow
def test_bayesian_beats_random():
    pairs = [(best_of("Bayesian", seed, 12), best_of("Random", seed, 12)) for seed in range(3)]
    assert all(b < r for b, r in pairs)
    assert np.median([b for b, _ in pairs]) < .5 * np.median([r for _, r in pairs])


@pytest.mark.slow
@pytest.mark.slow
def test_bayesian_beats_random_with_four_at_once():
    pairs = [(best_of("Bayesian", s, 24, 4), best_of("Random", s, 24, 4)) for s in range(20)]
    assert sum(b < r for b, r in pairs) >= 17
    assert np.median([b for b, _ in pairs]) < .1 * np.median([r for _, r in pairs])


bounds = st.floats(1e-6, 1e6).flatmap(lambda low: st.tuples(st.just(low), st.floats(low, 1e7)))


@given(bounds, st.sampled_from(["Auto", "Linear", "Logarithmic"]), st.integers(0, 99))
@hypothesis_settings(max_examples=60, deadline=None)
def test_suggestions_lie_in_their_range(limits, scaling, seed):
    low, high = limits
    one = Range("x", "Continuous", low, high, scaling)
    whole = Range("n", "Integer", math.ceil(low), math.ceil(high) + 1, scaling)
    for _ in range(3):
        values = ask(Search((one, whole), "Random", seed=seed)).values
        assert one.holds(values["x"]) and whole.holds(values["n"]) and values["n"].isdigit()
        assert one.text(one.read(values["x"])) == values["x"]


@given(st.floats(0, .999), st.floats(0, .999))
def test_the_reverse_logarithm_is_undone(a, b):
    one = Range("momentum", "Continuous", min(a, b), max(a, b), "ReverseLogarithmic")
    for value in (one.low, one.high, (one.low + one.high) / 2):
        assert drawn(one, to_draw(one, repr(value))) == pytest.approx(value, abs=1e-12)


def test_reverse_logarithmic_values_crowd_near_one():
    one = Range("momentum", "Continuous", 0, .999, "ReverseLogarithmic")
    search = Search((one,), "Random", seed=1)
    values = np.array([float(ask(search).values["momentum"]) for _ in range(400)])
    assert .25 < np.mean(values > .99) < .42 and .25 < np.mean(values < .9) < .42   # a third each


def test_auto_takes_logarithms_of_wide_ranges():
    assert scale(Range("x", "Continuous", 1, AUTO)) == "Logarithmic"
    assert scale(Range("x", "Continuous", 1, AUTO - 1)) == "Linear"
    assert scale(Range("x", "Continuous", 0, 1e9)) == "Linear"


def test_a_grid_is_tried_once_and_ends():
    ranges = [Range("a", "Categorical", values=("1", "2", "3")),
              Range("b", "Categorical", values=("x", "y"))]
    search, found = Search(ranges, "Grid"), []
    while one := search.ask():
        found.append(one.values)
        tell(search, one, None)
    assert found == grid(ranges) and len(found) == 6 and search.ask() is None


def test_the_same_seed_and_order_give_the_same_values():
    def values(seed, order):
        search = Search(SPACE, "Bayesian", seed=seed)
        running = [ask(search) for _ in range(4)]
        for i in order: tell(search, running[i], error(running[i].values))
        return [a.values for a in running] + [ask(search).values]

    assert values(5, [0, 1, 2, 3]) == values(5, [0, 1, 2, 3]) != values(6, [0, 1, 2, 3])


@pytest.mark.slow
def test_hyperband_spends_less_and_keeps_the_best():
    spent, lost = [], []
    for seed in range(10):
        search = Search(SPACE, "Hyperband", maximize=False, seed=seed, resources=(1, 27))
        for _ in range(40):
            one = ask(search)
            for epoch in range(1, 28):
                if report(search, one, value := error(one.values) + 3 * .8**epoch): break
            tell(search, one, value)
        full = [error(a.values) for a in search.attempts]
        spent.append(sum(len(a.reports) for a in search.attempts) / (27 * 40))
        assert search.best
        lost.append(error(search.best.values) - min(full))
    assert max(spent) < .5 and np.median(lost) == 0


def test_hyperband_never_stops_before_the_least_resource():
    search = Search(SPACE, "Hyperband", maximize=False, resources=(4, 12))
    for i in range(30):
        one = ask(search)
        for _ in range(12):
            if report(search, one, float(i)): break
        tell(search, one, float(i))
    assert {len(a.reports) for a in search.attempts} == {4, 12}


def test_a_value_that_is_no_number_is_a_failure():
    search = Search(SPACE, "Bayesian")
    for value in (math.nan, math.inf, None): tell(search, ask(search), value)
    tell(search, last := ask(search), 1.0)
    assert search.best is last and ask(search)


def test_known_results_outside_the_ranges_say_nothing():
    search = Search(SPACE, "Bayesian")
    assert know(search, {"layers": "3", "rate": "1e-3", "optimizer": "adam", "more": "x"}, .5)
    assert not know(search, {"layers": "99", "rate": "1e-3", "optimizer": "adam"}, .5)
    assert not know(search, {"layers": "three", "rate": "1e-3", "optimizer": "adam"}, .5)
    assert not know(search, {"layers": "3", "rate": "1e-3"}, .5)


@given(st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=5), max_size=6),
       st.lists(st.floats(-9, 9), min_size=1, max_size=5))
def test_the_median_rule_is_symmetric(earlier, current):
    turned = [[-v for v in values] for values in earlier]
    assert behind(current, earlier, True) == behind([-v for v in current], turned, False)


def test_not_improving_counts_from_the_last_real_improvement():
    assert not_improving([1, 1.005, 1.009, 1.0101], True) == 0     # small steps add up to 1 %
    assert not_improving([1, 1.005, 1.009], True) == 2
    assert not_improving([0, 0, 1e-9], True) == 0                  # any step from 0 is one


# ---- tuning jobs

SCRIPT = """
import argparse, time
parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float, default=0.5)
parser.add_argument("--optimizer", default="adam")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--pause", type=float, default=0)
parser.add_argument("--fail", type=int, default=0)
parser.add_argument("--silent", type=int, default=0)
given = parser.parse_args()
score = 1 - (given.rate - 0.6)**2 - 0.1 * (given.optimizer == "sgd")
for epoch in range(given.epochs):
    if not given.silent: print("score=%.6f;" % (score - 0.5**(epoch + 1)), flush=True)
    time.sleep(given.pause)
if given.fail: raise SystemExit(3)
"""


def archive() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        info = tarfile.TarInfo("train.py")
        info.size = len(SCRIPT)
        tar.addfile(info, io.BytesIO(SCRIPT.encode()))
    return made.getvalue()


class Tuner:
    "A client of a rehearsal's tuning jobs."

    def __init__(self, running):
        self.running, self.client = running, running.context.client("sagemaker")
        running.context.client("s3").put_object(Bucket=BUCKET, Key="code.tar.gz", Body=archive())

    def request(self, name, strategy="Random", static=None, ranges=None, jobs=4, parallel=2,
                **config):
        limits = {"MaxNumberOfTrainingJobs": jobs, "MaxParallelTrainingJobs": parallel}
        if jobs is None: del limits["MaxNumberOfTrainingJobs"]
        return {"HyperParameterTuningJobName": name, "HyperParameterTuningJobConfig": {
            "Strategy": strategy, "ResourceLimits": limits, "RandomSeed": 1,
            "ParameterRanges": ranges or {"ContinuousParameterRanges": RATE},
            "HyperParameterTuningJobObjective": OBJECTIVE, **config},
            "TrainingJobDefinition": self.definition(static or {})}

    def definition(self, static):
        return {"RoleArn": ARN, "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
                "AlgorithmSpecification": {
                    "TrainingImage": IMAGE, "TrainingInputMode": "File",
                    "MetricDefinitions": [{"Name": "score", "Regex": "score=(.*?);"}]},
                "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1,
                                   "VolumeSizeInGB": 10},
                "StoppingCondition": {"MaxRuntimeInSeconds": 600},
                "StaticHyperParameters": {
                    "sagemaker_program": "train.py",
                    "sagemaker_submit_directory": f"s3://{BUCKET}/code.tar.gz", **static}}

    def create(self, *arguments, **more):
        request = self.request(*arguments, **more)
        self.client.create_hyper_parameter_tuning_job(**request)
        return request["HyperParameterTuningJobName"]

    def describe(self, name):
        return self.client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)

    def finished(self, name, seconds=120):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            told = self.describe(name)
            if told["HyperParameterTuningJobStatus"] not in ("InProgress", "Stopping"): return told
            time.sleep(.1)
        raise TimeoutError(self.describe(name))

    def run(self, *arguments, **more): return self.finished(self.create(*arguments, **more))

    def children(self, name, **more):
        lister = self.client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job")
        pages = lister.paginate(HyperParameterTuningJobName=name, **more)
        return [one for page in pages for one in page["TrainingJobSummaries"]]

    def until(self, name, check, seconds=60):
        until = time.monotonic() + seconds
        while not check(self.children(name)):
            assert time.monotonic() < until, self.describe(name)
            time.sleep(.05)


@pytest.fixture(scope="module")
def tuner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")/"run"
    with rehearsal(folder, stop_notice=.5) as running: yield Tuner(running)


@pytest.fixture(scope="module")
def ran(tuner):
    "A tuning job that ran to its end, by name: four random tries."
    tuner.run("random")
    return "random"


def value(summary): return summary["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]


def rate(summary): return float(summary["TunedHyperParameters"]["rate"])


def overlap(children) -> int:
    "How many children ran at once, at most."
    return max(sum(other["CreationTime"] <= one["CreationTime"] < other["TrainingEndTime"]
                   for other in children) for one in children)


def refused(call, code, text=""):
    with pytest.raises(ClientError) as e: call()
    assert e.value.response["Error"]["Code"] == code, e.value
    assert text in e.value.response["Error"]["Message"]


def test_random_search(tuner, ran):
    told, children = tuner.describe(ran), tuner.children(ran)
    assert told["HyperParameterTuningJobStatus"] == "Completed"
    assert told["TrainingJobStatusCounters"]["Completed"] == 4
    assert told["ObjectiveStatusCounters"] == {"Succeeded": 4, "Pending": 0, "Failed": 0}
    assert told["HyperParameterTuningEndTime"] >= told["CreationTime"]
    assert told["ConsumedResources"]["RuntimeInSeconds"] >= 0
    for i, one in enumerate(children, 1):
        assert re.fullmatch(rf"random-00{i}-[0-9a-f]{{8}}", one["TrainingJobName"])
    assert overlap(children) == 2
    for one in children:
        assert value(one) == pytest.approx(.5 - (rate(one) - .6)**2, abs=1e-6)
    best = told["BestTrainingJob"]
    assert value(best) == max(map(value, children)) and best["ObjectiveStatus"] == "Succeeded"
    fixed = told["TrainingJobDefinition"]["StaticHyperParameters"]
    assert fixed["_tuning_objective_metric"] == "score"


def test_the_seed_decides_the_values(tuner, ran):
    search = Search((Range("rate", "Continuous", 0, 1),), "Random", seed=1)
    expected = [ask(search).values for _ in range(4)]
    assert [one["TunedHyperParameters"] for one in tuner.children(ran)] == expected


def test_a_child_is_a_training_job(tuner, ran):
    child = tuner.children(ran)[0]
    told = tuner.client.describe_training_job(TrainingJobName=child["TrainingJobName"])
    assert told["TuningJobArn"].endswith(":hyper-parameter-tuning-job/random")
    assert told["HyperParameters"]["rate"] == child["TunedHyperParameters"]["rate"]
    assert told["FinalMetricDataList"][0]["Value"] == pytest.approx(value(child))
    assert told["ModelArtifacts"]["S3ModelArtifacts"].startswith(f"s3://{BUCKET}/out/random-001-")


def test_grid_search_tries_every_combination_once(tuner):
    categories = [{"Name": "rate", "Values": ["0.2", "0.6"]},
                  {"Name": "optimizer", "Values": ["adam", "sgd"]}]
    told = tuner.run("grid", "Grid", ranges={"CategoricalParameterRanges": categories}, jobs=None)
    tried = [tuple(one["TunedHyperParameters"].values()) for one in tuner.children("grid")]
    assert sorted(tried) == sorted((r, o) for r in ("0.2", "0.6") for o in ("adam", "sgd"))
    assert told["BestTrainingJob"]["TunedHyperParameters"] == {"rate": "0.6", "optimizer": "adam"}


def test_bayesian_search_minimises_and_knows_its_parent(tuner):
    parent = tuner.run("bayes", "Bayesian", jobs=4)
    warm = {"ParentHyperParameterTuningJobs": [{"HyperParameterTuningJobName": "bayes"}],
            "WarmStartType": "IdenticalDataAndAlgorithm"}
    request = tuner.request("bayes-warm", "Bayesian", jobs=2)
    tuner.client.create_hyper_parameter_tuning_job(**request, WarmStartConfig=warm)
    told = tuner.finished("bayes-warm")
    found = [value(parent["BestTrainingJob"]), value(told["BestTrainingJob"])]
    overall = told["OverallBestTrainingJob"]
    assert value(overall) == max(found) and overall["TuningJobName"] in ("bayes", "bayes-warm")
    assert "OverallBestTrainingJob" not in parent and told["WarmStartConfig"] == warm
    first = ask(Search((Range("rate", "Continuous", 0, 1),), "Bayesian", seed=1)).values
    assert tuner.children("bayes-warm")[0]["TunedHyperParameters"] != first   # it knows something


def test_a_transfer_tries_what_was_good_elsewhere(tuner, ran):
    warm = {"ParentHyperParameterTuningJobs": [{"HyperParameterTuningJobName": ran}],
            "WarmStartType": "TransferLearning"}
    request = tuner.request("transfer", jobs=1, parallel=1, static={"optimizer": "sgd"})
    tuner.client.create_hyper_parameter_tuning_job(**request, WarmStartConfig=warm)
    told = tuner.finished("transfer")
    best = tuner.describe(ran)["BestTrainingJob"]
    assert rate(tuner.children("transfer")[0]) == rate(best)
    assert "OverallBestTrainingJob" not in told


def test_hyperband_stops_children_before_their_last_epoch(tuner):
    told = tuner.run("bands", "Hyperband", jobs=5, static={"epochs": "9", "pause": "0.2"},
                     StrategyConfig={"HyperbandStrategyConfig": {"MaxResource": 9}})
    children = tuner.children("bands")
    statuses = told["TrainingJobStatusCounters"]
    assert statuses["Stopped"] >= 1 and statuses["Stopped"] + statuses["Completed"] == 5
    assert told["ObjectiveStatusCounters"]["Succeeded"] == 5 and all(map(value, children))


def test_early_stopping_ends_what_is_behind(tuner):
    categories = [{"Name": "rate", "Values": ["0.6", "0.61", "0.59", "0.05"]}]
    told = tuner.run("early", "Grid", ranges={"CategoricalParameterRanges": categories}, jobs=None,
                     parallel=1, static={"epochs": "8", "pause": "0.2"},
                     TrainingJobEarlyStoppingType="Auto")
    good, bad = tuner.children("early")[:3], tuner.children("early")[3]
    assert [one["TrainingJobStatus"] for one in good] == ["Completed"] * 3
    assert bad["TrainingJobStatus"] == "Stopped" and bad["ObjectiveStatus"] == "Succeeded"
    *whole, short = [one["TrainingEndTime"] - one["TrainingStartTime"] for one in [*good, bad]]
    assert short < min(whole) and rate(told["BestTrainingJob"]) == .6
    assert told["TrainingJobStatusCounters"]["Stopped"] == 1


def test_several_definitions_take_turns(tuner):
    request = tuner.request("several", jobs=3)
    ranges = request["HyperParameterTuningJobConfig"].pop("ParameterRanges")
    del request["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]
    del request["TrainingJobDefinition"]
    request["TrainingJobDefinitions"] = [
        {**tuner.definition({"optimizer": name}), "DefinitionName": name,
         "TuningObjective": OBJECTIVE, "HyperParameterRanges": ranges} for name in ("adam", "sgd")]
    tuner.client.create_hyper_parameter_tuning_job(**request)
    told, children = tuner.finished("several"), tuner.children("several")
    assert [one["TrainingJobDefinitionName"] for one in children] == ["adam", "sgd", "adam"]
    assert told["BestTrainingJob"]["TrainingJobDefinitionName"] in ("adam", "sgd")
    assert "TrainingJobDefinition" not in told and len(told["TrainingJobDefinitions"]) == 2


def test_a_target_ends_it(tuner):
    criteria = {"TargetObjectiveMetricValue": 0.0}
    told = tuner.run("target", jobs=20, TuningJobCompletionCriteria=criteria)
    assert told["HyperParameterTuningJobStatus"] == "Completed"
    assert value(told["BestTrainingJob"]) >= 0 and len(tuner.children("target")) <= 4


def test_no_improvement_ends_it(tuner):
    rates = {"Name": "rate", "Values": [f"{rate:.3f}" for rate in np.linspace(.59, .61, 12)]}
    criteria = {"BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": 3}}
    request = tuner.request("patience", "Grid", ranges={"CategoricalParameterRanges": [rates]},
                            jobs=None, TuningJobCompletionCriteria=criteria)
    tuner.client.create_hyper_parameter_tuning_job(**request)
    told = tuner.finished("patience")
    assert told["HyperParameterTuningJobStatus"] == "Completed"
    assert told["TuningJobCompletionDetails"]["NumberOfTrainingJobsObjectiveNotImproving"] >= 3
    assert 4 <= len(tuner.children("patience")) <= 6


def test_stopping_stops_the_children(tuner):
    tuner.create("stopped", jobs=10, static={"pause": "60"})
    metric = "FinalHyperParameterTuningJobObjectiveMetric"
    tuner.until("stopped", lambda children: sum(metric in one for one in children) == 2)
    tuner.client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="stopped")
    assert tuner.describe("stopped")["HyperParameterTuningJobStatus"] in ("Stopping", "Stopped")
    told = tuner.finished("stopped", 30)
    assert told["HyperParameterTuningJobStatus"] == "Stopped"
    assert told["TrainingJobStatusCounters"]["Stopped"] == 2
    assert told["TrainingJobStatusCounters"]["InProgress"] == 0
    stop = tuner.client.stop_hyper_parameter_tuning_job
    refused(lambda: stop(HyperParameterTuningJobName="stopped"), "ValidationException", "Stopped")


def test_failures_and_silence_have_no_objective(tuner):
    silent = {"CategoricalParameterRanges": [{"Name": "silent", "Values": ["0", "1"]},
                                             {"Name": "fail", "Values": ["0", "1"]}]}
    told = tuner.run("mixed", "Grid", ranges=silent, jobs=None)
    assert told["HyperParameterTuningJobStatus"] == "Completed"
    assert told["TrainingJobStatusCounters"] == {
        "Completed": 2, "InProgress": 0, "RetryableError": 0, "NonRetryableError": 2, "Stopped": 0}
    assert told["ObjectiveStatusCounters"] == {"Succeeded": 1, "Pending": 0, "Failed": 3}
    assert told["BestTrainingJob"]["TunedHyperParameters"] == {"silent": "0", "fail": "0"}
    failed = tuner.children("mixed", StatusEquals="Failed")
    assert len(failed) == 2 and all("exit code: 3" in one["FailureReason"] for one in failed)
    assert len(tuner.children("mixed", SortBy="FinalObjectiveMetricValue")) < 4


def test_five_failures_at_the_start_are_enough(tuner):
    told = tuner.run("hopeless", jobs=20, parallel=5, static={"fail": "1"})
    assert told["HyperParameterTuningJobStatus"] == "Failed"
    assert told["FailureReason"].startswith("No training job succeeded after 5 attempts.")
    assert 5 <= len(tuner.children("hopeless")) <= 10
    few = tuner.run("all-fail", jobs=1, parallel=1, static={"fail": "1"})
    assert few["FailureReason"].startswith("All training jobs failed.")


def test_no_capacity_is_a_retryable_error(tuner):
    tuner.running.context.faults.add(Rule("capacity-00*", "capacity", count=1))
    told = tuner.run("capacity", jobs=2)
    assert told["TrainingJobStatusCounters"]["RetryableError"] == 1
    assert told["HyperParameterTuningJobStatus"] == "Completed"


def test_children_wait_for_room(tuner, monkeypatch):
    monkeypatch.setitem(checks.quotas, "ml.m5.large for training job usage", 1)
    told = tuner.run("crowded", jobs=3, parallel=2)
    assert told["TrainingJobStatusCounters"]["Completed"] == 3
    assert overlap(tuner.children("crowded")) == 1


def test_no_room_at_all_fails_the_tuning_job(tuner, monkeypatch):
    begin = tuning.begin

    def begun(jobs, call):
        monkeypatch.setitem(checks.quotas, "ml.m5.large for training job usage", 0)
        return begin(jobs, call)

    monkeypatch.setattr(tuning, "begin", begun)
    told = tuner.run("no-room")
    assert told["HyperParameterTuningJobStatus"] == "Failed"
    assert told["FailureReason"].startswith("ResourceLimitExceeded: ")


def test_a_deleted_training_job_is_a_failed_child():
    class Nobody:
        def record(self, name, region): raise ServiceError("ValidationException", "not found")

    request = {"HyperParameterTuningJobName": "x", "HyperParameterTuningJobConfig": {}}
    child = Child("x-001", "arn", 0.0, {"rate": "0.5"}, "score", "Maximize")
    known = Tuning(request, "arn", "us-east-1", 0.0, children=[child])
    search = Search((Range("rate", "Continuous", 0, 1),), "Random")
    job: Any = tuning.Job(None, Nobody(), known, [search], {"x-001": (search, ask(search))})  # type: ignore[arg-type]
    tuning.look(job)
    assert child.status == "Failed" and "deleted" in child.reason and not job.running
    assert known.order == ["x-001"]


def test_eventbridge_hears_of_it(tuner):
    events, sqs = tuner.running.context.client("events"), tuner.running.context.client("sqs")
    queue = sqs.create_queue(QueueName="heard")["QueueUrl"]
    kind = "SageMaker HyperParameter Tuning Job State Change"
    pattern = {"detail-type": [kind], "detail": {"HyperParameterTuningJobName": ["heard"]}}
    events.put_rule(Name="heard", EventPattern=json.dumps(pattern))
    target = {"Id": "1", "Arn": "arn:aws:sqs:us-east-1:123456789012:heard"}
    events.put_targets(Rule="heard", Targets=[target])
    tuner.run("heard", jobs=1, parallel=1)
    tuner.until("heard", lambda _: sqs.get_queue_attributes(
        QueueUrl=queue, AttributeNames=["All"])["Attributes"]["ApproximateNumberOfMessages"] == "2")
    heard = [json.loads(m["Body"])["detail"] for m in sqs.receive_message(
        QueueUrl=queue, MaxNumberOfMessages=10)["Messages"]]
    assert [one["HyperParameterTuningJobStatus"] for one in heard] == ["InProgress", "Completed"]


def test_a_warm_start_is_for_one_definition(tuner, ran):
    request = tuner.request("warm-several")
    config = request["HyperParameterTuningJobConfig"]
    ranges = config.pop("ParameterRanges")
    del config["HyperParameterTuningJobObjective"]
    one = {**request.pop("TrainingJobDefinition"), "DefinitionName": "a",
           "TuningObjective": OBJECTIVE, "HyperParameterRanges": ranges}

    def after(parent):
        parents = [{"HyperParameterTuningJobName": parent}]
        return {"ParentHyperParameterTuningJobs": parents, "WarmStartType": "TransferLearning"}

    create = tuner.client.create_hyper_parameter_tuning_job
    several = {**request, "TrainingJobDefinitions": [one]}
    refused(lambda: create(**several, WarmStartConfig=after(ran)),
            "ValidationException", "warm start")
    refused(lambda: create(**tuner.request("of-several"), WarmStartConfig=after("several")),
            "ValidationException", "several")


def test_lists_sort_filter_and_page(tuner, ran):
    by_value = tuner.children(ran, SortBy="FinalObjectiveMetricValue", SortOrder="Descending")
    assert [*map(value, by_value)] == sorted(map(value, by_value), reverse=True)
    assert len(tuner.children(ran, PaginationConfig={"PageSize": 2})) == 4
    assert tuner.children(ran, StatusEquals="Failed") == []
    lister = tuner.client.get_paginator("list_hyper_parameter_tuning_jobs")
    for name in ("listed-1", "listed-2"): tuner.run(name, "Bayesian", jobs=2)
    pages = lister.paginate(NameContains="listed", SortBy="CreationTime", SortOrder="Descending",
                            PaginationConfig={"PageSize": 1})
    found = [one for page in pages for one in page["HyperParameterTuningJobSummaries"]]
    assert [one["HyperParameterTuningJobName"] for one in found] == ["listed-2", "listed-1"]
    assert found[0]["Strategy"] == "Bayesian"
    assert found[0]["TrainingJobStatusCounters"]["Completed"] == 2


def test_names_are_unique_and_unknown_ones_refused(tuner, ran):
    refused(lambda: tuner.create(ran), "ResourceInUse", "unique")
    for operation in ("describe", "stop", "delete"):
        call = getattr(tuner.client, f"{operation}_hyper_parameter_tuning_job")
        refused(lambda call=call: call(HyperParameterTuningJobName="nobody"), "ResourceNotFound")


def test_what_isnt_rehearsed_is_refused(tuner):
    request = tuner.request("auto")
    create, autotune = tuner.client.create_hyper_parameter_tuning_job, {"Mode": "Enabled"}
    refused(lambda: create(**request, Autotune=autotune), "UnsupportedOperationException", "Auto")


def test_tags_go_to_the_children(tuner):
    request = tuner.request("tagged", jobs=1, parallel=1)
    tags = [{"Key": "team", "Value": "blue"}]
    tuner.client.create_hyper_parameter_tuning_job(**request, Tags=tags)
    told = tuner.finished("tagged")
    for arn in (told["HyperParameterTuningJobArn"], told["BestTrainingJob"]["TrainingJobArn"]):
        assert tuner.client.list_tags(ResourceArn=arn)["Tags"] == tags


def test_deleting_forgets_the_tuning_job_only(tuner):
    child = tuner.run("forgotten", jobs=1, parallel=1)["BestTrainingJob"]["TrainingJobName"]
    tuner.client.delete_hyper_parameter_tuning_job(HyperParameterTuningJobName="forgotten")
    refused(lambda: tuner.describe("forgotten"), "ResourceNotFound")
    told = tuner.client.describe_training_job(TrainingJobName=child)
    assert told["TrainingJobStatus"] == "Completed"


def test_what_is_kept_comes_back(tuner, ran):
    jobs = tuner.running.parts["tuning"]
    tuner.create("kept", jobs=10, static={"pause": "60"})
    tuner.until("kept", lambda children: len(children) == 2)
    state = json.loads(json.dumps(jobs.state()))
    before = {one["request"]["HyperParameterTuningJobName"]: one for one in state}
    other = type(jobs)(jobs.context, jobs.training)
    other.restore(state)
    assert other.job(ran).tuning.status == "Completed" and len(before) == len(other.tunings())
    lost = other.job("kept").tuning
    assert lost.status == "Failed" and "rehearsal was stopped" in lost.reason
    assert {child.status for child in lost.children} == {"Failed"}
    tuner.client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="kept")
    assert tuner.finished("kept")["HyperParameterTuningJobStatus"] == "Stopped"
    assert {row["kind"] for row in jobs.table()} == {"tuning"}


# ---- through the SDK


def test_the_sdks_tuner(tuner, tmp_path):
    pytest.importorskip("sagemaker.train")
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter
    from sagemaker.core.shapes import (
        HyperParameterTuningJobWarmStartConfig,
        ParentHyperParameterTuningJob,
    )
    from sagemaker.core.training.configs import Compute, SourceCode
    from sagemaker.train import ModelTrainer
    from sagemaker.train.tuner import HyperparameterTuner

    (tmp_path/"train.py").write_text(SCRIPT)
    with connected(tuner.running.endpoint):
        ranges = {"rate": ContinuousParameter(0, 1),
                  "optimizer": CategoricalParameter(["adam", "sgd"])}

        def make(jobs, **more):
            trainer = ModelTrainer(
                training_image=IMAGE, role=ARN, sagemaker_session=Session(), base_job_name="sdk",
                source_code=SourceCode(source_dir=str(tmp_path), entry_script="train.py"),
                compute=Compute(instance_type="ml.m5.large", instance_count=1),
                hyperparameters={"epochs": 2})
            return HyperparameterTuner(
                trainer, "score", ranges, strategy="Random", random_seed=3, max_jobs=jobs,
                metric_definitions=[{"Name": "score", "Regex": "score=(.*?);"}],
                max_parallel_jobs=jobs, **more)

        first = make(2)
        first.tune(job_name="sdk-first", wait=False)
        first.latest_tuning_job.wait(poll=1)
        frame = first.analytics().dataframe()
        assert len(frame) == 2 and set(frame["TrainingJobStatus"]) == {"Completed"}
        best = frame.sort_values("FinalObjectiveValue").iloc[-1]
        assert first.best_training_job() == best["TrainingJobName"]
        assert first.describe().objective_status_counters.succeeded == 2
        assert set(first.analytics().tuning_ranges) == {"rate", "optimizer"}
        warm = HyperParameterTuningJobWarmStartConfig(
            warm_start_type="TransferLearning", parent_hyper_parameter_tuning_jobs=[
                ParentHyperParameterTuningJob(hyper_parameter_tuning_job_name="sdk-first")])
        second = make(1, warm_start_config=warm)
        second.tune(job_name="sdk-second", wait=False)
        second.latest_tuning_job.wait(poll=1)
        tried = second.analytics().dataframe().iloc[0]
        assert tried["rate"] == best["rate"]
        assert second.best_training_job().startswith("sdk-second-")
