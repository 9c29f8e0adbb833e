"""In-memory fault tolerance: snapshots in the memory of processes that outlive the workers, protected by parity.

Follows REFT (Wang et al. 2023, arXiv 2310.12670): members of a sharding group each copy 1/n of the replicated state
into a manager process of their own, managers protect the shards against each other's loss, and a restarted run goes on
from there, without storage. Managers import no torch; keep this package, and what they use of it, light.
"""
