"Prices, memory, forecast and guard: against sources, properties, and a measured training."
import csv
import json
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftnb.foundation.errors import BadInput
from ftnb.places.contract import Job
from ftnb.places.forecast import (
    Assumptions,
    Range,
    Speed,
    actual,
    affordable_seconds,
    earlier_runs,
    elsewhere,
    forecast,
    guard,
    options,
    ranged,
    recorded,
)
from ftnb.places.memory import (
    ModelShape,
    activation_bytes,
    memory,
    model_shape,
    shape_of,
    state_bytes,
)
from ftnb.places.prices import price_query, read_prices, refreshed, shipped, write_prices
from ftnb.train.encoders import embedded_encoder

ROOT = Path(__file__).resolve().parent.parent
PRICES = read_prices()
LLAMA = ModelShape(8_030_261_248, 32, 4096, 32, 8, 14336, 128256, True, 0)


# prices

def test_every_shipped_row_says_who_and_when():
    rows = PRICES.of("us-east-1").rows
    assert len(rows) >= 25 and len({r.instance for r in rows}) == len(rows)
    assert all(r.source and r.date and r.vcpus and r.memory_gib and r.tflops for r in rows)
    families = {r.instance.split(".")[1] for r in rows}
    assert {"m5", "c5", "g4dn", "g5", "g6", "p4d", "p5"} <= families


def test_shipped_types_can_be_trained_on():
    model = boto3.client("sagemaker", region_name="us-east-1").meta.service_model
    assert {r.instance for r in PRICES.rows} <= set(model.shape_for("TrainingInstanceType").enum)


def test_machines_are_as_ec2_describes_them():
    "The hardware columns, against DescribeInstanceTypes as moto carries it."
    import gzip

    import moto
    file = Path(moto.__file__).parent/"ec2"/"resources"/"instance_types.json.gz"
    known = json.loads(gzip.decompress(file.read_bytes()))
    for row in PRICES.rows:
        said = known[row.instance.removeprefix("ml.")]
        assert row.vcpus == said["VCpuInfo"]["DefaultVCpus"], row
        assert row.memory_gib == said["MemoryInfo"]["SizeInMiB"]/1024, row
        gpus = said.get("GpuInfo", {}).get("Gpus", [])
        assert row.gpus == sum(g["Count"] for g in gpus), row
        if gpus:
            assert abs(row.gpu_memory_gib - gpus[0]["MemoryInfo"]["SizeInMiB"]/1024) < .01, row


def test_larger_machines_of_a_family_never_cost_less_for_more_gpus():
    rows = [r for r in PRICES.rows if r.gpus]
    for a in rows:
        for b in rows:
            if a.gpu == b.gpu and a.gpus < b.gpus and a.vcpus <= b.vcpus:
                assert a.usd_per_hour < b.usd_per_hour, (a, b)


HEAD = "region,instance,usd_per_hour,date\n"
GOOD = "us-east-1,ml.g5.xlarge,1.2,2026-11-01\n"


@pytest.mark.parametrize("text, line, column", [
    (HEAD + GOOD + "us-east-1,ml.g5.2xlarge,nan,2026-11-01\n", 3, "usd_per_hour"),
    (HEAD + "us-east-1,ml.g5.xlarge,inf,2026-11-01\n", 2, "usd_per_hour"),
    (HEAD + "us-east-1,ml.g5.xlarge,0,2026-11-01\n", 2, "usd_per_hour"),
    (HEAD + "us-east-1,ml.g5.xlarge,free,2026-11-01\n", 2, "usd_per_hour"),
    (HEAD + "us-east-1,ml.g5.xlarge,1,408,2026-11-01\n", 2, "cells"),
    (HEAD + "us-east-1,ml.g5.xlarge\n", 2, "cells"),
    (HEAD + "Virginia,ml.g5.xlarge,1,2026-11-01\n", 2, "region"),
    (HEAD + "us-east-1,g5.xlarge,1,2026-11-01\n", 2, "instance"),
    (HEAD + "us-east-1,ml.g5.xlarge,1,yesterday\n", 2, "date"),
    (HEAD + GOOD + GOOD, 3, "again"),
    ("region,instance,date\n", 1, "usd_per_hour"),
    ("region,instance,usd_per_hours,date\n", 1, "did you mean 'usd_per_hour'"),
    (HEAD.strip() + ",gpus\n" + GOOD.strip() + ",1.5\n", 2, "gpus"),
    (HEAD.strip() + ",vcpus,gpus,gpu_memory_gib\n" + GOOD.strip() + ",4,1,0\n", 2, "GPUs"),
    ("", 1, "region"),
])
def test_a_bad_price_list_is_refused_with_its_line(tmp_path, text, line, column):
    (tmp_path/"mine.csv").write_text(text)
    with pytest.raises(BadInput) as e: read_prices(tmp_path/"mine.csv")
    assert f"line {line}" in str(e.value) and column in str(e.value)


def test_a_price_list_that_isnt_text_is_refused(tmp_path):
    (tmp_path/"mine.csv").write_bytes(HEAD.encode() + b"\xff\xfe\x00,\n")
    with pytest.raises(BadInput): read_prices(tmp_path/"mine.csv")
    with pytest.raises(BadInput): read_prices(tmp_path/"none.csv")


def test_a_price_list_survives_the_round_trip(tmp_path):
    again = read_prices(write_prices(tmp_path/"all.csv", PRICES))
    assert again == PRICES
    with shipped().open() as f: assert len(list(csv.DictReader(f))) == len(PRICES.rows)


def test_a_spreadsheets_file_is_read(tmp_path):
    "With a byte order mark and Windows line ends."
    text = (HEAD + GOOD).replace("\n", "\r\n")
    (tmp_path/"mine.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_prices(tmp_path/"mine.csv").find("ml.g5.xlarge").usd_per_hour == 1.2


def test_the_query_has_the_shape_that_the_service_takes():
    from botocore.stub import Stubber
    client = boto3.client("pricing", region_name="us-east-1", aws_access_key_id="a",
                          aws_secret_access_key="b")
    with Stubber(client) as stub:
        asked = price_query("ml.g5.xlarge", "eu-west-1")
        stub.add_response("get_products", {"PriceList": []}, asked)
        assert refreshed(client, [PRICES.find("ml.g5.xlarge")], "eu-west-1").rows == ()


# memory

def test_zero_divides_as_the_paper_says():
    "Rajbhandari et al. 2020, figure 1: 7.5 B parameters, 64 devices, K = 12."
    found = [sum(state_bytes(7_500_000_000, "mixed", z, 64).values())/1e9 for z in range(4)]
    assert [round(x, 1) for x in found] == [120, 31.4, 16.6, 1.9]


@pytest.mark.parametrize("layers, hidden, heads", [(48, 6144, 64), (96, 12288, 96)])
def test_activations_are_the_papers(layers, hidden, heads):
    "Korthikanti et al. 2022, equation 2 without the attention part: 34 s b h L bytes."
    shape = ModelShape(0, layers, hidden, heads, heads, 4*hidden, 0)
    found = activation_bytes(shape, 1, 2048, "mixed")["activations"]
    assert found == 34*2048*hidden*layers
    full = activation_bytes(shape, 1, 2048, "mixed", checkpointing=True)["activations"]
    assert full == 2*2048*hidden*layers + 34*2048*hidden      # every input, and one layer


@given(st.integers(1, 64), st.integers(8, 2048), st.sampled_from(["float32", "autocast", "mixed"]),
       st.integers(0, 3), st.integers(1, 8))
def test_memory_grows_with_the_batch_and_shrinks_with_zero(batch, tokens, precision, zero, nodes):
    machine = PRICES.find("ml.p4d.24xlarge")
    def device(**more):
        given = {"batch": batch, "tokens": tokens, "precision": precision, "zero": zero,
                 "instances": nodes} | more
        return memory(LLAMA, machine, **given).device
    assert device(batch=batch + 1) > device() and device(tokens=tokens + 1) > device()
    assert device(checkpointing=True) < device()
    if zero: assert device(offload="optimizer") < device()
    states = [sum(state_bytes(10**9, precision, z, 8).values()) for z in range(4)]
    assert states == sorted(states, reverse=True)


def test_host_memory_counts_when_it_is_offloaded():
    machine = PRICES.find("ml.g5.xlarge")          # 16 GiB of memory beside the GPU
    moved = memory(LLAMA, machine, 1, 512, "mixed", offload="parameters", checkpointing=True)
    assert moved.host > 100e9 and moved.verdict == "too much"


@pytest.mark.parametrize("config", [
    {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257},
    {"model_type": "distilbert", "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072},
    {"model_type": "t5", "d_model": 512, "num_layers": 6, "num_heads": 8, "d_ff": 2048},
    {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12},
])
def test_shapes_of_families(config):
    shape = shape_of(config, 1)
    assert shape.hidden >= 384 and shape.layers >= 6 and shape.intermediate >= 4*384
    assert not shape.gated


MEASURE = r"""
import json, sys, torch
from transformers import AutoModelForSequenceClassification
torch.set_num_threads(1)
folder, batch, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return 1024*int(next(l for l in lines if l.startswith(name)).split()[1])
x = torch.randn(64, 64, requires_grad=True); (x @ x).sum().backward()
before = status("VmRSS")
model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=20).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
ids = torch.randint(1000, 20000, (batch, tokens)); labels = torch.randint(0, 20, (batch,))
open("/proc/self/clear_refs", "w").write("5")
for _ in range(2):
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
    optimizer.step(); optimizer.zero_grad(set_to_none=True)
print(json.dumps(status("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("batch, tokens", [(8, 128), (32, 128)])
def test_the_formula_against_a_measured_training(batch, tokens):
    "The embedded encoder, 22.7 M parameters: within 15 %, and on the safe side."
    command = [sys.executable, "-c", MEASURE, str(embedded_encoder()), str(batch), str(tokens)]
    env = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
           "MALLOC_TRIM_THRESHOLD_": "0", "PYTHONPATH": str(ROOT), "HOME": "/tmp"}
    ran = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert ran.returncode == 0, ran.stderr
    measured = json.loads(ran.stdout.splitlines()[-1])
    shape = model_shape(embedded_encoder())
    said = sum(state_bytes(shape.parameters).values()) + .16e9 + sum(
        activation_bytes(shape, batch, tokens, on_gpu=False).values())
    assert .97 < said/measured < 1.15, f"{said/1e6:.0f} MB said, {measured/1e6:.0f} MB measured"


# forecast

ranges = st.tuples(*[st.floats(0, 1e6)]*3).map(lambda x: Range(*sorted(x)))


@given(ranges, ranges, st.floats(0, 100))
def test_ranges_stay_ranges(a, b, k):
    for made in (a + b, a*b, a*k, a.at_most(k)): assert made.low <= made.expected <= made.high


@pytest.mark.parametrize("bad", [(2, 1, 3), (0, 1, float("inf")), (-1, 0, 1), (0, float("nan"), 1)])
def test_what_isnt_a_range_is_refused(bad):
    with pytest.raises(BadInput): Range(*bad)


def job(tmp_path, instances: int = 1) -> Job:
    (tmp_path/"rows.jsonl").write_text("x"*1000)
    return Job("train", "ftnb.train.entry", {}, {"train": tmp_path}, instances=instances)


@given(st.floats(1, 1e6), st.booleans(), st.integers(1, 16),
       st.sampled_from([r.instance for r in PRICES.rows]))
def test_cost_follows_time_machines_and_price(seconds, spot, instances, instance):
    f = forecast(Job("j", "m"), instance, instances, spot, seconds, max_seconds=1e9)
    assert f.cost and f.on_demand and f.billed and f.seconds
    price = PRICES.find(instance).usd_per_hour
    assert f.on_demand.low >= instances*price*seconds/3600*(1 - 1e-12)
    assert f.cost.low <= f.cost.expected <= f.cost.high <= f.on_demand.high*(1 + 1e-12)
    assert f.billed.expected <= f.seconds.expected          # waiting isn't paid
    if not spot: assert f.cost == f.on_demand


def test_unknown_stays_unknown(tmp_path):
    f = forecast(job(tmp_path), "ml.m5.xlarge")
    assert f.training is f.cost is f.seconds is f.billed is None
    text = f._repr_markdown_()  # type: ignore[attr-defined]
    assert "unknown" in text and "at most" in text
    assert recorded([], "x") is None and recorded([(0, 5), (5, 0)], "x") is None


def test_time_limit_bounds_what_is_paid(tmp_path):
    f = forecast(job(tmp_path), "ml.g5.xlarge", seconds=1e5, max_seconds=3600)
    assert f.cost and f.cost.high <= f.most + 1e-9 and f.billed and f.billed.high == 3600


def test_a_job_says_how_many_machines(tmp_path):
    assert forecast(job(tmp_path, 3), "ml.g5.xlarge").instances == 3
    assert forecast(job(tmp_path, 3), "ml.g5.xlarge", 2).instances == 2


def test_volume_is_paid_only_where_there_is_no_disk(tmp_path):
    assert forecast(job(tmp_path), "ml.m5.xlarge", volume=100).storage > 0
    assert forecast(job(tmp_path), "ml.g5.xlarge", volume=100).storage == 0


def test_spot_is_never_promised(tmp_path):
    f = forecast(job(tmp_path), "ml.g5.xlarge", spot=True, seconds=3600)
    assert f.cost and f.on_demand and f.cost.high == f.on_demand.high    # it may save nothing
    assert "up to 90 %" in f._repr_markdown_()  # type: ignore[attr-defined]
    full = forecast(job(tmp_path), "ml.g5.xlarge", seconds=3600)
    assert f.billed and full.billed and f.billed.high > full.billed.high   # interruptions cost


def test_a_guess_for_other_hardware_is_wide():
    here = Speed(Range(100, 100, 100), "measured")
    for row in PRICES.rows:
        there = elsewhere(here, .5, row)
        assert there.per_second.high >= 5*there.per_second.low and "guess" in there.basis


def test_committed_versions_tell_how_long_it_took():
    runs = earlier_runs(ROOT/"reports"/"quickstart", "local")
    assert runs and all(work == 4057*8 and 60 < seconds < 3600 for work, seconds in runs)
    assert earlier_runs(ROOT/"reports"/"quickstart", "ml.p5.48xlarge") == []
    assert earlier_runs(ROOT/"reports"/"none", "local") == []


# guard

def test_the_guard_lets_through_and_refuses(tmp_path):
    f = forecast(job(tmp_path), "ml.g5.xlarge", seconds=3600)
    assert f.cost
    assert guard(f, None) is f and guard(f, f.cost.expected + .01) is f
    with pytest.raises(BadInput) as e: guard(f, f.cost.expected - .01)
    assert e.value.exit_code == 2 and "the budget is" in str(e.value) and e.value.fix
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(BadInput): guard(f, bad)


def test_the_guard_names_what_would_do(tmp_path):
    def make(instance, spot):
        return forecast(job(tmp_path), instance, spot=spot, seconds=3600)
    side = options(make, ["ml.g5.xlarge", "ml.g4dn.xlarge"])
    with pytest.raises(BadInput) as e: guard(make("ml.p4d.24xlarge", False), 2, side.forecasts)
    assert "ml.g4dn.xlarge with spot" in e.value.fix


def test_what_doesnt_fit_is_refused_whatever_the_budget(tmp_path):
    needs = memory(LLAMA, PRICES.find("ml.g5.xlarge"), 1, 2048, "mixed")
    f = forecast(job(tmp_path), "ml.g5.xlarge", seconds=60, memory=needs)
    with pytest.raises(BadInput) as e: guard(f, None)
    assert "doesn't fit" in str(e.value)


def test_an_unknown_time_needs_a_limit(tmp_path):
    f = forecast(job(tmp_path), "ml.g5.xlarge", max_seconds=3600)
    assert guard(f, 1.5) is f                        # an hour costs 1.41 at most
    with pytest.raises(BadInput) as e: guard(f, 1)
    assert "limit of" in e.value.fix


@given(st.floats(.01, 1e4), st.sampled_from([r.instance for r in PRICES.rows]))
def test_within_the_affordable_time_the_budget_holds(budget, instance):
    f = forecast(Job("j", "m"), instance)
    assert f.hourly*affordable_seconds(f, budget)/3600 <= budget*(1 + 1e-9)


# afterwards

def test_actual_is_what_aws_bills(tmp_path):
    "BillableTimeInSeconds × InstanceCount × the price on demand, with spot and without."
    for spot in (False, True):
        f = forecast(job(tmp_path), "ml.g5.xlarge", 2, spot, 600)
        found = actual(f, 300, 600)
        assert found.cost == pytest.approx(2*1.408*300/3600)
        assert [r[0] for r in found.rows()] == ["training", "billed time", "cost"]
        assert found.rows()[0][3] == "1.00" and found.rows()[0][4] == "yes"
        assert "cost, actual" in found.to_dict()
    with pytest.raises(BadInput): actual(f, -1)


def test_a_forecast_is_the_same_every_time(tmp_path):
    made = [forecast(job(tmp_path), "ml.g5.xlarge", spot=True, seconds=ranged(100),
                     assumptions=Assumptions()) for _ in range(2)]
    assert made[0] == made[1]
