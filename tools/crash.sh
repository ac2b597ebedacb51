#!/usr/bin/env bash
# Kills a broker N times at random moments while messages go through it, and checks that nothing that was
# answered is lost, nothing that was acknowledged comes back and no id is used twice: tools/crash.sh [N]
#
# A failure names its seed; NLBUS_CRASH_SEED=… runs it again with kills at the same counts.
set -euo pipefail
cd "$(dirname "$0")/.."
NLBUS_CRASH_ROUNDS=${1:-200} cargo test --locked --release --test crash -- --nocapture
