"""Curation on a Ray cluster of two nodes on this machine: the same bytes as here, and errors that are themselves."""

import sys

import pytest
from test_curate import config, contents, run, write_corpus

from tilth.curate.curate import curate
from tilth.data.engines import Workers, engine_of
from tilth.recipe import BadInput

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray", reason="needs tilth[ray]")
    import ray
    from ray.cluster_utils import Cluster
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def on_ray(made, folder):
    return curate(made.inputs, made.rules, made.attributes, made.exact_duplicates, made.held_out, folder, 1, 1, 15_000,
                  engine="ray")


def test_two_nodes_leave_the_bytes_of_one_process(cluster, tmp_path):
    import ray
    corpus = write_corpus(tmp_path / "corpus")
    assert run(config(corpus), tmp_path / "here") == on_ray(config(corpus), tmp_path / "there")
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2


def test_bad_input_on_a_node_is_bad_input_here(cluster, tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    strict = config(corpus, inputs=[{"path": str(corpus), "on_bad": "error"}])
    with pytest.raises(BadInput, match=r"lone surrogates|not valid JSON"):
        on_ray(strict, tmp_path / "out")


def test_a_lost_node_costs_only_its_shards(cluster, tmp_path):
    import ray
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the nodes cannot import this file
    extra = cluster.add_node(num_cpus=1)
    done = []
    for task in Workers(engine="ray").map(write_slowly, [(tmp_path / f"{at}",) for at in range(6)]):
        if not done:
            cluster.remove_node(extra, allow_graceful=False)
        done.append(task[0].name)
    assert sorted(done) == [str(at) for at in range(6)]
    assert all((tmp_path / name).read_text() == name for name in done)


def write_slowly(path):
    import time
    time.sleep(0.5)
    path.write_text(path.name)


def test_an_unknown_engine_is_refused():
    with pytest.raises(BadInput, match="use local or ray"):
        engine_of("spark")
