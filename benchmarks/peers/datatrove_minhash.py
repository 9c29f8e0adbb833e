"""datatrove's four MinHash jobs, one after the other in one process of datatrove's own environment.

    python datatrove_minhash.py INPUT.jsonl FOLDER   ->   last line: JSON with CPU-seconds and the ids that stay
"""

import glob
import gzip
import json
import sys
import time

from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def run(source: str, folder: str) -> None:
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    source_folder, _, name = source.rpartition("/")

    def read():
        return JsonlReader(source_folder, glob_pattern=name)

    signature = MinhashDedupSignature(f"{folder}/signatures", config=config)
    signature.run(read().run(None, 0, 1), 0, 1)
    for bucket in range(config.num_buckets):
        MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config).run(
            None, bucket, config.num_buckets)
    MinhashDedupCluster(f"{folder}/buckets", f"{folder}/remove", config=config).run(None, 0, 1)
    kept = MinhashDedupFilter(f"{folder}/remove").run(read().run(None, 0, 1), 0, 1)
    for _ in JsonlWriter(f"{folder}/kept").run(kept, 0, 1):
        pass


def main() -> None:
    start = time.process_time()
    run(*sys.argv[1:])
    seconds = time.process_time() - start
    ids = []
    for path in glob.glob(f"{sys.argv[2]}/kept/*.gz"):
        with gzip.open(path) as file:
            ids += [json.loads(line)["id"] for line in file]
    print(json.dumps({"cpu_seconds": seconds, "kept": ids}))


if __name__ == "__main__":
    main()
