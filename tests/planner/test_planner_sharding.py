"""Time of what other engines run: ZeRO-2 and 3, FSDP, sequence, context and expert parallelism, rank order."""

from dataclasses import replace

import numpy as np
import pytest

from hpcdl.planner import comm
from hpcdl.planner.engines import find_engine
from hpcdl.planner.estimate import FORMULAS, step_tree
from hpcdl.planner.fabric import REPLICAS, Fabric
from hpcdl.planner.space import Candidates
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.job import Overlap
from hpcdl.spec.model import Model
from hpcdl.spec.training import Training

NO_LATENCY = dict(collective_latency_s=0.0, hop_latency_s=0.0, network_latency_s=0.0)
BIG = Model(layers=8, hidden=8192, heads=64, vocab=32000, sequence=4096)
MOE = Model(layers=4, hidden=2048, heads=16, vocab=32000, sequence=2048, experts=16, active_experts=2)
NOTHING = Overlap(**dict.fromkeys(Overlap.model_fields, False))


@pytest.fixture
def any_case(case_on):
    """A case for an engine without limits that hides nothing."""

    def make(engine="any", **given):
        return replace(case_on(**given), engine=find_engine(engine), overlap=NOTHING)

    return make


def fabric(case, **degrees):
    return Fabric(case, Candidates.of(Decomposition(**degrees)))


def leaves(case, **degrees):
    tree = step_tree(case, Candidates.of(Decomposition(**degrees)))
    found = {leaf.name: float(leaf.value[0]) for leaf in tree.leaves()}
    assert sum(found.values()) == pytest.approx(float(tree.value[0]))
    assert all(name in FORMULAS for name in found)
    return found


def test_z_and_zero_3_over_the_same_ranks_move_the_same_bytes(any_case):
    """Two gathers and a scatter of every weight, but for gradients' type: bf16 over z, fp32 over data."""
    case = any_case(nodes=4, model=BIG, **NO_LATENCY)
    over_z = [each.gather[0] for each in comm.linears(fabric(case, z=16))]
    sharded = comm.shards(f := fabric(case, data=16, zero=3), comm.layer_elements(f))
    assert sharded.forward[0] == sharded.backward[0] == pytest.approx(sum(over_z))
    assert sharded.scatter[0] == pytest.approx(2 * sum(over_z))


@pytest.mark.parametrize(
    ("engine", "zero", "gathers", "scatters"),
    [("any", 0, 0, 0), ("any", 1, 0, 0), ("any", 2, 0, 1), ("any", 3, 2, 1), ("fsdp", 2, 1, 1), ("fsdp", 3, 2, 1)],
)  # fmt: skip
def test_what_each_stage_moves_a_microbatch(any_case, engine, zero, gathers, scatters):
    case = any_case(engine, nodes=4, model=BIG, **NO_LATENCY)
    f = fabric(case, data=16, zero=zero)
    moved = comm.shards(f, np.array([1e9]))
    gathered = f.gather(np.array([2e9]), REPLICAS)[0]
    assert moved.forward[0] + moved.backward[0] == pytest.approx(gathers * gathered)
    assert moved.scatter[0] == pytest.approx(scatters * 2 * gathered)


@pytest.mark.parametrize(
    ("zero", "reduced", "gathered"), [(0, 2, 0), (1, 1, 1), (2, 0, 1), (3, 0, 0)]
)  # fmt: skip
def test_what_each_stage_moves_a_step(any_case, zero, reduced, gathered):
    f = fabric(any_case(nodes=4, model=BIG, **NO_LATENCY), x=4, data=4, zero=zero)
    one_way = f.gather(np.array([4e9]), REPLICAS)[0]
    assert comm.gradient_reduction(f, np.array([1e9]))[0][0] == pytest.approx(reduced * one_way)
    assert comm.parameter_gather(f, np.array([1e9]))[0] == pytest.approx(gathered * one_way / 2)


def test_fsdp_copies_what_it_gathers_and_scatters(any_case):
    fsdp, ours = (any_case(name, model=BIG, ranks_per_node=4) for name in ("fsdp", "any"))
    copied = comm.shards(fabric(fsdp, data=4, zero=3), np.array([1e9])).copied[0]
    assert copied == pytest.approx(1e9 * 5 / fsdp.memory_rate)
    assert comm.shards(fabric(ours, data=4, zero=3), np.array([1e9])).copied[0] == 0


def test_more_microbatches_gather_more_often(any_case):
    few, many = (leaves(any_case(nodes=4, model=BIG), data=16, zero=3, microbatch=b) for b in (4, 1))
    assert many["weights data"] == pytest.approx(4 * few["weights data"])
    assert few["gradient reduction"] == few["parameter gather"] == 0


def test_new_weights_are_gathered_beside_the_next_forward_where_an_engine_does_that(any_case):
    ours, core = (
        leaves(any_case(name, nodes=4, model=BIG), data=16, zero=1)["parameter gather"]
        for name in ("any", "megatron-core")
    )
    assert 0 < core < ours


def test_engines_reduce_gradients_in_their_type(any_case):
    fp32, fp16 = (
        comm.shards(fabric(any_case(name, nodes=4, **NO_LATENCY), data=16, zero=3), np.array([1e9]))
        for name in ("fsdp", "deepspeed-zero3")
    )
    assert fp32.scatter[0] == pytest.approx(2 * fp16.scatter[0])
    assert fp32.forward[0] == pytest.approx(fp16.forward[0])


def test_a_recomputed_layer_is_gathered_again_only_by_engines_that_drop_it(any_case):
    ours, fsdp = (
        leaves(any_case(name, nodes=4, model=BIG, host_floor_s=0.0), z=16, recompute="full")
        for name in ("any", "fsdp")
    )
    assert ours["weights z"] + ours["recompute"] > fsdp["weights z"] + fsdp["recompute"]


def test_hybrid_sharding_gathers_inside_and_reduces_outside(any_case):
    """z in a node and data between nodes: cheap gathers, and one reduction of a quarter of the weights."""
    case = any_case(nodes=4, model=BIG)
    hybrid, flat = leaves(case, z=4, data=4), leaves(case, data=16, zero=3)
    assert hybrid["weights z"] < flat["weights data"]
    assert hybrid["gradient reduction"] > flat["gradient reduction"] == 0


def test_sequence_parallelism_moves_what_tensor_parallelism_does(any_case):
    """Forward the same ring volume, backward one more gather of each input of two products."""
    case = any_case(model=BIG, **NO_LATENCY)
    plain, cut = (
        comm.linears(fabric(case, x=4, sequence_parallel=cuts, microbatch=2)) for cuts in (False, True)
    )
    forward, back = sum(each.forward[0] for each in plain), sum(each.backward[0] for each in plain)
    assert sum(each.stream[0] for each in cut) == pytest.approx(forward)
    assert forward == pytest.approx(back)
    assert sum(each.again[0] for each in cut) == pytest.approx(forward / 2)
    assert all(each.forward[0] == each.backward[0] == 0 for each in cut)


def test_sequence_parallelism_cuts_messages_of_the_pipeline(any_case):
    case = any_case(nodes=4, model=BIG, **NO_LATENCY)
    whole, cut = (
        comm.hop(fabric(case, x=4, pipeline=4, sequence_parallel=cuts))[0] for cuts in (False, True)
    )
    assert cut == pytest.approx(whole / 4)


def test_megatron_sends_messages_in_parts_and_gathers_them(any_case):
    """Narayanan et al. 2021, section 4.1: over the network 1/x of a message, over a node's links the rest."""
    whole, parts = (
        fabric(any_case(name, nodes=4, model=BIG, **NO_LATENCY), x=4, pipeline=4)
        for name in ("any", "megatron")
    )
    gathered = parts.gather(np.array([4096 * 8192 * 2.0]), "x")[0]
    assert comm.hop(parts)[0] == pytest.approx(comm.hop(whole)[0] / 4 + gathered)


def test_a_ring_of_attention_passes_keys_and_values_on(any_case):
    """c - 1 hops of two times the local tokens' keys and values; with their gradients on the way back."""
    grouped = BIG.model_copy(update={"kv_heads": 8})
    f = fabric(any_case(model=grouped, **NO_LATENCY), context=4)
    hops = 3 * 2 * 1024 * 1024 * 2 / f.bandwidth("context")[0]
    ring = comm.context(f)
    assert ring.forward[0] == pytest.approx(hops)
    assert ring.backward[0] == pytest.approx(2 * hops)


def test_gathered_keys_and_values_move_as_much_and_hide_behind_nothing(any_case):
    """torchtitan's default; by a ring a long sequence's attention hides all of it."""
    passed, gathered = (any_case(name, nodes=4, model=BIG, **NO_LATENCY) for name in ("any", "torchtitan"))
    moved = [comm.context(fabric(case, context=16)).total[0] for case in (passed, gathered)]
    assert moved[0] == pytest.approx(moved[1])
    assert leaves(passed, context=16)["context"] < leaves(gathered, context=16)["context"]


def test_a_ring_of_attention_hides_behind_long_sequences(any_case):
    short, long = (
        leaves(any_case(nodes=4, model=BIG.model_copy(update={"sequence": length})), context=16)
        for length in (1024, 131072)
    )
    assert short["context"] > 0 == long["context"]


def test_parts_of_a_sequence_hold_the_same_weights(any_case):
    """So they reduce gradients together with data, and shard with it."""
    case = any_case(nodes=4, model=BIG)
    cut, whole = leaves(case, context=4, data=4), leaves(case, data=16)
    assert cut["gradient reduction"] == pytest.approx(whole["gradient reduction"])


def test_experts_cost_four_all_to_alls_a_layer(any_case):
    case = any_case(nodes=4, model=MOE, training=Training(global_batch=16))
    f = fabric(case, data=16, expert=16)
    one = f.all_to_all(np.array([2 * 2048 * 2048 * 2.0]), "expert")[0]
    assert leaves(case, data=16, expert=16)["experts"] == pytest.approx(4 * 4 * one)
    assert leaves(case, data=16)["experts"] == 0


def test_ranks_that_sit_closer_talk_faster(any_case):
    """Data before pipeline keeps the reduction in a node; pipeline before data keeps messages there."""
    case = any_case(nodes=4, model=BIG)
    near_data, near_stages = (
        leaves(case, data=4, pipeline=4, order=order) for order in ("data-pipeline", "pipeline-data")
    )
    assert near_data["gradient reduction"] < near_stages["gradient reduction"]
    assert near_data["pipeline messages"] > near_stages["pipeline messages"]
