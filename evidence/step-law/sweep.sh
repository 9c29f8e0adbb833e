#!/bin/sh
# The small sweep of protocol.md, part 3: about ten minutes on one core. Results: FOLDER/result.json
cd "$(dirname "$0")" && OMP_NUM_THREADS=1 tilth sweep tiny.yaml --folder "${1:-sweeps/step-law}" \
    'pretrain.model={kind: transformer, layers: 2, width: 32, heads: 2, feed_forward: 64, context: 128},{kind: transformer, layers: 2, width: 64, heads: 2, feed_forward: 128, context: 128}' \
    pretrain.budget.tokens=200000,800000 pretrain.optimizer.lr=0.002,0.005,0.0125,0.03 pretrain.batch_tokens=512,2048,8192
