"""Which workers protect each other: groups that one failing machine (or other failure domain) cannot break."""

from collections.abc import Sequence

from tilth.recipe.errors import BadInput


def place(domains: Sequence[str], losses: int) -> list[list[int]]:
    """Groups of ranks, as few (so as large) as possible, with at most `losses` ranks of any one failure domain in each.

    domains: the failure domain of every rank. Without parity (losses 0) all ranks are one group. Raises BadInput where
    no such groups exist, naming the domain that holds too many ranks.
    """
    if losses == 0 or len(domains) == 1:
        return [list(range(len(domains)))]
    counts = {domain: domains.count(domain) for domain in dict.fromkeys(domains)}
    largest = max(counts, key=lambda domain: counts[domain])
    groups = -(-counts[largest] // losses)
    if len(domains) // groups <= losses:
        raise BadInput(f"{len(domains)} workers cannot protect each other against the loss of {losses}: "
                       f"{counts[largest]} of them are in the failure domain '{largest}', so {groups} groups are "
                       f"needed, of which some would have no more than {losses} members. Spread the workers more "
                       f"evenly, protect against fewer losses, or set parity to none.")
    # Ranks of one domain stand next to each other, so that dealing them out spreads each domain evenly.
    order = sorted(range(len(domains)), key=lambda rank: (list(counts).index(domains[rank]), rank))
    return [sorted(order[first::groups]) for first in range(groups)]
